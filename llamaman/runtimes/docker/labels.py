"""The names and labels of our containers and networks, and the proof that a container is really ours.

For the Docker runtime. Labels alone prove nothing: an image can carry any of them. The proof can be made only
with this node's key, and it holds for one start of one instance with one image: a copy of it on anything else,
or on a later start, is worth nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llamaman.records import LaunchPlan

MANAGED: Final = "llamaman.managed"
NODE: Final = "llamaman.node"
INSTALL: Final = "llamaman.install"
INSTANCE: Final = "llamaman.instance"
GENERATION: Final = "llamaman.generation"
CONFIG: Final = "llamaman.config"
PROOF: Final = "llamaman.proof"

#: Of every container of ours.
NAMES: Final = frozenset({MANAGED, NODE, INSTALL, INSTANCE, GENERATION, CONFIG, PROOF})

_YES: Final = "1"
_GENERATION = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Marks:
    """Which start of which instance a container is, as its proven labels say."""

    instance_id: str
    node: str
    install: str
    generation: int
    config_hash: str


def container_name(prefix: str, instance_id: str) -> str:
    """The name by which people and the manager know the container of an instance."""
    return prefix + instance_id[:8]


def name_of(summary: Mapping[str, Any]) -> str:
    """A container's name as the daemon's list tells it."""
    return str((summary.get("Names") or ["?"])[0]).lstrip("/")


def network_labels(node: str, install: str) -> dict[str, str]:
    """What a network that this node made carries."""
    return {MANAGED: _YES, NODE: node, INSTALL: install}


def label_filter(node: str, install: str) -> list[str]:
    """The daemon's filter for what this node's manager of this installation says it made, as ``name=value``."""
    return [f"{name}={value}" for name, value in network_labels(node, install).items()]


def labels(plan: LaunchPlan, image_id: str, key: bytes) -> dict[str, str]:
    """The labels of the container of one start.

    :param image_id: the daemon's id of the image it is made of (``sha256:...``), not its tag.
    :param key: this node's own, never empty.
    """
    marks = Marks(plan.instance_id, plan.node, plan.install, plan.generation, plan.config_hash)
    return {
        **network_labels(marks.node, marks.install),
        INSTANCE: marks.instance_id,
        GENERATION: str(marks.generation),
        CONFIG: marks.config_hash,
        PROOF: _proof(marks, image_id, key),
    }


def proven(labels: Mapping[str, str] | None, image_id: str, key: bytes) -> Marks | None:
    """What the labels of a container say, if it was made with ``key``; None: foreign, whatever it calls itself.

    Never raises: labels are anybody's text.

    :param image_id: the daemon's id of the image that the container really runs.
    """
    marks = _read(labels)
    if marks is None:
        return None
    given = labels[PROOF] if labels is not None else ""
    same = hmac.compare_digest(_proof(marks, image_id, key).encode(), given.encode("utf-8", "replace"))
    return marks if same else None


def _read(labels: Mapping[str, str] | None) -> Marks | None:
    if not isinstance(labels, Mapping):  # the daemon says null where there are none
        return None
    values = {name: labels.get(name) for name in NAMES}
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    if len(texts) != len(values) or texts[MANAGED] != _YES or not texts[INSTANCE]:
        return None
    if not _GENERATION.fullmatch(texts[GENERATION]):
        return None
    return Marks(texts[INSTANCE], texts[NODE], texts[INSTALL], int(texts[GENERATION]), texts[CONFIG])


def _proof(marks: Marks, image_id: str, key: bytes) -> str:
    if not key:
        raise ValueError("the proof needs this node's key, and it is empty")
    # As JSON, so that no two different sets of marks make one text.
    facts = [marks.instance_id, marks.generation, marks.config_hash, image_id, marks.node, marks.install]
    text = json.dumps(["llamaman container", *facts])
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
