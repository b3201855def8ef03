"""What the events of a pull mean, event by event, in the daemon's own words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from llamaman.runtimes.docker.pull_progress import Progress, after

STARTED = {"status": "Pulling from ggml-org/llama.cpp", "id": "server"}


def layer(name: str, status: str, current: int | None = None, total: int | None = None) -> dict[str, Any]:
    detail = {} if current is None else {"current": current, "total": total}
    return {"status": status, "id": name, "progressDetail": detail}


def told(events: Iterable[dict[str, Any]]) -> list[str]:
    """The message after each event, repetitions left out."""
    progress, messages = Progress(), []
    for event in events:
        progress = after(progress, event)
        if not messages or messages[-1] != progress.message:
            messages.append(progress.message)
    return messages


def test_two_layers_one_after_the_other() -> None:
    assert told(
        [
            STARTED,
            layer("base", "Already exists"),
            layer("a", "Pulling fs layer"),
            layer("b", "Pulling fs layer"),
            layer("b", "Waiting"),
            layer("a", "Downloading", 10, 100),
            layer("b", "Downloading", 40, 100),
            layer("a", "Verifying Checksum"),
            layer("a", "Download complete"),
            layer("a", "Extracting", 50, 100),
            layer("b", "Downloading", 80, 100),
            layer("b", "Download complete"),
            layer("a", "Extracting", 100, 100),
            layer("a", "Pull complete"),
            layer("b", "Extracting", 20, 100),
            layer("b", "Pull complete"),
            {"status": "Digest: sha256:abc"},
            {"status": "Status: Downloaded newer image for x:y"},
        ]
    ) == [
        "pulling image",
        "pulling image, 5 %",
        "pulling image, 25 %",
        "pulling image, 70 %",
        "pulling image, 90 %",
        "extracting image, 25 %",
        "extracting image, 50 %",
        "extracting image, 60 %",
        "extracting image, 99 %",
    ]


def test_a_layer_of_unknown_size_is_taken_for_an_average_one_and_the_share_never_goes_back() -> None:
    assert told(
        [
            layer("small", "Pulling fs layer"),
            layer("large", "Pulling fs layer"),
            layer("small", "Downloading", 100, 100),
            layer("small", "Download complete"),
            layer("large", "Downloading", 100, 10_000),
            layer("large", "Downloading", 6_000, 10_000),
        ]
    ) == ["pulling image", "pulling image, 50 %", "pulling image, 60 %"]


def test_a_download_that_starts_again_is_no_step_back() -> None:
    events = [
        layer("a", "Downloading", 60, 100),
        {"status": "Retrying in 5 seconds", "id": "a", "progressDetail": {}},
        layer("a", "Downloading", 10, 100),
        layer("a", "Downloading", 70, 100),
    ]
    assert told(events) == ["pulling image, 60 %", "pulling image, 70 %"]


@pytest.mark.parametrize(
    "detail",
    [{"current": 3, "units": "s"}, {"current": 3}, {}, None, {"current": "x", "total": []}, {"current": -1}],
)
def test_without_sizes_there_is_no_share(detail: object) -> None:
    progress = after(Progress(), {"status": "Downloading", "id": "a", "progressDetail": detail})
    assert progress.message == "pulling image"
    progress = after(progress, layer("a", "Download complete"))
    progress = after(progress, {"status": "Extracting", "id": "a", "progressDetail": detail})
    assert progress.message == "extracting image"


@pytest.mark.parametrize(
    "event", [{}, {"status": 3}, {"status": "Downloading"}, {"status": "Something new", "id": "a"}, STARTED]
)
def test_an_event_of_another_kind_changes_nothing(event: dict[str, Any]) -> None:
    assert after(Progress(), event) == Progress()


def test_a_pull_that_breaks_off_is_told_from_one_that_is_through() -> None:
    progress = after(Progress(), layer("a", "Downloading", 60, 100))
    assert not progress.is_whole
    assert not after(progress, layer("a", "Extracting", 60, 100)).is_whole
    assert after(progress, layer("a", "Pull complete")).is_whole
    assert after(Progress(), {"status": "Status: Image is up to date for x:y"}).is_whole


def test_a_manifest_of_endless_layers_costs_no_more_than_a_long_one() -> None:
    progress = Progress()
    for number in range(5_000):
        progress = after(progress, {"status": "Pulling fs layer", "id": f"{number:012x}"})
    assert len(progress.layers) == 1_000
    assert after(progress, {"status": "Status: Downloaded newer image for x"}).is_whole
