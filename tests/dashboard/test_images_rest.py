"""``/api/images`` in front of a real Docker engine, and where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser_site import PASSWORD, Browser, Site
from management_door import Manager, eventually
from test_openapi import conforms, declared

from llamaman.access import Scope
from llamaman.runtimes.docker.daemon import Daemon
from llamaman.runtimes.docker.images import Images
from llamaman.runtimes.engines import Probe
from llamaman.testing.image_lab import Lab, free_port


@dataclass
class Runtime:
    """As much of a runtime as these routes look at."""

    images: Images
    name: str = "docker"


@pytest.fixture
def lab(docker_host: str) -> Iterator[Lab]:
    import docker

    lab = Lab(docker.DockerClient(base_url=docker_host))
    yield lab
    lab.close()


@pytest.fixture
def place(manager: Manager, docker_host: str, server_image: str, tmp_path: Path) -> Iterator[Manager]:
    """A manager whose images are those of a real engine."""
    daemon = Daemon(docker_host)
    images = Images(
        daemon,
        default=server_image,
        allowed=lambda: manager.kernel.settings.get("images.allowed"),
        state_dir=tmp_path / "state",
        probe=lambda image: Probe(None, ("--model",)),
    )
    manager.kernel.runtimes = {"docker": Runtime(images)}  # type: ignore[dict-item]  # the part that is asked for
    yield manager
    images.close()
    daemon.close()


def allow(place: Manager, *patterns: str) -> None:
    status, answer = place.call(
        "POST", "/api/settings", {"images.allowed": list(patterns)}, key=place.key(Scope.ADMIN)
    )
    assert status == 200, answer


def described(place: Manager, method: str, path: str, status: int, answer: Any) -> None:
    """The answer is what the API's description says of it."""
    document = place.call("GET", "/api/openapi.json", key=place.key(Scope.VIEW))[1]
    conforms(document, declared(document, method, path, status), answer)


@pytest.mark.real("docker")
def test_a_viewer_sees_the_images_and_what_is_pulled(place: Manager, lab: Lab, server_image: str) -> None:
    mine = lab.tag(server_image, f"{lab.unique()}:x")
    allow(place, mine.replace(":x", ":*"))
    status, answer = place.call("GET", "/api/images", key=place.key(Scope.VIEW))
    assert status == 200
    described(place, "get", "/api/images", 200, answer)
    assert answer["current_image"] == server_image
    assert answer["pulls"] == []
    current, other = answer["images"]
    assert (current["name"], current["current"], current["present"]) == (server_image, True, True)
    assert other["name"] == mine
    assert set(other) == {
        "name", "present", "current", "allowed", "in_use", "id", "digest", "size_mb", "created", "last_pulled_at",
    }  # fmt: skip
    assert other["size_mb"] > 1
    assert (other["digest"], other["last_pulled_at"]) == (None, None)


@pytest.mark.real("docker")
def test_a_pull_is_accepted_at_once_and_its_end_is_told(place: Manager, lab: Lab) -> None:
    name = f"{lab.unique(f'127.0.0.1:{free_port()}')}:x"
    allow(place, name)
    status, begun = place.call("POST", "/api/images/pull", {"image": name}, key=place.key(Scope.MANAGE))
    assert status == 202
    described(place, "post", "/api/images/pull", 202, begun)
    assert (begun["image"], begun["finished_at"], begun["error"]) == (name, None, None)
    viewer = place.key(Scope.VIEW)

    def ended(key: str) -> Any:
        (pull,) = place.call("GET", "/api/images/pull-status", key=key)[1]["pulls"]
        return pull if pull["status"] == "error" else None

    seen = eventually(lambda: ended(viewer))
    described(place, "get", "/api/images/pull-status", 200, {"pulls": [seen]})
    assert f"docker pull {name}" in seen["error"]
    assert seen["detail"] is None
    assert "connection refused" in ended(place.key(Scope.MANAGE))["detail"]
    kinds = [event.kind for event in place.kernel.events.since("images", 0)]
    assert kinds == ["pull_started", "pull_failed"]
    entry = next(row for row in audited(place) if row["action"] == "images.pull")
    assert (entry["object"], entry["actor"], entry["outcome"]) == (name, "key:manage", "ok")


def audited(place: Manager) -> list[dict[str, Any]]:
    place.kernel.audit.flush()
    found: list[dict[str, Any]] = place.call("GET", "/api/audit", key=place.key(Scope.ADMIN))[1]["entries"]
    return found


@pytest.mark.real("docker")
def test_another_image_needs_an_administrator_to_allow_it_first(place: Manager) -> None:
    for scope in (Scope.MANAGE, Scope.ADMIN):
        status, answer = place.call("POST", "/api/images/pull", {"image": "evil/x:y"}, key=place.key(scope))
        assert (status, answer["field"]) == (403, "image")
        assert "an administrator can add it" in answer["error"]
        assert "images.allowed" in answer["error"]
    assert place.call("GET", "/api/images/pull-status", key=place.key(Scope.VIEW))[1] == {"pulls": []}


@pytest.mark.real("docker")
@pytest.mark.parametrize("body", [{"image": "No Name"}, {"image": 3}, {"image": "x" * 600}, {"name": "x:y"}])
@pytest.mark.parametrize(("method", "path"), [("POST", "/api/images/pull"), ("DELETE", "/api/images")])
def test_what_is_no_name_is_refused_with_its_field(
    place: Manager, method: str, path: str, body: dict[str, Any]
) -> None:
    status, answer = place.call(method, path, body, key=place.key(Scope.ADMIN))
    assert (status, answer["field"]) == (400, next(iter(body)))


@pytest.mark.real("docker")
def test_an_administrator_deletes_an_image_but_not_a_used_or_the_current_one(
    place: Manager, lab: Lab, server_image: str
) -> None:
    name = lab.build(f"{lab.unique()}:x", f"FROM {server_image}\nCOPY payload /p\n", random_bytes=8)
    allow(place, name)
    admin = place.key(Scope.ADMIN)
    container = lab.client.containers.create(name)
    try:
        status, answer = place.call("DELETE", "/api/images", {"image": name}, key=admin)
        assert status == 409
        assert answer["error"].startswith("Docker: ")
    finally:
        container.remove()
    assert place.call("DELETE", "/api/images", {"image": server_image}, key=admin)[0] == 409
    assert place.call("DELETE", "/api/images", {"image": name}, key=place.key(Scope.MANAGE))[0] == 403
    assert place.call("DELETE", "/api/images", {"image": name}, key=admin) == (
        200,
        {"ok": True, "image": name},
    )
    described(place, "delete", "/api/images", 200, {"ok": True, "image": name})
    assert place.call("DELETE", "/api/images", {"image": name}, key=admin)[0] == 404
    outcomes = [(row["object"], row["outcome"]) for row in audited(place) if row["action"] == "images.delete"]
    assert (name, "ok") in outcomes
    assert [event.kind for event in place.kernel.events.since("images", 0)] == ["deleted"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/images", None),
        ("GET", "/api/images/pull-status", None),
        ("POST", "/api/images/pull", {"image": "x:y"}),
        ("DELETE", "/api/images", {"image": "x:y"}),
    ],
)
def test_without_docker_each_route_says_so(
    shared_manager: Manager, method: str, path: str, body: Any
) -> None:
    status, answer = shared_manager.call(method, path, body, key=shared_manager.key(Scope.ADMIN))
    assert status == 409
    assert "without Docker" in answer["error"]


def test_a_daemon_that_is_away_is_a_503_that_says_what_to_do(manager: Manager, tmp_path: Path) -> None:
    daemon = Daemon(f"unix://{tmp_path}/none.sock")
    images = Images(daemon, default="x:y", allowed=lambda: (), state_dir=tmp_path / "state")
    manager.kernel.runtimes = {"docker": Runtime(images)}  # type: ignore[dict-item]  # the part that is asked for
    status, answer, raw = manager.raw("GET", "/api/images", key=manager.key(Scope.VIEW))
    assert status == 503
    assert "systemctl start docker" in answer["error"]
    assert raw.getheader("Retry-After")


# --- the list of what is allowed ---------------------------------------------------------------------


def test_the_list_allows_the_official_images_until_it_is_changed(shared_manager: Manager) -> None:
    status, answer = shared_manager.call("GET", "/api/settings", key=shared_manager.key(Scope.MANAGE))
    assert status == 200
    assert answer["images"] == {"allowed": ["ghcr.io/ggml-org/llama.cpp:*"]}


@pytest.mark.parametrize("wrong", ["*", "evil/*:x", "x", "x:[a]", "", "x:y@sha256:abc"])
def test_a_pattern_that_allows_nothing_is_refused(shared_manager: Manager, wrong: str) -> None:
    body = {"images": {"allowed": ["x:*", wrong]}}
    status, answer = shared_manager.call("POST", "/api/settings", body, key=shared_manager.key(Scope.ADMIN))
    assert (status, answer["field"]) == (400, "images.allowed")
    assert "llama.cpp:server-*" in answer["error"]


Change = Callable[[Any], dict[str, Any]]


@pytest.mark.parametrize(
    "body",
    [
        lambda now: {"images.allowed": [*now, "evil/x:*"]},
        lambda now: {"images": {"allowed": [*now, "evil/x:*"]}},
        lambda now: {"images.allowed": now, "images": {"allowed": ["evil/x:*"]}},
        lambda now: {"images": {"allowed": ["evil/x:*"]}, "require_auth": True},
        lambda now: {"images": {"allowed": []}},
    ],
)
def test_a_session_changes_the_list_only_with_its_password_confirmed(site: Site, body: Change) -> None:
    site.user("ada")
    ada: Browser = site.logged_in("ada")
    now = list(site.kernel.settings.get("images.allowed"))
    status, answer = ada.json("POST", "/api/settings", body(now))
    assert (status, answer.get("sudo_required")) == (403, True)
    assert list(site.kernel.settings.get("images.allowed")) == now
    assert ada.json("POST", "/api/settings", {"images": {"allowed": now}, "instances.web_ui": True})[0] == 200
    assert ada.json("POST", "/api/me/sudo", {"password": PASSWORD})[0] == 200
    assert ada.json("POST", "/api/settings", body(now))[0] == 200
