"""Where a body names media by URL, in every client API's shapes; and that nothing else is taken for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaman.core.safe_fetch import Fetched
from llamaman.errors import InvalidRequest
from llamaman.gateway import media_places
from llamaman.gateway.media import media_type
from llamaman.gateway.media_places import find, find_inline, is_inline, is_remote, may_name

URL = "http://127.0.0.1/x.png"
PNG = b"\x89PNG\r\n\x1a\n"
DATA = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAAAAAAA"  # of one pixel


def user(*parts: object) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


#: What a client may send -> where its URL is and what would take its place.
SHAPES: dict[str, tuple[dict[str, Any], str, str]] = {
    "chat, an object": (
        user(
            {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}
        ),
        "messages[0].content[1].image_url.url",
        "url",
    ),
    "chat, a string": (
        user({"type": "image_url", "image_url": URL}),
        "messages[0].content[0].image_url",
        "url",
    ),
    "chat, without a type": (
        user({"image_url": {"url": URL}}),
        "messages[0].content[0].image_url.url",
        "url",
    ),
    "chat, audio": (
        user({"type": "input_audio", "input_audio": {"data": URL, "format": "wav"}}),
        "messages[0].content[0].input_audio.data",
        "base64",
    ),
    "chat, audio by url": (
        user({"type": "input_audio", "input_audio": {"url": URL}}),
        "messages[0].content[0].input_audio.url",
        "url",
    ),
    "chat, audio_url": (
        user({"type": "audio_url", "audio_url": {"url": URL}}),
        "messages[0].content[0].audio_url.url",
        "url",
    ),
    "chat, video": (
        user({"type": "input_video", "input_video": {"data": URL}}),
        "messages[0].content[0].input_video.data",
        "base64",
    ),
    "chat, video_url": (
        user({"type": "video_url", "video_url": {"url": URL}}),
        "messages[0].content[0].video_url.url",
        "url",
    ),
    "chat, a file": (
        user({"type": "file", "file": {"file_data": URL, "filename": "a.pdf"}}),
        "messages[0].content[0].file.file_data",
        "url",
    ),
    "chat, content that is no list": (
        {"messages": [{"role": "user", "content": {"type": "image_url", "image_url": {"url": URL}}}]},
        "messages[0].content.image_url.url",
        "url",
    ),
    "chat, a tool's result": (
        {"messages": [{"role": "tool", "content": [{"type": "image_url", "image_url": {"url": URL}}]}]},
        "messages[0].content[0].image_url.url",
        "url",
    ),
    "anthropic": (
        user({"type": "image", "source": {"type": "url", "url": URL}}),
        "messages[0].content[0].source",
        "source",
    ),
    "anthropic, a document": (
        user({"type": "document", "source": {"type": "url", "url": URL}}),
        "messages[0].content[0].source",
        "source",
    ),
    "anthropic, a document of blocks": (
        user(
            {
                "type": "document",
                "source": {
                    "type": "content",
                    "content": [{"type": "image", "source": {"type": "url", "url": URL}}],
                },
            }
        ),
        "messages[0].content[0].source.content[0].source",
        "source",
    ),
    "anthropic, a tool's result": (
        user(
            {
                "type": "tool_result",
                "tool_use_id": "t",
                "content": [{"type": "image", "source": {"type": "url", "url": URL}}],
            }
        ),
        "messages[0].content[0].content[0].source",
        "source",
    ),
    "anthropic, the system's": (
        {"system": [{"type": "image", "source": {"type": "url", "url": URL}}], "messages": []},
        "system[0].source",
        "source",
    ),
    "responses": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]},
        "input[0].content[0].image_url",
        "url",
    ),
    "responses, without a message": (
        {"input": [{"type": "input_image", "image_url": {"url": URL}}]},
        "input[0].image_url.url",
        "url",
    ),
    "responses, a file": (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": URL}]}]},
        "input[0].content[0].file_url",
        "url",
    ),
    "responses, a tool's result": (
        {
            "input": [
                {
                    "type": "function_call_output",
                    "call_id": "c",
                    "output": [{"type": "input_image", "image_url": URL}],
                }
            ]
        },
        "input[0].output[0].image_url",
        "url",
    ),
    "responses, a screen": (
        {
            "input": [
                {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": URL}}
            ]
        },
        "input[0].output.image_url",
        "url",
    ),
    "ollama chat": (
        {"messages": [{"role": "user", "content": "a", "images": [DATA, URL]}]},
        "messages[0].images[1]",
        "base64",
    ),
    "ollama generate": ({"prompt": "a", "images": [URL]}, "images[0]", "base64"),
    "ollama generate, no list": ({"prompt": "a", "images": URL}, "images", "base64"),
    "llama-server's prompt": (
        {"prompt": {"prompt_string": "a", "multimodal_data": [URL]}},
        "prompt.multimodal_data[0]",
        "base64",
    ),
    "llama-server's prompts": (
        {"prompt": ["a", {"prompt_string": "a", "multimodal_data": [URL]}]},
        "prompt[1].multimodal_data[0]",
        "base64",
    ),
    "llama-server's embeddings": (
        {"content": [{"prompt_string": "a", "multimodal_data": [URL]}]},
        "content[0].multimodal_data[0]",
        "base64",
    ),
    "a list of URLs where one is due": (
        user({"type": "image_url", "image_url": [{"url": URL}]}),
        "messages[0].content[0].image_url[0].url",
        "url",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_client_apis_shape_is_found(shape: str) -> None:
    body, path, form = SHAPES[shape]
    (place,) = find(body)
    assert (place.path, place.text, place.form) == (path, URL, form)
    if form == "source":
        assert place.holder[place.key]["url"] == URL
    else:
        assert place.holder[place.key] == URL
    assert may_name(json.dumps(body).encode())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_medium_itself_is_found_where_its_url_would_be(shape: str) -> None:
    body, path, form = json.loads(json.dumps(SHAPES[shape]).replace(URL, DATA))
    found = {place.path: place for place in find_inline(body)}
    if form == "source":  # Anthropic's clients have another member for it
        path += ".url"
        holder = find_source(body)
        holder |= {"type": "base64", "data": holder.pop("url")}
        path = path.removesuffix("url") + "data"
        found = {place.path: place for place in find_inline(body)}
    place = found[path]
    assert place.text == DATA
    assert place.holder[place.key] == DATA
    assert find(body) == []


def find_source(value: Any) -> dict[str, Any]:
    """The object under the innermost ``source``."""
    inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    below = [source for each in inner if (source := find_source(each))]
    own = value.get("source") if isinstance(value, dict) else None
    return below[0] if below else own if isinstance(own, dict) and "url" in own else {}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "aGk="}], "prompt": DATA, "input": [DATA], "model": "m"},
        user(
            {"type": "text", "text": DATA}, {"type": "document", "source": {"type": "text", "data": "aGk="}}
        ),
        {"messages": [], "tools": [{"function": {"parameters": {"default": {"image_url": {"url": DATA}}}}}]},
        user({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}),
        user({"type": "image_url", "image_url": {"url": ""}}),
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"arguments": {"images": ["aGk="]}}}]}
            ]
        },
    ],
)
def test_words_are_no_media(body: dict[str, Any]) -> None:
    assert find_inline(body) == []


@pytest.mark.parametrize(
    ("text", "inline"), [(DATA, True), ("aGk=", True), ("x y", True), (URL, False), ("", False)]
)
def test_a_medium_is_here_or_elsewhere(text: str, inline: bool) -> None:
    assert is_inline(text) is inline


def test_a_dialect_may_read_names_in_any_case() -> None:
    """Ollama's does, as Go does."""
    part = {"type": "image_url", "image_url": {"url": URL}}
    for body, path in (
        ({"Messages": [{"Role": "user", "CONTENT": [part]}]}, "Messages[0].CONTENT[0].image_url.url"),
        ({"messages": [{"content": "a", "Content": [part]}]}, "messages[0].Content[0].image_url.url"),
        ({"messages": [{"content": "a", "Images": [URL]}]}, "messages[0].Images[0]"),
        ({"prompt": "a", "IMAGES": [URL]}, "IMAGES[0]"),
    ):
        (place,) = find(body)
        assert place.path == path


@pytest.mark.parametrize(
    "url",
    [
        "http://a/x",
        "https://a/x",
        "HTTP://a/x",
        " http://a/x",
        "\nhttp://a/x",
        "http:/a/x",
        "http:\\\\a\\x",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://a/x",
        "gopher://a/x",
        "s3://bucket/x",
        "unix:/run/x.sock",
        "\\\\host\\http:\\x",
        "DATA:http://a",
    ],
)
def test_every_scheme_but_data_leads_elsewhere(url: str) -> None:
    assert is_remote(url)
    assert find(user({"type": "image_url", "image_url": {"url": url}}))[0].text == url
    assert may_name(json.dumps(url).encode())


@pytest.mark.parametrize("text", [DATA, "data:text/plain,http://a", "aGk=", "", "/9j/4AAQ", "no url"])
def test_media_themselves_lead_nowhere(text: str) -> None:
    assert not is_remote(text)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": f"see {URL}"}]},
        user({"type": "text", "text": f"what is {URL}? image_url"}),
        {"prompt": f"see {URL}", "suffix": URL, "system": URL, "template": URL},
        {"prompt": [URL, URL]},
        {"input": URL},
        {"input": [URL, {"role": "user", "content": [{"type": "input_text", "text": URL}]}]},
        {"query": URL, "documents": [URL, {"text": URL}]},
        {"content": URL},
        {"instructions": URL, "input": "a"},
        {"messages": [], "tools": [{"function": {"parameters": {"default": {"image_url": {"url": URL}}}}}]},
        {"messages": [], "response_format": {"json_schema": {"schema": {"$id": URL, "image_url": URL}}}},
        {"messages": [], "metadata": {"image_url": URL}, "user": URL},
        {"messages": [], "chat_template_kwargs": {"image_url": URL}},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {"image_url": URL}}}]}]},
        {"messages": [{"role": "tool", "content": json.dumps({"image_url": {"url": URL}})}]},
        user({"type": "tool_use", "id": "t", "name": "show", "input": {"image_url": URL, "images": [URL]}}),
        user({"type": "tool_result", "tool_use_id": "t", "content": URL}),
        user({"type": "search_result", "source": URL, "title": "a", "content": [{"type": "text", "text": URL}]}),
        user({"type": "text", "text": "a", "citations": [{"url": URL, "source": URL}]}),
        user({"type": "image_url", "image_url": {"url": DATA, "detail": URL}}),
        user({"type": "file", "file": {"filename": "c:/a.pdf", "file_data": DATA}}),
        {"input": [{"type": "function_call", "arguments": URL}, {"type": "function_call_output", "output": URL}]},
        {"messages": [{"role": "user", "content": URL, "images": [DATA, "aGk="]}]},
    ],
)  # fmt: skip
def test_what_only_mentions_a_url_is_no_medium(body: dict[str, Any]) -> None:
    assert find(body) == []


@pytest.mark.parametrize("body", [{"messages": 1}, {"messages": [1, None, [2]]}, {"input": None}, {}])
def test_shapes_that_nobody_expects_hold_nothing(body: dict[str, Any]) -> None:
    assert find(body) == []


def test_all_places_are_found_however_deep() -> None:
    body: dict[str, Any] = {"type": "image_url", "image_url": URL}
    for _ in range(900):
        body = {"content": [body, {"image_url": {"url": URL}}]}
    assert len(find({"messages": [body]})) == 901


def test_a_body_of_endless_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_places, "MOST_VALUES", 100)
    assert find({"prompt": [1] * 90}) == []
    with pytest.raises(InvalidRequest, match="more than 100 parts"):
        find({"prompt": [1] * 101})


def escaped(text: str, choices: list[int]) -> bytes:
    """JSON text with each character written in one of the ways that there are."""
    written = []
    for character, choice in zip(text, choices, strict=False):
        plain = json.dumps(character, ensure_ascii=False)[1:-1]
        code = "".join(
            f"\\u{unit:04x}"
            for unit in memoryview(character.encode("utf-16-le", "surrogatepass")).cast("H").tolist()
        )
        slash = "\\/" if character == "/" else plain
        written.append((plain, code, code.replace("\\u", "\0").upper().replace("\0", "\\u"), slash)[choice])
    return ('"' + "".join(written) + '"').encode()


@given(
    before=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    colon=st.sampled_from([":/", ":\\"]),
    after=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    choices=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_no_way_of_writing_json_hides_a_url(before: str, colon: str, after: str, choices: list[int]) -> None:
    text = before + colon + after
    raw = escaped(text, choices)
    assert json.loads(raw) == text
    assert may_name(raw)


def test_bodies_without_urls_are_not_walked() -> None:
    assert not may_name(json.dumps(user({"type": "image_url", "image_url": {"url": DATA}})).encode())
    assert not may_name(json.dumps({"prompt": 'a: b, "c" / d'}).encode())


@pytest.mark.parametrize(
    ("data", "declared", "kind"),
    [
        (PNG, "", "image/png"),
        (PNG, "text/html", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/png", "image/jpeg"),
        (b"RIFF\0\0\0\0WAVE", "", "audio/wav"),
        (b"RIFF\0\0\0\0WEBP", "", "image/webp"),
        (b"RIFF\0\0\0\0XXXX", "", None),
        (b"\0\0\0\x18ftypmp42", "", "video/mp4"),
        (b"anything", "image/x-new; q=1", "image/x-new"),
        (b"anything", "IMAGE/PNG", "image/png"),
        (b"anything", "application/octet-stream", None),
        (b"<svg", "image/svg,evil;base64", None),
        (b"<html", "text/html", None),
        (b"", "", None),
    ],
)
def test_what_was_fetched_is_known_by_its_bytes_or_its_host(
    data: bytes, declared: str, kind: str | None
) -> None:
    assert media_type(Fetched("https://a", declared, data)) == kind
