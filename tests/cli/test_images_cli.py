"""``llamaman images``: the table, a pull that is followed to its end, and a deletion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prepared_answers import StandIn, stand_in

from llamaman.cli import images

Run = Callable[..., Any]
NAME = "ghcr.io/ggml-org/llama.cpp:server"
HERE = {
    "name": NAME, "present": True, "current": True, "allowed": True, "in_use": True, "id": "sha256:" + "1" * 64,
    "digest": "sha256:" + "2" * 64, "size_mb": 1234.5, "created": 1.7e9, "last_pulled_at": None,
}  # fmt: skip
ABSENT = dict.fromkeys(HERE, None) | {
    "name": "mine\x1b[2J:x", "present": False, "current": False, "allowed": False, "in_use": False,
}  # fmt: skip


def pull(status: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {
        "image": NAME, "status": status, "percent": None, "message": message, "error": None, "detail": None,
        "started_at": 2e9, "finished_at": None, **more,
    }  # fmt: skip


@pytest.fixture
def answering(environment: pytest.MonkeyPatch) -> Iterator[StandIn]:
    environment.setattr(images, "_EVERY_S", 0.0)
    with stand_in() as state:
        environment.setenv("LLAMAMAN_URL", state.url)
        environment.setenv("LLAMAMAN_API_KEY", "llm-" + "k" * 40)
        state.answers["GET /api/images"] = {"images": [HERE, ABSENT], "current_image": NAME, "pulls": []}
        yield state


def follows(answering: StandIn, *states: dict[str, Any]) -> None:
    """The manager's answers to a pull, then to each question about it."""
    answering.answers["POST /api/images/pull"] = states[0]
    rest = iter(states[1:])
    older = pull("error", error="another time", started_at=1e9)
    answering.answers["GET /api/images/pull-status"] = lambda query: {"pulls": [next(rest), older]}


@pytest.mark.parametrize("arguments", [("images",), ("images", "ls")])
def test_the_images_are_listed_with_what_is_known_of_them(
    answering: StandIn, llamaman: Run, arguments: tuple[str, ...]
) -> None:
    outcome = llamaman(*arguments)
    assert outcome.status == 0
    _, first, second = outcome.out.splitlines()
    assert first.split()[:5] == [NAME, "yes", "2" * 12, "1234", "MiB"]
    assert first.endswith("current, in use")
    assert second.split() == ["mine\\x1b[2J:x", "no", "-", "-", "-", "-", "not", "allowed"]
    assert llamaman(*arguments, "--json").json["images"] == [HERE, ABSENT]


def test_what_is_being_pulled_stands_below(answering: StandIn, llamaman: Run) -> None:
    answering.answers["GET /api/images"]["pulls"] = [pull("pulling", "pulling image, 43 %"), pull("done")]
    lines = llamaman("images").out.splitlines()
    assert lines[-2].split() == ["PULL", "STATE", "SINCE"]
    assert "pulling image, 43 %" in lines[-1]


def test_a_pull_is_followed_until_the_image_is_here(answering: StandIn, llamaman: Run) -> None:
    follows(
        answering,
        pull("queued", "waiting to pull image"),
        pull("pulling", "pulling image, 43 %"),
        pull("pulling", "pulling image, 43 %"),
        pull("done", "pulled"),
    )
    outcome = llamaman("images", "pull", NAME)
    assert (outcome.status, outcome.out) == (0, "")
    assert outcome.err.splitlines() == [
        f"{NAME}: waiting to pull image",
        f"{NAME}: pulling image, 43 %",
        f"{NAME} is here",
    ]
    assert answering.asked[0] == ("POST /api/images/pull", {}, {"image": NAME})


def test_a_pull_without_a_name_is_of_the_current_image(answering: StandIn, llamaman: Run) -> None:
    follows(answering, pull("done"))
    assert llamaman("images", "pull", "--json").json == pull("done")
    assert answering.asked[0][2] == {}


def test_a_failed_pull_says_why_in_docker_s_words_too_and_is_a_failure(
    answering: StandIn, llamaman: Run
) -> None:
    follows(
        answering, pull("pulling"), pull("error", error="Docker image not found\x07", detail="Docker: words")
    )
    outcome = llamaman("images", "pull", NAME)
    assert outcome.status == 1
    assert "Docker: words" in outcome.err
    assert "Docker image not found\\x07" in outcome.err


def test_a_pull_can_be_left_to_itself(answering: StandIn, llamaman: Run) -> None:
    follows(answering, pull("queued", "waiting to pull image"))
    outcome = llamaman("images", "pull", NAME, "--no-wait")
    assert (outcome.status, len(answering.asked)) == (0, 1)
    assert "waiting to pull image" in outcome.err


def test_a_pull_that_a_restart_forgot_is_a_failure(answering: StandIn, llamaman: Run) -> None:
    answering.answers["POST /api/images/pull"] = pull("pulling")
    answering.answers["GET /api/images/pull-status"] = {"pulls": []}
    outcome = llamaman("images", "pull", NAME)
    assert outcome.status == 1
    assert "restarted" in outcome.err


def test_an_image_is_deleted(answering: StandIn, llamaman: Run) -> None:
    answering.answers["DELETE /api/images"] = {"ok": True, "image": NAME}
    outcome = llamaman("images", "rm", NAME)
    assert (outcome.status, outcome.err) == (0, f"{NAME} is deleted\n")
    assert answering.asked[-1] == ("DELETE /api/images", {}, {"image": NAME})
    assert llamaman("images", "rm", NAME, "--json").json == {"ok": True, "image": NAME}
