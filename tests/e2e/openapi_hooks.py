"""Loaded by schemathesis in its own process (``SCHEMATHESIS_HOOKS``), for ``test_openapi_fuzz.py``.

Random paths and model names find nothing, so every other request gets a real id, and some get a real model or a
body that an inference API knows with one field spoilt. Every answer is written down as one line of JSON.

``LLAMAMAN_FUZZ`` holds a JSON object: ``url`` and ``key`` of the manager, ``answers`` (the file of lines),
``keep`` (ids that must survive), ``chat`` (model to ask), ``path`` (of the model to launch).
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import requests
import schemathesis

PLAN = json.loads(os.environ["LLAMAMAN_FUZZ"])
KEY = {"Authorization": f"Bearer {PLAN['key']}"} if PLAN["key"] else {}
LISTED_S = 0.5
#: Where ids are read from; their rows hold them under the name that the path's value has.
LISTS = frozenset({"/api/instances", "/api/api-keys", "/api/users", "/api/sessions", "/api/requests"})

#: Fields of the inference APIs and what is put in their place.
FIELDS = (
    *(
        "model",
        "messages",
        "prompt",
        "input",
        "max_tokens",
        "max_completion_tokens",
        "n_predict",
        "n",
        "best_of",
    ),
    *(
        "temperature",
        "top_p",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "suffix",
        "echo",
    ),
    *("logprobs", "top_logprobs", "logit_bias", "response_format", "frequency_penalty", "user", "dimensions"),
    *("encoding_format", "cache_prompt", "id_slot", "grammar", "json_schema", "reasoning_format"),
)
SPOILT: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    10**400,
    1e308,
    "",
    "x",
    "\u0000\u2028\U0001f600",
    [],
    [None],
    [[]],
    {},
    {"role": "user"},
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
    [{"role": "tool", "tool_calls": [{}]}],
)
#: Numbers of a launch that would take a small machine's memory or processors; the schema's bounds are far wider.
BOUNDS = {"ctx_size": 2048, "parallel": 2, "threads": 1, "cache_ram": 16, "spec_draft_n_max": 4}

lock = threading.Lock()
turns = itertools.count()
lists: dict[str, tuple[float, list[str]]] = {}


def turn() -> int:
    with lock:
        return next(turns)


def listed(path: str, name: str) -> list[str]:
    """Ids that exist now, those to keep left out."""
    at, found = lists.get(path, (0.0, []))
    if time.monotonic() - at > LISTED_S:
        answer = requests.get(PLAN["url"] + path, headers=KEY, timeout=20)
        rows = answer.json() if answer.status_code == 200 else []
        found = [row[name] for row in rows if isinstance(row, dict) and row[name] not in PLAN["keep"]]
        lists[path] = time.monotonic(), found
    return found


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    number = turn()
    for name in case.path_parameters or ():
        value = real_value(case.path, name, number) if number % 2 and PLAN["key"] else None
        if case.path.endswith("/restart") and number % 16 != 1:
            value = str(uuid.uuid4())  # each real one is an engine that starts
        if value is None and case.path.startswith("/upstream/") and name == "model":
            value = f"no-{case.path_parameters[name]}"  # else one letter finds a model that does not run: 503
        if value is not None:
            case.path_parameters[name] = value
    if case.path == "/api/why" and number % 2:
        case.query["target"] = PLAN["chat"]
    if PLAN["key"] and number % 8:
        for header in ("X-Api-Key", "Cookie", "X-CSRF-Token"):  # a second credential beside ours is a 400
            case.headers.pop(header, None)
        case.cookies.clear()
    if not isinstance(case.body, dict):
        return
    if case.path.startswith("/v1/") and case.method == "POST":
        case.body.clear()
        case.body.update(inference_body(number))
    elif case.path == "/api/instances" and case.method == "POST" and number % 16 == 0:
        launch_body(case.body, number)


def real_value(path: str, name: str, number: int) -> str | None:
    if name == "model_path":
        return str(PLAN["path"]).lstrip("/")
    base = path.partition("/{")[0]
    if base.startswith(("/v1/", "/upstream")):
        return str(PLAN["chat"])
    known = listed(base, name) if base in LISTS else []
    return known[number % len(known)] if known else None


def inference_body(number: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": PLAN["chat"],
        "messages": [{"role": "user", "content": "hi"}],
        "prompt": "hi",
        "input": "hi",
        "max_tokens": 2,
    }
    spoilt = SPOILT[number // 7 % len(SPOILT)]
    body[FIELDS[number % len(FIELDS)]] = spoilt
    return body


def launch_body(body: dict[str, Any], number: int) -> None:
    """A real model with a few of the generated fields: with all of them, one is always wrong."""
    names = sorted(set(body) - {"model", "model_path", "engine"})
    few = {names[(number + step) % len(names)] for step in range(3)} if names else set()
    for name in set(body) - few:
        del body[name]
    for name, most in BOUNDS.items():
        value = body.get(name)
        if isinstance(value, int) and value > most:
            body[name] = most
    body["model_path"] = PLAN["path"]


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    told = response.content[:300].decode("utf-8", "replace")
    note(case, response.status_code, told, response.elapsed)


@schemathesis.hook
def after_network_error(context: Any, case: Any, request: Any) -> None:
    note(case, 0, "the connection broke, or no answer came in time")


def note(case: Any, status: int, told: str, seconds: float | None = None) -> None:
    line = {
        "method": case.method,
        "path": case.path,
        "level": case.operation.definition.raw.get("x-llamaman-level"),
        "status": status,
        "seconds": seconds,
        "answer": told if status == 0 or status >= 500 else "",
    }
    with lock, Path(PLAN["answers"]).open("a") as file:
        file.write(json.dumps(line) + "\n")
