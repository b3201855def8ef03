"""Names, labels, and what a container must carry to be believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaman.records import Engine, LaunchPlan
from llamaman.runtimes.docker.labels import (
    GENERATION,
    INSTANCE,
    MANAGED,
    NAMES,
    PROOF,
    Marks,
    container_name,
    label_filter,
    labels,
    network_labels,
    proven,
)

IMAGE = "sha256:" + "ab" * 32
KEY = b"k" * 32
PLAN = LaunchPlan(
    instance_id="0123456789abcdef",
    node="node-1",
    install="install-1",
    generation=3,
    engine=Engine("server", "image", "ghcr.io/ggml-org/llama.cpp:server"),
    model_path=Path("/m/tiny.gguf"),
    alias="tiny",
    options={},
    flags=(),
    env={},
    host="127.0.0.1",
    port=0,
    log_path=Path("/l/tiny.log"),
    config_hash="c0ffee",
    api_key="secret-of-this-start",
)
MARKS = Marks("0123456789abcdef", "node-1", "install-1", 3, "c0ffee")


def test_a_container_is_named_by_the_prefix_and_the_first_eight_of_its_instance() -> None:
    assert container_name("llamaman-", PLAN.instance_id) == "llamaman-01234567"


def test_containers_and_networks_of_a_manager_are_found_by_one_filter() -> None:
    wanted = label_filter("node-1", "install-1")
    assert wanted == ["llamaman.managed=1", "llamaman.node=node-1", "llamaman.install=install-1"]
    for given_labels in (labels(PLAN, IMAGE, KEY), network_labels("node-1", "install-1")):
        assert {f"{name}={value}" for name, value in given_labels.items()} >= set(wanted)


def test_a_container_with_its_own_proof_is_believed() -> None:
    made = labels(PLAN, IMAGE, KEY)
    assert set(made) == NAMES
    assert proven(made, IMAGE, KEY) == MARKS
    assert proven(made | {"maintainer": "somebody"}, IMAGE, KEY) == MARKS


def test_no_label_shows_a_secret() -> None:
    assert not any(
        PLAN.api_key in value or KEY.decode() in value for value in labels(PLAN, IMAGE, KEY).values()
    )


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("value", [None, "", "x", "2", "\udcff", "0" * 64, "é", 7, "٣", "03", " 3"])
def test_one_label_changed_or_missing_makes_it_foreign(name: str, value: Any) -> None:
    made: dict[str, Any] = labels(PLAN, IMAGE, KEY)
    changed = {k: v for k, v in made.items() if k != name} if value is None else made | {name: value}
    assert proven(changed, IMAGE, KEY) is None


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAN, generation=4),
        replace(PLAN, instance_id="0123456789abcdee"),
        replace(PLAN, node="node-2"),
        replace(PLAN, install="install-2"),
        replace(PLAN, config_hash="decaf"),
    ],
)
def test_a_proof_copied_onto_anything_else_is_worth_nothing(other: LaunchPlan) -> None:
    copied = labels(other, IMAGE, KEY) | {PROOF: labels(PLAN, IMAGE, KEY)[PROOF]}
    assert proven(copied, IMAGE, KEY) is None


def test_the_labels_of_one_image_prove_nothing_on_another() -> None:
    assert proven(labels(PLAN, IMAGE, KEY), "sha256:" + "cd" * 32, KEY) is None


def test_another_nodes_key_proves_nothing_here() -> None:
    assert proven(labels(PLAN, IMAGE, b"another"), IMAGE, KEY) is None


def test_parts_that_run_into_each_other_make_different_proofs() -> None:
    first = labels(replace(PLAN, node="a", install="bc"), IMAGE, KEY)
    second = labels(replace(PLAN, node="ab", install="c"), IMAGE, KEY)
    assert first[PROOF] != second[PROOF]
    one, two = replace(PLAN, instance_id="a|1"), replace(PLAN, instance_id="a")
    assert labels(one, IMAGE, KEY)[PROOF] != labels(two, IMAGE, KEY)[PROOF]


def test_an_image_with_a_managed_label_alone_is_foreign() -> None:
    assert proven({MANAGED: "1", INSTANCE: PLAN.instance_id, GENERATION: "3"}, IMAGE, KEY) is None
    assert proven(None, IMAGE, KEY) is None


def test_without_a_key_nothing_can_be_proven_by_anybody() -> None:
    with pytest.raises(ValueError, match="key"):
        labels(PLAN, IMAGE, b"")


@given(
    st.dictionaries(
        st.sampled_from(sorted(NAMES)), st.none() | st.text() | st.integers() | st.lists(st.text())
    )
)
def test_whatever_the_labels_are_it_only_says_no(anything: Any) -> None:
    assert proven(anything, IMAGE, KEY) is None
