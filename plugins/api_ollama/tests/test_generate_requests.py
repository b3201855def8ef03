"""What the engine is asked for a prompt: through the chat template, raw, filled in, or continued."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from ollama_script import (
    PIXEL,
    PROMPT,
    lines,
    replied,
    saying,
    sent,
    served,
)

from llamaman.errors import InvalidField
from llamaman.gateway.dialect import Call, Result
from llamaman.records import EngineFacts
from llamaman.testing.dialect_script import LEASE, good_answer
from llamaman_api_ollama.dialect import GENERATE


def test_a_prompt_goes_through_the_chat_template() -> None:
    made = sent(GENERATE, {**PROMPT, "system": "be brief", "images": [PIXEL]})
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


def test_a_template_does_not_multiply_a_prompt_without_end() -> None:
    asked = {**PROMPT, "prompt": "x" * 100_000, "template": "{{ .Prompt }}" * 4000}
    with pytest.raises(InvalidField, match="more than 64 MiB"):
        served(GENERATE, asked)


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
    made = sent(GENERATE, {**PROMPT, "prompt": prompt, "raw": True, "images": [PIXEL]}, lease=lease)
    assert made["prompt"] == {"prompt_string": text, "multimodal_data": [PIXEL]}


def test_each_picture_has_one_place_and_a_place_without_a_picture_is_text() -> None:
    lease = replace(LEASE, engine=EngineFacts(media_marker="@@"))
    asked = {**PROMPT, "prompt": "[img-1][img-0][img-0][img-2][img-01]", "raw": True, "images": [PIXEL] * 2}
    assert sent(GENERATE, asked, lease=lease)["prompt"]["prompt_string"] == "@@@@[img-0][img-2][img-01]"


def test_thousands_of_pictures_cost_one_look_at_the_prompt() -> None:
    """Each took a look of its own, half a minute for thousands of them, in which nobody was served."""
    lease = replace(LEASE, engine=EngineFacts(media_marker="@@"))
    asked = {**PROMPT, "prompt": "x" * 4_000_000, "raw": True, "images": [PIXEL] * 6000}
    began = time.process_time()
    sent(GENERATE, asked, lease=lease)
    assert time.process_time() - began < 5


def test_pictures_for_an_engine_that_sees_none_are_refused() -> None:
    done = served(GENERATE, {**PROMPT, "raw": True, "images": [PIXEL]})
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
    said = "Infill is not supported by this model: prefix token is missing. "
    refused = served(GENERATE, {**PROMPT, "suffix": "ho"}, answer=saying(400, said))
    assert replied(refused, 400) == {
        "error": "registry.ollama.ai/library/alpha:latest does not support insert"
    }
