"""Who may do what, written down a second time: the list that ``test_access_matrix`` walks over a running manager.

Read by reviewers as a specification and by the test as data. Nothing here is taken from the program: a route whose
level changes by accident, a route that is new, and a route that is gone all make the test fail.

What "open" means: the answer is not 401 or 403. A caller who is let in may still hear 400, 404 or 409, and the bodies
here are made so that he does wherever the call would change something.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["public", "inference", "view", "manage", "admin", "own"]
Surface = Literal["manage", "proxy", "instance"]

MANAGE: frozenset[Surface] = frozenset({"manage"})
PROXY: frozenset[Surface] = frozenset({"proxy"})
INSTANCE: frozenset[Surface] = frozenset({"instance"})
BOTH: frozenset[Surface] = frozenset({"manage", "proxy"})
DOORS: frozenset[Surface] = frozenset({"proxy", "instance"})
ALL: frozenset[Surface] = frozenset({"manage", "proxy", "instance"})

#: Whom each level lets in while ``require_auth`` is on. "own" is what a user does with his own account.
OPEN_TO: Mapping[Level, frozenset[str]] = {
    "public": frozenset(
        {"stranger", "key view", "key inference", "key manage", "key admin", "key of another model"}
        | {"viewer", "manager", "admin", "admin without CSRF", "admin unconfirmed", "local"}
    ),
    "inference": frozenset(
        {"key inference", "key manage", "key admin", "key of another model"}
        | {"manager", "admin", "admin without CSRF", "admin unconfirmed", "local"}
    ),
    "view": frozenset(
        {"key view", "key manage", "key admin"}
        | {"viewer", "manager", "admin", "admin without CSRF", "admin unconfirmed", "local"}
    ),
    "manage": frozenset(
        {"key manage", "key admin", "manager", "admin", "admin without CSRF", "admin unconfirmed", "local"}
    ),
    "admin": frozenset({"key admin", "admin", "admin without CSRF", "admin unconfirmed", "local"}),
    "own": frozenset({"viewer", "manager", "admin", "admin without CSRF", "admin unconfirmed"}),
}

#: Whom ``require_auth`` off lets in further, and only where the level is "inference": everybody whose credential is
#: not a wrong one. A key of another model stays bound to its list.
OPENED_BY_REQUIRE_AUTH_OFF = frozenset({"stranger", "key view", "viewer"})

#: Credentials that count no more; they are refused also where a stranger is welcome, so that their owner hears of it.
BAD = frozenset({"key expired", "key revoked"})


@dataclass(frozen=True, slots=True)
class Row:
    """One route.

    :ivar body: what a state-changing call sends; it must not change anything for those who are let in.
    :ivar values: for the placeholders of the pattern; ``nothing`` where it does not say.
    :ivar model: the call is about the model of the test, so that a key of another model is refused.
    :ivar sudo: a session needs a confirmed password.
    :ivar ends_session: a session that is let in is gone afterwards.
    :ivar fixed: answered before anybody asks who is calling, so that a bad credential makes no difference.
    :ivar told: part of a refusal that everybody gets who is let in.
    :ivar form: a page whose POST carries its own token; tested by itself.
    """

    method: str
    path: str
    level: Level
    surfaces: frozenset[Surface] = MANAGE
    body: object = None
    values: Mapping[str, str] = field(default_factory=dict)
    model: bool = False
    sudo: bool = False
    ends_session: bool = False
    fixed: bool = False
    told: str = ""
    form: bool = False


#: Refused by every view that checks its fields.
WRONG: Mapping[str, Any] = {"no_such_field": 1}
_CHAT = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
_TEXT = {
    "model": "tiny",
    "max_tokens": 1,
    "n_predict": 1,
    "prompt": "hello",
    "content": "hello",
    "input": "hello",
}
_RESPONSE = {"model": "tiny", "max_output_tokens": 1, "input": "hello"}
_BRIEF = {**_CHAT, "prompt": "hello", "options": {"num_predict": 1}}
_INFILL = {"model": "tiny", "n_predict": 1, "input_prefix": "a", "input_suffix": "b"}
_TOKENS = {"model": "tiny", "tokens": [1]}
_RANKED = {"model": "tiny", "query": "a", "documents": ["b"]}


def _inference(path: str, body: object, surfaces: frozenset[Surface] = ALL) -> Row:
    return Row("POST", path, "inference", surfaces, body, model=True)


def _upstream(method: str, path: str, level: Level = "inference", body: object = None) -> Row:
    values = {"model": "tiny", "id_slot": "0"}
    return Row(method, "/upstream/{model}" + path, level, BOTH, body, values, model=True)


#: llama-server's own, bare at every door.
_OF_THE_ENGINE: Mapping[str, object] = {
    "/completion": _TEXT,
    "/completions": _TEXT,
    "/chat/completions": _CHAT,
    "/responses": _RESPONSE,
    "/infill": _INFILL,
    "/embedding": _TEXT,
    "/embeddings": _TEXT,
    "/tokenize": _TEXT,
    "/detokenize": _TOKENS,
    "/apply-template": _CHAT,
    "/chat/completions/input_tokens": _CHAT,
    "/responses/input_tokens": _RESPONSE,
}
#: Below ``/upstream`` alone; elsewhere dialects serve the same paths.
_IN_V1: Mapping[str, object] = {
    "/v1/completions": _TEXT,
    "/v1/chat/completions": _CHAT,
    "/v1/responses": _RESPONSE,
    "/v1/messages": _CHAT,
    "/v1/messages/count_tokens": _CHAT,
    "/v1/embeddings": _TEXT,
    "/v1/chat/completions/input_tokens": _CHAT,
    "/v1/responses/input_tokens": _RESPONSE,
    **dict.fromkeys(("/rerank", "/reranking", "/v1/rerank", "/v1/reranking"), _RANKED),
}
_AUDIO = ("/audio/transcriptions", "/v1/audio/transcriptions")
_PAGE = (
    *("/", "/index.html", "/loading.html", "/bundle.js", "/bundle.css", "/favicon.ico", "/favicon.svg"),
    *("/favicon-dark.ico", "/favicon-dark.svg", "/logo.svg", "/manifest.webmanifest", "/build.json"),
    *("/version.json", "/_app/{file...}"),
)


ROWS: tuple[Row, ...] = (
    # --- everybody
    Row("GET", "/health", "public", ALL, fixed=True),
    Row("GET", "/api/version", "public", BOTH, fixed=True),
    Row("GET", "/", "public", PROXY, fixed=True),
    Row("GET", "/login", "public", form=True),
    Row("POST", "/login", "public", form=True),
    Row("GET", "/logout", "public", form=True),
    Row("POST", "/logout", "public", form=True),
    Row("GET", "/setup", "public", form=True),
    Row("POST", "/setup", "public", form=True),
    Row("GET", "/setup/{code}", "public", form=True),
    Row("POST", "/setup/{code}", "public", form=True),
    Row("GET", "/static/llamaman.css", "public"),
    Row("GET", "/static/llamaman.svg", "public"),
    # --- asking models
    _inference("/v1/chat/completions", _CHAT),
    _inference("/v1/messages", _CHAT),
    _inference("/v1/messages/count_tokens", _CHAT),
    _inference("/v1/completions", _TEXT),
    _inference("/v1/embeddings", _TEXT),
    Row("GET", "/v1/models", "inference", ALL),
    _inference("/v1/responses", _RESPONSE),
    _inference("/v1/chat/completions/input_tokens", _CHAT),
    _inference("/v1/responses/input_tokens", _RESPONSE),
    *(_inference(path, _RANKED) for path in ("/v1/rerank", "/v1/reranking", "/rerank", "/reranking")),
    Row(
        "POST", "/v1/audio/transcriptions", "inference", ALL, _TEXT
    ),  # no form, which is seen before the model
    Row("GET", "/v1/models/{model...}", "inference", ALL),
    *(_inference(path, body) for path, body in _OF_THE_ENGINE.items()),
    Row("POST", "/audio/transcriptions", "inference", INSTANCE, _TEXT),
    Row("GET", "/props", "inference", INSTANCE, model=True),
    Row("GET", "/models", "inference", INSTANCE, model=True),
    *(_upstream("POST", path, body=body) for path, body in (_OF_THE_ENGINE | _IN_V1).items()),
    *(
        Row("POST", f"/upstream/{{model}}{path}", "inference", BOTH, _TEXT, {"model": "tiny"})
        for path in _AUDIO
    ),
    *(_upstream("GET", path) for path in ("/props", "/models", "/v1/models", "/health", "/v1/health")),
    # --- the engine's own page, while it is switched on
    *(Row("GET", path, "public", INSTANCE, values={"file": "a.js"}) for path in _PAGE),
    # --- what shows other users' parameters, and what changes what they share
    Row("GET", "/slots", "view", INSTANCE),
    Row("GET", "/metrics", "view", INSTANCE),
    Row("GET", "/lora-adapters", "view", INSTANCE),
    Row("POST", "/lora-adapters", "manage", INSTANCE, "not a list"),
    Row("POST", "/props", "manage", INSTANCE, "not an object"),
    Row("POST", "/slots/{id_slot}", "manage", INSTANCE, "not an object", {"id_slot": "0"}),
    *(_upstream("GET", path, "view") for path in ("/slots", "/metrics", "/lora-adapters")),
    *(_upstream("POST", path, "manage", "not an object") for path in ("/lora-adapters", "/props")),
    _upstream("POST", "/slots/{id_slot}", "manage", "not an object"),
    # --- reading management
    Row("GET", "/", "view"),
    Row("GET", "/api/instances", "view"),
    Row("GET", "/api/instances/{id}", "view"),
    Row("GET", "/api/instances/container-stats", "view"),
    Row("GET", "/api/next-port", "view"),
    Row("GET", "/api/models", "view"),
    Row("GET", "/api/images", "view"),
    Row("GET", "/api/images/pull-status", "view"),
    Row("GET", "/api/presets", "view"),
    Row("GET", "/api/presets/{model_path...}", "view"),
    Row("GET", "/api/events", "view"),
    Row("GET", "/api/events/stream", "view"),
    Row("GET", "/api/why", "view"),
    Row("GET", "/api/system-info", "view"),
    Row("GET", "/api/runtimes", "view"),
    Row("GET", "/api/llamaman/version", "view"),
    Row("GET", "/api/openapi.json", "view"),
    Row("GET", "/api/me", "view"),
    Row("GET", "/metrics", "view"),
    # --- logs and requests in flight may hold prompts and paths
    Row("GET", "/api/instances/{id}/logs", "manage"),
    Row("GET", "/api/instances/{id}/logs/stream", "manage"),
    Row("GET", "/api/requests", "manage"),
    Row("DELETE", "/api/requests/{id}", "manage"),
    # --- managing
    Row("POST", "/api/instances", "manage", body=WRONG),
    Row("DELETE", "/api/instances/{id}", "manage"),
    Row("DELETE", "/api/instances/{id}/remove", "manage"),
    Row("POST", "/api/instances/{id}/restart", "manage"),
    Row("POST", "/api/models/rescan", "manage"),
    Row("POST", "/api/images/pull", "manage", body=WRONG),
    Row("PUT", "/api/presets/{model_path...}", "manage", body=WRONG),
    Row("PATCH", "/api/presets/{model_path...}", "manage", body=WRONG),
    Row("DELETE", "/api/presets/{model_path...}", "manage"),
    Row("GET", "/api/routes", "manage"),
    Row("GET", "/api/settings", "manage"),
    Row("GET", "/api/settings/describe", "manage"),
    # --- administration
    Row("POST", "/api/settings", "admin", body=WRONG),
    Row("DELETE", "/api/images", "admin", body=WRONG),
    Row("GET", "/api/plugins", "admin"),
    Row("GET", "/api/api-keys", "admin"),
    Row("POST", "/api/api-keys", "admin", body=WRONG),
    Row("DELETE", "/api/api-keys/{id}", "admin"),
    Row("GET", "/api/users", "admin"),
    Row("POST", "/api/users", "admin", body=WRONG, sudo=True),
    Row("PATCH", "/api/users/{name}", "admin", body=WRONG, sudo=True),
    Row("DELETE", "/api/users/{name}", "admin", sudo=True),
    Row("GET", "/api/sessions", "admin"),
    Row("DELETE", "/api/sessions/{id}", "admin"),
    Row("GET", "/api/setup-link", "admin"),
    Row("GET", "/api/audit", "admin"),
    Row("GET", "/api/doctor", "admin"),
    # --- Ollama's; what is about ollama.com says to everybody that there is none
    _inference("/api/chat", _BRIEF),
    _inference("/api/generate", _BRIEF),
    *(_inference(path, _TEXT) for path in ("/api/embed", "/api/embeddings")),
    Row("GET", "/api/tags", "inference", ALL),
    Row("GET", "/api/ps", "inference", ALL),
    Row("POST", "/api/show", "inference", ALL, {"model": "tiny"}),
    Row("GET", "/api/status", "inference", ALL),
    Row("GET", "/api/experimental/model-recommendations", "inference", ALL),
    *(
        Row("POST", f"/api/experimental/{path}", "inference", ALL, {}, told="web search is unavailable")
        for path in ("web_search", "web_fetch")
    ),
    *(Row("POST", path, "inference", DOORS, {}, told="signin_url") for path in ("/api/me", "/api/signout")),
    Row("DELETE", "/api/user/keys/{key}", "inference", DOORS, told="signin_url"),
    # --- Ollama's for models: nothing is done there yet, and everybody who may use a model hears so
    *(
        Row("POST", f"/api/{action}", "inference", DOORS, {}, told="through Ollama's API")
        for action in ("pull", "push", "create", "copy", "blobs/{digest}")
    ),
    Row("DELETE", "/api/delete", "inference", DOORS, told="through Ollama's API"),
    Row("GET", "/api/blobs/{digest}", "inference", DOORS, told="through Ollama's API"),
    # --- a user's own account
    Row("GET", "/api/me/sessions", "own"),
    Row("DELETE", "/api/me/sessions", "own", ends_session=True),
    Row("DELETE", "/api/me/sessions/{id}", "own"),
    Row("POST", "/api/me/password", "own", body=WRONG),
    Row("POST", "/api/me/sudo", "own", body=WRONG),
)

#: Routes of parts that are not there yet: (method, path, level). One that arrives moves up, or the test fails.
LATER: tuple[tuple[str, str, Level], ...] = (
    ("POST", "/api/pull", "manage"),
    ("DELETE", "/api/delete", "manage"),
    ("POST", "/api/copy", "manage"),
    ("POST", "/api/create", "manage"),
    ("POST", "/api/push", "manage"),
    ("HEAD", "/api/blobs/{digest}", "manage"),
    ("POST", "/api/blobs/{digest}", "manage"),
    ("GET", "/api/gpu-info", "view"),
    ("GET", "/api/disk-space", "view"),
    ("GET", "/api/downloads", "view"),
    ("POST", "/api/downloads", "manage"),
    ("GET", "/api/downloads/{id}/logs", "manage"),
    ("POST", "/api/models/delete", "manage"),
    ("GET", "/api/tokens", "admin"),
    ("POST", "/api/backup", "admin"),
    ("POST", "/api/restore", "admin"),
    ("GET", "/api/request-log/stats", "view"),
    ("GET", "/api/request-log/conversations", "admin"),
    ("GET", "/api/nodes", "view"),
    ("POST", "/api/cluster/join", "admin"),
)
