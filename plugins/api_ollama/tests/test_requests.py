"""What requests are read as, what they are refused for, and what the engine is asked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ollama_script import (
    DIALECT,
    HELLO,
    PLAIN,
    PROMPT,
    ROUTES,
    TOOL,
    lines,
    opened,
    replied,
    reply_of,
    saying,
    sent,
    served,
    with_abilities,
)

from llamaman.errors import LlamaManError
from llamaman.gateway.dialect import Call, Reply, Result
from llamaman.records import EngineFacts
from llamaman.testing.dialect_script import LEASE, MODEL, MODELS, good_answer, request_for
from llamaman_api_ollama.asked import Asking
from llamaman_api_ollama.dialect import CHAT, EMBED, EMBEDDINGS, GENERATE, SHOW

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
BODIES = {
    CHAT: HELLO,
    GENERATE: PROMPT,
    EMBED: {"model": "beta", "input": "a"},
    EMBEDDINGS: {"model": "beta", "prompt": "a"},
    SHOW: {"model": "alpha"},
}


def refusal(path: str, body: dict[str, Any], model: Any = MODEL) -> tuple[int, str]:
    """The status and sentence of a request that is refused before a model is loaded."""
    with pytest.raises(LlamaManError) as error:
        DIALECT.check(opened(path, body), model)
    return error.value.status, reply_of(DIALECT.error(error.value, started=False), error.value.status)[
        "error"
    ]  # type: ignore[arg-type] # a Reply before the start


# --- the table of bad names -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        (CHAT, 400, "model is required"),
        (GENERATE, 404, "model '' not found"),
        (EMBED, 404, "model '' not found"),
        (EMBEDDINGS, 400, "model is required"),
        (SHOW, 400, "model is required"),
    ],
)
@pytest.mark.parametrize("name", [{"model": ""}, {"model": None}, {"model": " ", "name": ""}, {}])
def test_no_name(path: str, status: int, text: str, name: dict[str, Any]) -> None:
    body = {key: value for key, value in BODIES[path].items() if key != "model"} | name
    assert refusal(path, body) == (status, text)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", ["x!", "foo:", "/foo"])
def test_a_name_that_breaks_the_grammar(path: str, name: str) -> None:
    assert refusal(path, {**BODIES[path], "model": name}) == (400, "invalid model name")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (EMBED, 'model "Nobody" not found, try pulling it first'),
        (EMBEDDINGS, 'model "Nobody" not found, try pulling it first'),
        (SHOW, "model 'Nobody:latest' not found"),
    ],
)
def test_a_model_that_is_not_there(path: str, text: str) -> None:
    assert refusal(path, {**BODIES[path], "model": "Nobody"}) == (404, text)


def test_a_model_that_is_not_there_is_the_kernels_404_elsewhere() -> None:
    for path in (CHAT, GENERATE):
        assert opened(path, {**BODIES[path], "model": "Nobody"}).model == "Nobody"


@pytest.mark.parametrize("path", BODIES)
def test_models_of_the_cloud(path: str) -> None:
    for name, status, text in (
        ("x:cloud", 403, "ollama cloud is disabled: remote model is unavailable"),
        ("x:cloud:local", 400, "use either :local or :cloud, not both"),
    ):
        assert refusal(path, {**BODIES[path], "model": name}) == (status, text)


@pytest.mark.parametrize("path", [CHAT, GENERATE, EMBED, EMBEDDINGS])
def test_the_old_field_for_the_name_counts_where_the_new_one_is_empty(path: str) -> None:
    body = {key: value for key, value in BODIES[path].items() if key != "model"}
    for given in ({"name": "alpha"}, {"name": "alpha", "model": ""}, {"name": "x", "model": "alpha"}):
        intent = opened(path, {**body, **given})
        assert isinstance(intent, Asking)
        assert (intent.model, intent.name) == ("alpha", "alpha")


def test_the_kernel_is_asked_for_the_models_own_name_and_the_answer_has_the_clients() -> None:
    intent = opened(CHAT, {**HELLO, "model": "ALPHA:local"})
    assert isinstance(intent, Asking)
    assert (intent.model, intent.name) == ("alpha", "ALPHA:local")


def test_an_instance_port_needs_no_name_and_judges_one_itself() -> None:
    assert opened(CHAT, {"messages": []}, own_model=MODELS[1]).model is None
    assert opened(CHAT, {**HELLO, "model": "nobody"}, own_model=MODELS[1]).model == "nobody"


# --- the table of other refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        (CHAT, {"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        (GENERATE, {"top_logprobs": -1}, "top_logprobs must be between 0 and 20"),
        (
            CHAT,
            {"think": "hi"},
            'invalid think value: "hi" (must be "high", "medium", "low", "max", true, or false)',
        ),
        (
            CHAT,
            {"think": 1},
            'invalid think value: 1 (must be "high", "medium", "low", "max", true, or false)',
        ),
        (CHAT, {"format": "xml"}, 'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
        (GENERATE, {"format": []}, 'invalid format: []; expected "json" or a valid JSON Schema object'),
        (GENERATE, {"raw": True, "system": "s"}, "raw mode does not support template, system, or context"),
        (GENERATE, {"raw": True, "template": "t"}, "raw mode does not support template, system, or context"),
        (GENERATE, {"raw": True, "context": [1]}, "raw mode does not support template, system, or context"),
        (CHAT, {"options": {"temperature": "hot"}}, 'option "temperature" must be of type float32'),
        (CHAT, {"keep_alive": "x"}, 'time: invalid duration "x"'),
        (GENERATE, {"keep_alive": "300"}, 'time: missing unit in duration "300"'),
        (EMBED, {"keep_alive": True}, "Unsupported type: 'bool'"),
        (GENERATE, {"images": ["!"]}, "illegal base64 data at input byte 0"),
        (CHAT, {"messages": [{"role": "user", "images": ["aaaa!"]}]}, "illegal base64 data at input byte 4"),
        (EMBED, {"input": 5}, "invalid input type"),
        (EMBED, {"input": ["a", 5]}, "invalid input type"),
        (EMBED, {"input": {}}, "invalid input type"),
        (CHAT, {"stream": "no"}, "stream must be true or false"),
        (CHAT, {"messages": "hi"}, "messages must be a list"),
        (CHAT, {"messages": {}}, "messages must be a list"),
        (CHAT, {"tools": [1]}, "tools must be a list of objects"),
        (CHAT, {"options": []}, "options must be an object"),
        (CHAT, {"model": 1}, "model must be a string"),
        (GENERATE, {"prompt": ["a"]}, "prompt must be a string"),
        (GENERATE, {"context": ["a"]}, "context must be a list of tokens"),
        (GENERATE, {"context": [-1]}, "context must be a list of tokens"),
        (CHAT, {"top_logprobs": 1.5}, "top_logprobs must be an integer"),
        (EMBED, {"dimensions": "4"}, "dimensions must be an integer"),
    ],
)
def test_a_bad_value_is_a_400_with_the_text_that_clients_know(
    path: str, body: dict[str, Any], text: str
) -> None:
    assert refusal(path, {**BODIES[path], **body}) == (400, text)


@pytest.mark.parametrize("typed", ["Alpha", "alpha:latest"])
@pytest.mark.parametrize(
    ("path", "body", "able", "text"),
    [
        (CHAT, {}, ["embedding"], '"{}" does not support chat'),
        (GENERATE, {}, ["embedding"], '"{}" does not support generate'),
        (GENERATE, {"prompt": ""}, ["embedding"], '"{}" does not support generate'),
        (CHAT, {"messages": []}, ["embedding"], '"{}" does not support chat'),
        (CHAT, {"think": True}, ["completion"], '"{}" does not support thinking'),
        (CHAT, {"think": "low"}, ["completion"], '"{}" does not support thinking'),
        (GENERATE, {"prompt": "", "think": True}, ["completion"], '"{}" does not support thinking'),
    ],
)
def test_what_a_model_cannot_do_names_it_as_typed(
    typed: str, path: str, body: dict[str, Any], able: list[str], text: str
) -> None:
    found = refusal(path, {**BODIES[path], "model": typed, **body}, with_abilities(*able))
    assert found == (400, text.format(typed))


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        (CHAT, {"tools": [TOOL]}, "does not support tools"),
        (GENERATE, {"suffix": "x"}, "does not support insert"),
    ],
)
def test_a_missing_feature_names_the_model_in_full(path: str, body: dict[str, Any], text: str) -> None:
    found = refusal(path, {**BODIES[path], "model": "Alpha", **body}, PLAIN)
    assert found == (400, f"registry.ollama.ai/library/Alpha:latest {text}")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"think": False}),
        (CHAT, {"think": ""}),
        (CHAT, {"tools": []}),
        (CHAT, {"tools": None}),
        (GENERATE, {"suffix": ""}),
        (GENERATE, {"suffix": "x", "raw": True}),
        (CHAT, {"messages": [], "tools": [TOOL]}),
    ],
)
def test_empty_values_ask_for_nothing(path: str, body: dict[str, Any]) -> None:
    DIALECT.check(opened(path, {**BODIES[path], **body}), PLAIN)


def test_an_embedding_model_can_be_unloaded_as_the_cli_does_it() -> None:
    intent = opened(GENERATE, {"model": "beta", "keep_alive": "0s"})
    DIALECT.check(intent, MODELS[1])
    assert (intent.action, intent.needs) == ("unload", "any")


def test_a_model_that_nobody_knows_about_gets_its_chance() -> None:
    for unknown in (replace(MODEL, details=None), with_abilities()):
        DIALECT.check(opened(CHAT, {**HELLO, "think": True, "tools": [TOOL]}), unknown)


# --- what an intent says --------------------------------------------------------------------------------


def test_a_request_streams_unless_it_says_no() -> None:
    for stream, streams in ((None, True), (True, True), (False, False)):
        assert opened(CHAT, {**HELLO, "stream": stream}).stream is streams
    assert opened(CHAT, {"model": "alpha", "messages": HELLO["messages"]}).stream is True


@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_an_intent_says_who_asks_how_long_and_how_much(path: str) -> None:
    plain = opened(path, BODIES[path])
    assert (plain.launcher, plain.needs, plain.keep_alive, plain.context, plain.action) == (
        "ollama", "chat", None, None, "infer"
    )  # fmt: skip
    asked = opened(path, {**BODIES[path], "keep_alive": -1, "options": {"num_ctx": 8192}})
    assert (asked.keep_alive, asked.context) == (math.inf, 8192)


def test_field_names_match_in_any_case() -> None:
    intent = opened(CHAT, {"MODEL": "alpha", "Messages": HELLO["messages"], "Keep_Alive": 5, "STREAM": False})
    assert (intent.model, intent.keep_alive, intent.stream) == ("alpha", 5, False)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body", "action", "said"),
    [
        (CHAT, {"messages": []}, "load", {"message": {"role": "assistant", "content": ""}}),
        (CHAT, {"messages": None}, "load", {"message": {"role": "assistant", "content": ""}}),
        (
            CHAT,
            {"messages": [], "keep_alive": 0},
            "unload",
            {"message": {"role": "assistant", "content": ""}},
        ),
        (GENERATE, {"prompt": ""}, "load", {"response": ""}),
        (GENERATE, {"prompt": None, "images": [PNG], "suffix": "x"}, "load", {"response": ""}),
        (GENERATE, {"prompt": "", "keep_alive": "0s"}, "unload", {"response": ""}),
        (GENERATE, {"prompt": "", "keep_alive": 5}, "load", {"response": ""}),
    ],
)
def test_loading_and_unloading_are_one_object_without_figures(
    stream: bool, path: str, body: dict[str, Any], action: str, said: dict[str, Any]
) -> None:
    asked = {**BODIES[path], **body, "model": "Alpha", "stream": stream}
    intent = opened(path, asked)
    assert (intent.action, intent.stream) == (action, False)
    done = served(path, asked)
    assert not done.calls, "llama-server would generate from nothing"
    assert replied(done) == {
        "model": "Alpha",
        "created_at": "2023-11-14T22:15:00.250000Z",
        **said,
        "done": True,
        "done_reason": action,
    }


# --- chat -----------------------------------------------------------------------------------------------


def test_a_tool_turn_becomes_a_request_of_llama_server() -> None:
    body = {
        "model": "alpha",
        "messages": [
            {"role": "user", "content": "tide?"},
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "lookup", "arguments": {"q": "tide"}}}],
            },
            {"role": "tool", "tool_name": "lookup", "content": "high"},
        ],
        "tools": [TOOL],
    }
    made = sent(CHAT, body)
    assert made["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_0_0",
                    "type": "function",
                    "function": {"name": "lookup", "arguments": '{"q":"tide"}'},
                }
            ],
        },
        {"role": "tool", "content": "high", "name": "lookup", "tool_call_id": "call_0_0"},
    ]
    assert made["tools"] == [TOOL]
    assert made["chat_template_kwargs"] == {"enable_thinking": True}
    assert not {"continue_final_message", "logprobs", "response_format", "model"} & set(made)


def test_what_chat_does_not_have_is_ignored() -> None:
    made = sent(
        CHAT, {**HELLO, "system": "s", "template": 5, "context": "x", "max_tokens": 3, "temperature": 9}
    )
    assert [message["role"] for message in made["messages"]] == ["user"]
    assert (made["temperature"], "max_tokens" in made) == (0.8, False)


def test_an_answers_beginning_is_gone_on_with_and_not_echoed() -> None:
    made = sent(CHAT, {**HELLO, "messages": [*HELLO["messages"], {"role": "assistant", "content": "so"}]})
    assert (made["continue_final_message"], made["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize(
    ("think", "able", "architecture", "kwargs"),
    [
        (None, True, "qwen3", {"enable_thinking": True}),
        (True, True, "qwen3", {"enable_thinking": True}),
        (False, True, "qwen3", {"enable_thinking": False}),
        ("low", True, "qwen3", {"enable_thinking": True, "reasoning_effort": "low"}),
        ("max", True, "qwen3", {"enable_thinking": True, "reasoning_effort": "max"}),
        ("max", True, "gpt-oss", {"enable_thinking": True, "reasoning_effort": "high"}),
        (False, True, "gpt-oss", None),
        (None, False, "llama", None),
        (False, False, "llama", None),
    ],
)
def test_thinking_is_switched_with_a_real_boolean(
    think: Any, able: bool, architecture: str, kwargs: dict[str, Any] | None
) -> None:
    model = with_abilities("completion", *(["thinking"] if able else []), architecture=architecture)
    made = sent(CHAT, {**HELLO, "think": think}, model=model)
    assert made.get("chat_template_kwargs") == kwargs


def test_a_model_of_which_nothing_is_known_thinks_when_it_is_told() -> None:
    unknown = replace(MODEL, details=None)
    assert "chat_template_kwargs" not in sent(CHAT, HELLO, model=unknown)
    for think in (True, False):
        made = sent(CHAT, {**HELLO, "think": think}, model=unknown)
        assert made["chat_template_kwargs"] == {"enable_thinking": think}


SCHEMA = {"type": "json_schema", "json_schema": {"name": "format", "schema": {"type": "array"}}}


@pytest.mark.parametrize(
    ("form", "response_format", "schema"),
    [
        ("json", {"type": "json_object"}, {"type": "object"}),
        ({"type": "array"}, SCHEMA, {"type": "array"}),
        ("", None, None),
        (None, None, None),
    ],
)  # fmt: skip
def test_a_format_becomes_what_the_endpoint_knows(form: Any, response_format: Any, schema: Any) -> None:
    assert sent(CHAT, {**HELLO, "format": form}).get("response_format") == response_format
    assert sent(GENERATE, {**PROMPT, "format": form, "raw": True}).get("json_schema") == schema


def test_probabilities_are_asked_for_as_each_endpoint_knows_them() -> None:
    chat = sent(CHAT, {**HELLO, "logprobs": True})
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 1)
    assert sent(GENERATE, {**PROMPT, "raw": True, "logprobs": True, "top_logprobs": 3})["n_probs"] == 3
    assert not {"logprobs", "top_logprobs"} & set(sent(CHAT, {**HELLO, "top_logprobs": 3}))


def test_pictures_are_read_off_the_event_loop() -> None:
    done = served(CHAT, {**HELLO, "messages": [{"role": "user", "content": "x", "images": [PNG]}]})
    assert type(done.ops[0]).__name__ == "Work"
    part = json.loads(done.calls[0].body)["messages"][0]["content"][1]
    assert part["image_url"]["url"] == f"data:image/png;base64,{PNG}"


def test_a_picture_that_is_refused_there_is_a_400() -> None:
    webp = "UklGRgAAAABXRUJQVlA4IA=="
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "images": [webp]}]}),
        (GENERATE, {"images": [webp]}),
    ):
        done = served(path, {**BODIES[path], **body})
        assert "WebP" in replied(done, 400)["error"]
        assert not done.calls


# --- truncate -------------------------------------------------------------------------------------------


def counting(per_message: int) -> Callable[[Call], Result]:
    """An engine whose prompts have so many tokens per message."""

    def answer(call: Call) -> Result:
        body = json.loads(call.body)
        if call.path == "/apply-template":
            return Result(200, json.dumps({"prompt": "m" * len(body["messages"])}).encode())
        if call.path == "/tokenize":
            return Result(200, json.dumps({"tokens": [1] * per_message * len(body["content"])}).encode())
        return good_answer(call)

    return answer


LONG = [
    {"role": "system", "content": "s"},
    *({"role": "user", "content": f"{n} " + "x" * 700} for n in range(8)),
    {"role": "system", "content": "again"},
    {"role": "user", "content": "last"},
]


def kept(body: dict[str, Any], tokens: int, context: int | None = 4096) -> tuple[list[str], int]:
    """What of a conversation the engine is given, and how often it was asked to count."""
    done = served(
        CHAT, {**HELLO, **body}, lease=replace(LEASE, context_length=context), answer=counting(tokens)
    )
    (call,) = [call for call in done.calls if call.path == "/v1/chat/completions"]
    contents = [message["content"].split(" ")[0] for message in json.loads(call.body)["messages"]]
    return contents, sum(call.path == "/tokenize" for call in done.calls)


def test_what_fits_for_sure_is_not_counted() -> None:
    assert kept({}, 10**6)[1] == 0
    assert kept({"messages": LONG}, 10**6, context=None)[1] == 0
    assert kept({"messages": LONG, "truncate": False}, 10**6)[1] == 0
    assert kept({"messages": LONG[:1] + LONG[-1:]}, 10**6, context=100)[1] == 0, "nothing may be left out"


def test_a_conversation_that_fits_is_counted_once() -> None:
    contents, counts = kept({"messages": LONG}, 100)
    assert (len(contents), counts) == (len(LONG), 1)


def test_the_oldest_messages_go_first_but_no_system_message_and_never_the_last() -> None:
    contents, counts = kept({"messages": LONG}, 1000)  # four messages have 4,000 of 4,096 tokens
    assert contents == ["s", "7", "again", "last"]
    assert counts <= 5
    assert kept({"messages": LONG}, 2000)[0] == ["s", "again", "last"], (
        "the engine says what is too long then"
    )


def test_a_picture_counts_as_many_tokens_and_leaves_with_its_message() -> None:
    old = {"role": "user", "content": "old", "images": [PNG] * 6}
    new = {"role": "user", "content": "new", "images": [PNG]}
    done = served(CHAT, {**HELLO, "messages": [old, new]}, answer=counting(1))
    messages = json.loads(done.calls[-1].body)["messages"]
    assert [message["content"][0]["text"] for message in messages] == ["new"]
    counted = json.loads(done.calls[0].body)["messages"]
    assert [message["content"] for message in counted] == ["old", "new"], (
        "pictures are not rendered to be counted"
    )


def test_an_engine_that_cannot_count_gets_the_whole_conversation() -> None:
    def answer(call: Call) -> Result:
        return good_answer(call) if "chat" in call.path else Result(500, b"")

    done = served(CHAT, {**HELLO, "messages": LONG}, answer=answer)
    assert len(json.loads(done.calls[-1].body)["messages"]) == len(LONG)


def test_what_would_be_given_to_the_model_can_be_seen() -> None:
    asked = {**HELLO, "_debug_render_only": True}
    assert replied(served(CHAT, asked)) == {
        "model": "alpha",
        "created_at": "2023-11-14T22:15:00.250000Z",
        "message": {"role": "assistant", "content": ""},
        "done": False,
        "_debug_info": {"rendered_template": "<user>hi"},
    }
    image = {**PROMPT, "_debug_render_only": True, "images": [PNG]}
    found = replied(served(GENERATE, image))
    assert (found["response"], found["_debug_info"]) == (
        "",
        {"rendered_template": "<user>hi", "image_count": 1},
    )
    raw = replied(served(GENERATE, {**PROMPT, "raw": True, "_debug_render_only": True}))
    assert raw["_debug_info"] == {"rendered_template": "hi"}
    assert replied(served(CHAT, asked, answer=saying(400, "template error")), 400) == {
        "error": "template error"
    }


# --- generate -------------------------------------------------------------------------------------------


def test_a_prompt_goes_through_the_chat_template() -> None:
    made = sent(GENERATE, {**PROMPT, "system": "be brief", "images": [PNG]})
    system, user = made["messages"]
    assert system == {"role": "system", "content": "be brief"}
    assert [part["type"] for part in user["content"]] == ["text", "image_url"]


def test_a_context_is_put_in_front_of_the_rendered_prompt() -> None:
    done = served(GENERATE, {**PROMPT, "context": [5, 6]})
    assert [call.path for call in done.calls[:3]] == ["/detokenize", "/apply-template", "/completion"]
    assert json.loads(done.calls[0].body) == {"tokens": [5, 6]}
    assert json.loads(done.calls[2].body)["prompt"] == "abc<user>hi"
    last = json.loads(done.calls[3].body)
    assert (done.calls[3].path, last) == ("/tokenize", {"content": "abc<user>hihi ä", "add_special": False})
    assert lines(done)[-1]["context"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{{ .System }}|{{ .Prompt }}", "sys|hi"),
        (
            "{{ if .System }}<s>{{ .System }}</s>{{ end }}[{{ .Prompt }}] {{ .Response }} end",
            "<s>sys</s>[hi] ",
        ),
        ("{{- if .Prompt -}}{{ .Prompt }}{{- end -}}", "hi"),
        ("plain", "plain"),
    ],
)
def test_a_simple_template_is_filled_in(template: str, prompt: str) -> None:
    done = served(GENERATE, {**PROMPT, "system": "sys", "template": template})
    assert (done.calls[0].path, json.loads(done.calls[0].body)["prompt"]) == ("/completion", prompt)


def test_a_part_of_a_template_without_its_value_is_left_out() -> None:
    done = served(
        GENERATE, {**PROMPT, "template": "{{ if .System }}<s>{{ .System }}</s>{{ end }}{{ .Prompt }}"}
    )
    assert json.loads(done.calls[0].body)["prompt"] == "hi"


@pytest.mark.parametrize(
    "template", ["{{ range .Messages }}x{{ end }}", "{{ if .Tools }}x{{ end }}", "{{ .Prompt"]
)
def test_a_template_beyond_us_is_ignored(template: str) -> None:
    assert served(GENERATE, {**PROMPT, "template": template}).calls[0].path == "/v1/chat/completions"


def test_what_a_prompt_says_is_not_taken_for_a_template() -> None:
    done = served(GENERATE, {**PROMPT, "prompt": "{{ .System }}", "template": "{{ .Prompt }}"})
    assert json.loads(done.calls[0].body)["prompt"] == "{{ .System }}"


def test_a_raw_prompt_is_sent_as_it_is() -> None:
    done = served(GENERATE, {**PROMPT, "raw": True})
    assert [call.path for call in done.calls] == ["/completion"]
    assert json.loads(done.calls[0].body)["prompt"] == "hi"


def test_a_raw_prompts_own_first_token_is_not_doubled() -> None:
    def answer(call: Call) -> Result:
        if call.path != "/tokenize":
            return good_answer(call)
        twice = [{"id": 1, "piece": "<s>"}, {"id": 1, "piece": "<s>"}, {"id": 9, "piece": "h"}]
        return Result(200, json.dumps({"tokens": twice}).encode())

    for told, prompt in ((answer, "hi"), (good_answer, "<s>hi")):
        done = served(GENERATE, {**PROMPT, "prompt": "<s>hi", "raw": True}, answer=told)
        assert json.loads(done.calls[-1].body)["prompt"] == prompt


@pytest.mark.parametrize(("prompt", "text"), [("a [img-0] b", "a @@ b"), ("what?", "@@what?")])
def test_pictures_in_a_raw_prompt_stand_at_their_place(prompt: str, text: str) -> None:
    lease = replace(LEASE, engine=EngineFacts(media_marker="@@"))
    made = sent(GENERATE, {**PROMPT, "prompt": prompt, "raw": True, "images": [PNG]}, lease=lease)
    assert made["prompt"] == {"prompt_string": text, "multimodal_data": [PNG]}


def test_pictures_for_an_engine_that_sees_none_are_refused() -> None:
    done = served(GENERATE, {**PROMPT, "raw": True, "images": [PNG]})
    assert "image input is not supported" in replied(done, 400)["error"]


def test_a_suffix_is_filled_in_before() -> None:
    done = served(GENERATE, {**PROMPT, "suffix": "ho", "options": {"stop": ["x"]}})
    (call,) = done.calls
    body = json.loads(call.body)
    assert call.path == "/infill"
    assert (body["input_prefix"], body["input_suffix"], body["prompt"], body["stop"]) == (
        "hi",
        "ho",
        "",
        ["x"],
    )
    assert "".join(line["response"] for line in lines(done)) == "hi ä"


def test_a_vocabulary_that_cannot_fill_in_says_so() -> None:
    refused = served(GENERATE, {**PROMPT, "suffix": "ho"}, answer=saying(501, "Infill is not supported"))
    assert replied(refused, 400) == {
        "error": "registry.ollama.ai/library/alpha:latest does not support insert"
    }


# --- embeddings -----------------------------------------------------------------------------------------

INPUTS = {"model": "beta", "input": ["first", "second"]}


def vectors(*made: list[float], tokens: int = 7) -> Callable[[Call], Result]:
    """An engine that gives these vectors, not in their order."""
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(made)][::-1]
    return lambda call: Result(200, json.dumps({"data": data, "usage": {"prompt_tokens": tokens}}).encode())


def test_vectors_come_in_the_order_of_the_inputs() -> None:
    found = replied(served(EMBED, INPUTS, answer=vectors([1.0, 0.0], [0.0, 1.0])))
    assert found.pop("total_duration") >= found.pop("load_duration") >= 1
    assert found == {"model": "beta", "embeddings": [[1.0, 0.0], [0.0, 1.0]], "prompt_eval_count": 7}
    assert sent(EMBED, INPUTS)["input"] == ["first", "second"]
    assert sent(EMBED, {**INPUTS, "input": "a"})["input"] == ["a"]


def test_the_old_endpoint_gives_one_vector_alone() -> None:
    asked = {"model": "beta", "prompt": "x"}
    assert replied(served(EMBEDDINGS, asked, answer=vectors([1.0, 0.0]))) == {"embedding": [1.0, 0.0]}


@pytest.mark.parametrize("given", ["", [], None])
def test_no_input_loads_the_model(given: Any) -> None:
    intent = opened(EMBED, {"model": "beta", "input": given})
    assert (intent.action, intent.needs) == ("load", "embedding")
    assert replied(served(EMBED, {"model": "beta", "input": given})) == {"model": "beta", "embeddings": []}
    assert replied(served(EMBEDDINGS, {"model": "beta", "prompt": given or ""})) == {"embedding": []}


@pytest.mark.parametrize(
    ("size", "vector"),
    [(1, [1.0]), (2, [0.6, 0.8]), (3, [0.3, 0.4, 0.5]), (9, [0.3, 0.4, 0.5]), (0, [0.3, 0.4, 0.5])],
)
def test_fewer_dimensions_are_cut_and_made_one_long_again(size: int, vector: list[float]) -> None:
    found = replied(served(EMBED, {**INPUTS, "dimensions": size}, answer=vectors([0.3, 0.4, 0.5])))
    assert found["embeddings"] == [pytest.approx(vector)]


def test_a_vector_of_zeros_stays_one() -> None:
    found = replied(served(EMBED, {**INPUTS, "dimensions": 1}, answer=vectors([0.0, 1.0])))
    assert found["embeddings"] == [[0.0]]


def test_large_answers_are_read_off_the_event_loop() -> None:
    done = served(EMBED, INPUTS, answer=vectors([0.123456789] * 20_000))
    assert any(type(op).__name__ == "Work" for op in done.ops)
    assert len(replied(done)["embeddings"][0]) == 20_000


def too_long(limit: int, kind: str = "batch") -> Callable[[Call], Result]:
    """An engine of one token per character and one around each side; it takes ``limit`` tokens."""

    def answer(call: Call) -> Result:
        body = json.loads(call.body)
        if call.path == "/tokenize":
            bare = [ord(char) for char in body["content"]]
            return Result(
                200, json.dumps({"tokens": [1, *bare, 2] if body["add_special"] else bare}).encode()
            )
        sizes = [len(each) + 2 if isinstance(each, str) else len(each) for each in body["input"]]
        if max(sizes) > limit and kind == "batch":
            message = f"input is too large to process. increase it (current batch size: {limit})"
            return saying(500, message)(call)
        if max(sizes) > limit:
            return saying(400, "input is larger than the context", "exceed_context_size_error")(call)
        return vectors(*([float(size), 0.0] for size in sizes))(call)

    return answer


@pytest.mark.parametrize("kind", ["batch", "context"])
def test_an_input_that_is_too_long_is_cut_within_what_stands_around_it(kind: str) -> None:
    lease = replace(LEASE, context_length=10)
    done = served(EMBED, {"model": "beta", "input": ["ab", "x" * 20]}, lease=lease, answer=too_long(10, kind))
    assert replied(done)["embeddings"] == [[4.0, 0.0], [10.0, 0.0]]
    assert json.loads(done.calls[-1].body)["input"] == ["ab", [1, *[120] * 8, 2]]


def test_an_input_that_must_not_be_cut_is_a_400() -> None:
    asked = {"model": "beta", "input": "x" * 20, "truncate": False}
    found = replied(served(EMBED, asked, answer=too_long(10)), 400)
    assert found == {"error": "the input length exceeds the context length"}


def test_an_input_of_which_nothing_can_stay_is_a_400() -> None:
    found = replied(served(EMBED, {"model": "beta", "input": "x" * 20}, answer=too_long(2)), 400)
    assert found == {"error": "input after truncation exceeds maximum context length"}


def test_any_other_refusal_is_told_for_the_whole_batch() -> None:
    assert replied(served(EMBED, INPUTS, answer=saying(500, "Compute error.")), 500) == {
        "error": "Compute error."
    }


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"data": [1]}', b"no"])
def test_an_answer_that_is_none_is_said_to_be(body: bytes) -> None:
    replied(served(EMBED, INPUTS, answer=lambda call: Result(200, body)), 502)


# --- what is answered without a model -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/api/status", 200, {"cloud": {"disabled": True, "source": "config"}}),
        ("GET", "/api/experimental/model-recommendations", 200, {"recommendations": []}),
        (
            "POST",
            "/api/experimental/web_search",
            403,
            {"error": "ollama cloud is disabled: web search is unavailable"},
        ),
        (
            "POST",
            "/api/experimental/web_fetch",
            403,
            {"error": "ollama cloud is disabled: web search is unavailable"},
        ),
        ("POST", "/api/me", 401, {"error": "unauthorized", "signin_url": ""}),
        ("POST", "/api/signout", 401, {"error": "unauthorized", "signin_url": ""}),
        ("DELETE", "/api/user/keys/{key}", 401, {"error": "unauthorized", "signin_url": ""}),
    ],
)
def test_there_is_no_cloud_behind_it(method: str, path: str, status: int, body: dict[str, Any]) -> None:
    route = ROUTES[method, path]
    reply = DIALECT.open(request_for(route, {}, {"key": "k"} if "{" in path else {}))
    assert isinstance(reply, Reply)
    assert reply_of(reply, status) == body
    if status == 401:
        assert route.surfaces == ("proxy", "instance"), "management has /api/me of its own"
