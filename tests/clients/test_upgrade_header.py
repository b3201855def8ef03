"""Java's HttpClient (Spring AI, LangChain4j) offers HTTP/2 with each first request; its body must not be lost.

There is no Java here, so the bytes are sent as that client sends them.
"""

from __future__ import annotations

import json

import pytest
from samples import HELLO
from scripted_model import WORDS

from llamaman.testing.manager import Manager
from llamaman.testing.wire import call

pytestmark = pytest.mark.real("engine")

OFFER = {
    "Connection": "Upgrade, HTTP2-Settings",
    "HTTP2-Settings": "AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAABgAGAAA",
    "Upgrade": "h2c",
    "User-Agent": "Java-http-client/21.0.4",
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"model": "words", "messages": HELLO, "stream": False}),
        ("/v1/chat/completions", {"model": "words", "messages": HELLO}),
        ("/v1/messages", {"model": "words", "messages": HELLO, "max_tokens": 64}),
        # Larger than what arrives together with the head.
        (
            "/api/chat",
            {"model": "words", "messages": [*HELLO, *HELLO], "stream": False, "unknown": "x" * 300_000},
        ),
    ],
    ids=["ollama", "openai", "anthropic", "large"],
)
def test_a_request_that_offers_http2_keeps_its_body(site: Manager, path: str, body: object) -> None:
    answer = call(site.proxy_port, "POST", path, key=site.inference_key, body=body, headers=OFFER)
    assert answer.status == 200, answer.text
    assert "upgrade" not in answer.headers
    assert json.dumps(WORDS)[1:-1] in json.dumps(answer.json())


def test_a_second_request_on_the_connection_is_answered_too(site: Manager) -> None:
    """That client keeps the connection and goes on with HTTP/1.1."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", site.proxy_port, timeout=30)
    body = json.dumps({"model": "words", "messages": HELLO, "stream": False})
    for headers in (OFFER, {}):
        connection.request(
            "POST",
            "/api/chat",
            body,
            {"Authorization": f"Bearer {site.inference_key}", "Content-Type": "application/json", **headers},
        )
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read())["message"]["content"] == WORDS
    connection.close()
