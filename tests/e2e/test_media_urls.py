"""No request makes this machine fetch anything from itself or its network: not the engine, and not the door.

A canary listens on every address of this machine, and every route that takes a body for a model is sent a URL of
it in every client API's shape.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from llamaman.testing.manager import CHAT, Manager
from llamaman.testing.wire import call, lan_address
from llamaman_api_ollama.fixed import ANSWERS

Body = dict[str, Any]


@dataclass(slots=True)
class Canary:
    """Something that listens on every address, and how often somebody came."""

    port: int
    visits: int = 0


@contextmanager
def listening() -> Iterator[Canary]:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        canary = Canary(server.getsockname()[1])

        def count() -> None:
            while True:
                try:
                    visitor, _ = server.accept()
                except OSError:
                    return
                canary.visits += 1
                visitor.close()

        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        try:
            yield canary
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def canary() -> Iterator[Canary]:
    """Nobody has come to it by the end of the test."""
    with listening() as canary:
        yield canary
        assert canary.visits == 0, "the canary was visited"


def forms(port: int) -> list[str]:
    """URLs of the canary, and of what answers in clouds."""
    hosts = [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "x@127.0.0.1",
        "media.example\\@127.0.0.1",
        lan_address() or "192.168.1.1",
        socket.gethostname(),
    ]
    urls = [f"{scheme}://{host}:{port}/a.png" for host in hosts for scheme in ("http", "https")]
    return [
        *urls,
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        f"HTTP:/127.0.0.1:{port}/",
    ]


def shapes(url: str) -> list[Body]:
    """How the client APIs name a medium by URL."""

    def said(*parts: Body, role: str = "user") -> list[Body]:
        return [{"role": role, "content": list(parts)}]

    image = {"type": "image_url", "image_url": {"url": url}}
    block = {"type": "image", "source": {"type": "url", "url": url}}
    shown = {"type": "input_image", "image_url": url}
    return [
        {"messages": said(image)},
        {"messages": said({"type": "image_url", "image_url": url})},
        {"messages": said({"type": "input_audio", "input_audio": {"data": url, "format": "wav"}})},
        {"messages": said({"type": "input_video", "input_video": {"url": url}})},
        {"messages": said({"type": "video_url", "video_url": {"url": url}})},
        {"messages": said(image, role="tool")},
        {"messages": said(block)},
        {"messages": said({"type": "tool_result", "tool_use_id": "t", "content": [block]})},
        {"messages": [{"role": "user", "content": "a", "images": [url]}]},
        {"prompt": "a", "images": [url]},
        {"prompt": {"prompt_string": "a", "multimodal_data": [url]}},
        {"input": said(shown)},
        {"input": said({"type": "input_file", "file_url": url})},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": [shown]}]},
        {"input": [{"prompt_string": "a", "multimodal_data": [url]}]},
        {"content": {"prompt_string": "a", "multimodal_data": [url]}},
    ]


def routes(manager: Manager) -> list[tuple[str, str]]:
    """(port's surface, path) of everything that takes a body for a model."""
    rows = manager.manage("GET", "/api/routes")
    fixed = {path for method, path in ANSWERS if method == "POST"}  # whatever is sent there is not read
    return sorted(
        (row["surface"], row["path"].replace("{model}", "tiny").replace("{name}", "tiny"))
        for row in rows
        if row["method"] == "POST"
        and row["level"] == "inference"
        and row["surface"] != "admin"
        and row["path"] not in fixed
    )


def test_every_route_refuses_every_shape_before_an_engine_hears_of_it(
    manager: Manager, canary: Canary
) -> None:
    instance = manager.launch("tiny")
    ports = {"manage": manager.port, "proxy": manager.proxy_port, "instance": instance["port"]}
    served = manager.instance(instance["id"])["stats"]["total_requests"]
    found = routes(manager)
    assert {("proxy", CHAT), ("instance", "/apply-template"), ("instance", "/completion")} <= set(found)
    url = f"http://127.0.0.1:{canary.port}/a.png"
    for surface, path in found:
        for body in shapes(url):
            # A body of one's own content type may be one that the engine reads all the same.
            for kind in ("application/json", "text/plain"):
                answer = call(
                    ports[surface],
                    "POST",
                    path,
                    body={"model": "tiny", "max_tokens": 1, "stream": False, **body},
                    key=manager.inference_key,
                    headers={"Content-Type": kind},
                )
                assert answer.status in (400, 415), (surface, path, body)
                if answer.status == 400:
                    assert "media.fetch_urls" in answer.text, (surface, path, body, answer.text)
    assert manager.instance(instance["id"])["stats"]["total_requests"] == served


@pytest.mark.parametrize("fetching", [False, True])
def test_no_spelling_of_an_address_here_is_asked_with_the_setting_or_without(
    plain_manager: Manager, canary: Canary, fetching: bool
) -> None:
    manager = plain_manager
    manager.preset("tiny")
    manager.setting(**{"media.fetch_urls": fetching})
    try:
        for url in forms(canary.port):
            answer = manager.chat(messages=[{"role": "user", "content": [{"image_url": {"url": url}}]}])
            assert answer.status == 400, url
            assert answer.error.startswith("messages[0].content[0].image_url.url"), answer.text
            assert ("could not be fetched" in answer.error) is fetching
        assert manager.instances() == [], "nothing was loaded for it"
    finally:
        manager.setting(**{"media.fetch_urls": False})


def test_a_prompt_about_a_url_is_answered(plain_manager: Manager, canary: Canary) -> None:
    plain_manager.launch("tiny")
    url = f"http://127.0.0.1:{canary.port}/a.png"
    for content in (f"see {url}", [{"type": "text", "text": f'{{"image_url": "{url}"}}'}]):
        answer = plain_manager.chat(messages=[{"role": "user", "content": content}])
        assert answer.status == 200, answer.text


def test_the_canary_would_have_noticed() -> None:
    """Each address that is tried above can be reached, or the test would prove nothing."""
    with listening() as canary:
        reached = 0
        for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", lan_address() or "127.0.0.1"):
            socket.create_connection((host, canary.port), timeout=5).recv(1)
            reached += 1
        assert canary.visits == reached
