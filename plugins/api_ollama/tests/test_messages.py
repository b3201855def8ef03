"""Messages and media as llama-server reads them."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import pytest
from PIL import Image

from llamaman.errors import InvalidField
from llamaman_api_ollama import media, messages
from llamaman_api_ollama.media import Media


def engine(*given: dict[str, Any]) -> list[dict[str, Any]]:
    read = messages.joined(messages.read(given))
    return messages.to_engine(read, media.read_all([message.images for message in read]))


def picture(kind: str, size: tuple[int, int] = (2, 2), mode: str = "RGB") -> str:
    into = io.BytesIO()
    Image.new(mode, size).save(into, kind)
    return base64.b64encode(into.getvalue()).decode()


# --- messages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}),
        ({"role": "USER"}, {"role": "user", "content": ""}),
        ({"role": "user", "content": None, "images": None}, {"role": "user", "content": ""}),
        ({"Role": "user", "CONTENT": "x"}, {"role": "user", "content": "x"}),
        ({"role": "critic", "content": "x", "unknown": 1}, {"role": "critic", "content": "x"}),
        (
            {"role": "assistant", "content": "x", "thinking": "t"},
            {"role": "assistant", "content": "x", "reasoning_content": "t"},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
        ),
    ],
)
def test_a_message_always_has_a_content(given: dict[str, Any], sent: dict[str, Any]) -> None:
    assert engine(given) == [sent]


def test_a_call_in_the_past_gets_type_id_and_arguments_as_text() -> None:
    call = {"function": {"name": "lookup", "arguments": {"q": "tide", "ä": [1]}}}
    (sent,) = engine({"role": "assistant", "tool_calls": [call]})
    assert sent == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_0_0",
                "type": "function",
                "function": {"name": "lookup", "arguments": '{"q":"tide","ä":[1]}'},
            }
        ],
    }


def test_arguments_may_be_text_of_json_too() -> None:
    (message,) = messages.read(
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}]
    )
    assert message.calls[0].arguments == '{"a":1}'


def calls(*names: str, ids: tuple[str, ...] = ()) -> dict[str, Any]:
    made = [{"function": {"name": name, "arguments": {}}} for name in names]
    for call, given in zip(made, ids, strict=False):
        call["id"] = given  # type: ignore[assignment] # a test's literal
    return {"role": "assistant", "content": "", "tool_calls": made}


def answers(*given: dict[str, Any]) -> list[tuple[str | None, str | None]]:
    return [(m.get("name"), m.get("tool_call_id")) for m in engine(*given) if m["role"] == "tool"]


def test_results_without_ids_get_those_of_the_calls_in_order() -> None:
    tool = {"role": "tool", "content": "r"}
    assert answers(calls("a", "b"), tool, tool, calls("c"), tool) == [
        ("a", "call_0_0"),
        ("b", "call_0_1"),
        ("c", "call_1_0"),
    ]


def test_a_result_finds_its_call_by_name_first() -> None:
    assert answers(
        calls("a", "b"),
        {"role": "tool", "content": "r", "tool_name": "b"},
        {"role": "tool", "content": "r"},
    ) == [("b", "call_0_1"), ("a", "call_0_0")]


def test_ids_that_a_client_gives_are_kept() -> None:
    assert answers(
        calls("a", "b", ids=("x", "y")),
        {"role": "tool", "content": "r", "tool_call_id": "y"},
        {"role": "tool", "content": "r", "tool_call_id": "elsewhere"},
        {"role": "tool", "content": "r"},
    ) == [("b", "y"), (None, "elsewhere"), ("a", "x")]


def test_a_result_of_no_call_is_sent_as_it_is() -> None:
    assert answers({"role": "tool", "content": "r"}, {"role": "tool", "content": "r", "tool_name": "n"}) == [
        (None, None),
        ("n", None),
    ]


def test_the_assistants_last_messages_are_joined() -> None:
    sent = engine(
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "thinking": "t"},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
    )
    assert sent[1:] == [{"role": "assistant", "content": "abc", "reasoning_content": "t"}]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("hi", "messages[0]"),
        (None, "messages[0]"),
        ({"role": 1}, "messages[0].role"),
        ({"content": 1}, "messages[0].content"),
        ({"content": ["x"]}, "messages[0].content"),
        ({"images": "x"}, "messages[0].images"),
        ({"images": [1]}, "messages[0].images"),
        ({"tool_calls": {}}, "messages[0].tool_calls"),
        ({"tool_calls": [1]}, "messages[0].tool_calls[0]"),
        ({"tool_calls": [{"function": []}]}, "messages[0].tool_calls[0].function"),
        ({"tool_calls": [{"function": {"arguments": "{"}}]}, "messages[0].tool_calls[0].function.arguments"),
        ({"tool_calls": [{"function": {"arguments": [1]}}]}, "messages[0].tool_calls[0].function.arguments"),
    ],
)
def test_what_is_wrong_with_a_message_is_named(message: Any, field: str) -> None:
    with pytest.raises(InvalidField) as error:
        messages.read([message])
    assert error.value.field == field
    assert field in error.value.message


# --- media ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mime"),
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("GIF", "image/gif"), ("BMP", "image/bmp")],
)
def test_a_pictures_type_is_read_from_its_bytes(kind: str, mime: str) -> None:
    data = picture(kind)
    assert media.read(data) == Media("image", mime, data)


def test_what_nobody_knows_is_called_a_jpeg() -> None:
    assert media.read("aGVsbG8=").format == "image/jpeg"


@pytest.mark.parametrize(
    ("raw", "form"),
    [
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "wav"),
        (b"ID3\x04", "mp3"),
        (b"\xff\xfb\x90", "mp3"),
        (b"\xff\xe3", "mp3"),
    ],
)
def test_sounds_are_told_from_pictures(raw: bytes, form: str) -> None:
    data = base64.b64encode(raw).decode()
    (sent,) = engine({"role": "user", "content": "", "images": [data]})
    assert sent["content"] == [{"type": "input_audio", "input_audio": {"data": data, "format": form}}]


def test_pictures_are_parts_behind_the_text() -> None:
    data = picture("PNG")
    (sent,) = engine({"role": "user", "content": "what?", "images": [data, data]})
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    assert sent["content"] == [{"type": "text", "text": "what?"}, url, url]
    (alone,) = engine({"role": "user", "images": [data]})
    assert alone["content"] == [url]


def test_a_call_is_answered_once_and_under_its_own_name() -> None:
    calls = [{"id": key, "function": {"name": name}} for key, name in (("a", "x"), ("b", "y"), ("c", "x"))]
    results = [{"tool_name": "x"}, {"tool_name": "x"}, {"tool_name": "x"}, {}, {}]
    sent = engine({"role": "assistant", "tool_calls": calls}, *({"role": "tool", **each} for each in results))
    assert [entry.get("tool_call_id") for entry in sent[1:]] == ["a", "c", None, "b", None]


def test_the_name_of_another_call_leaves_a_call_unanswered() -> None:
    calls = [{"id": "a", "function": {"name": "x"}}]
    results: list[dict[str, Any]] = [{"tool_call_id": "a", "tool_name": "z"}, {"tool_call_id": "a"}]
    sent = engine({"role": "assistant", "tool_calls": calls}, *({"role": "tool", **each} for each in results))
    assert [(entry["tool_call_id"], entry["name"]) for entry in sent[1:]] == [("a", "z"), ("a", "x")]


def test_thousands_of_calls_results_and_beginnings_take_no_more_than_their_share_of_time() -> None:
    calls = [{"function": {"name": f"f{number}"}} for number in range(40_000)]
    results = [{"role": "tool", "content": "x", "tool_name": f"f{39_999 - number}"} for number in range(4000)]
    begun = [{"role": "assistant", "content": "x" * 4096} for _ in range(5000)]
    began = time.process_time()
    sent = engine({"role": "assistant", "tool_calls": calls}, *results, {"role": "user"}, *begun)
    assert time.process_time() - began < 8  # looking through all calls for each result takes a minute
    assert sent[1]["tool_call_id"] == "call_0_39999"
    assert len(sent[-1]["content"]) == 4096 * 5000


def test_a_data_url_and_line_ends_are_taken_off() -> None:
    data = picture("PNG")
    assert media.read(f"data:image/webp;base64,{data[:40]}\r\n{data[40:]}\n").data == data


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("http://host/a.png", 4),
        ("https://host/a.png", 5),
        ("!", 0),
        ("abc", 3),
        ("ab=c", 2),
        ("a", 1),
        ("äaaa", 0),
    ],
)
def test_what_is_not_base64_is_refused_in_the_words_of_go(text: str, position: int) -> None:
    with pytest.raises(InvalidField) as error:
        media.check([text])
    assert error.value.message == f"illegal base64 data at input byte {position}"


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_large_texts_are_checked_to_their_end(at: int) -> None:
    whole = "A" * (2 << 20)
    media.check([whole, "A" * (1 << 20) + "AA==", whole[:-at] + "=" * at if at < 3 else ""])
    for broken in (whole + "!AAA", "A" * ((1 << 20) - 2) + "==" + "AAAA", whole + "A"):
        with pytest.raises(InvalidField, match="illegal base64 data at input byte"):
            media.check([broken])
