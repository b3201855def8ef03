"""The Ollama dialect: which endpoint is which, and what is answered without an engine."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from llamaman import (
    InferenceRoute,
    Intent,
    InvalidField,
    Lease,
    LlamaManError,
    ModelNotFound,
    ModelView,
    NotFound,
    Phase,
    Reply,
    Request,
    Serving,
)
from llamaman_api_ollama import asked as reading
from llamaman_api_ollama import chat, describe, embed, errors, fixed, generate, names, stream
from llamaman_api_ollama.answer import json_reply
from llamaman_api_ollama.asked import Asking, Chat, Embed, Generate
from llamaman_api_ollama.fields import Fields

CHAT, GENERATE = "/api/chat", "/api/generate"
EMBED, EMBEDDINGS = "/api/embed", "/api/embeddings"
TAGS, SHOW, PS = "/api/tags", "/api/show", "/api/ps"


class Ollama:
    """See :class:`llamaman.Dialect`."""

    name = "ollama"
    routes = (
        InferenceRoute("POST", CHAT),
        InferenceRoute("POST", GENERATE),
        InferenceRoute("POST", EMBED),
        InferenceRoute("POST", EMBEDDINGS),
        InferenceRoute("GET", TAGS, body="none"),
        InferenceRoute("POST", SHOW, instances=True),
        InferenceRoute("GET", PS, body="none", instances=True),
        *fixed.ROUTES,
    )

    def open(self, request: Request) -> Intent | Reply:
        """Answer what needs no engine at once; everything else is inference."""
        path = request.route.pattern
        if answer := fixed.ANSWERS.get((request.route.method, path)):
            return answer
        if path in (TAGS, PS, SHOW):
            return _described(path, request)
        fields = Fields(request.json)
        if path == CHAT:
            return _open_chat(fields, request)
        if path == GENERATE:
            return _open_generate(fields, request)
        return _open_embed(fields, request)

    def check(self, intent: Intent, model: ModelView) -> None:
        """Refuse what the model's files say it cannot do."""
        assert isinstance(intent, Asking)
        asked, name = intent.asked, intent.name
        if intent.action == "unload" or asked is None or isinstance(asked, Embed):
            return
        errors.require(model, name, what=asked.kind)
        if asked.common.think:
            errors.require_thinking(model, name)
        if intent.action == "load":
            return
        if isinstance(asked, Chat) and asked.tools:
            errors.require_feature(model, name, "tools")
        if isinstance(asked, Generate) and asked.suffix and not asked.raw:
            errors.require_feature(model, name, "insert")

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        """Ask the engine in its own words and tell the client in Ollama's."""
        assert isinstance(intent, Asking)
        request, asked = intent.request, intent.asked
        assert request is not None
        if intent.action != "infer":
            yield json_reply(_done(asked, intent, model, lease))
        elif isinstance(asked, Chat):
            yield from chat.serve(intent, asked, model, lease, request)
        elif isinstance(asked, Generate):
            yield from generate.serve(intent, asked, model, lease, request)
        elif isinstance(asked, Embed):
            yield from embed.serve(intent, asked, model, lease, request)

    def error(self, error: LlamaManError, *, started: bool) -> Reply | bytes:
        """Ollama's error object; inside a stream as its last line."""
        return errors.line(error) if started else errors.reply(error)

    def waiting(self, phase: Phase, seconds: float) -> bytes | None:
        """Nothing: clients fail on a line that is not an object."""
        return None


# --- reading ----------------------------------------------------------------------------------------------


def _open_chat(fields: Fields, request: Request) -> Intent:
    named = _named(fields, request)
    asked = reading.chat(fields)
    return _text_intent(named, asked, request, is_empty=not asked.messages)


def _open_generate(fields: Fields, request: Request) -> Intent:
    named = _named(fields, request, empty=NotFound("model '' not found", field="model"))
    asked = reading.generate(fields)
    return _text_intent(named, asked, request, is_empty=not asked.prompt)


def _open_embed(fields: Fields, request: Request) -> Intent:
    modern = request.route.pattern == EMBED
    empty = NotFound("model '' not found", field="model") if modern else None
    named = _named(fields, request, empty=empty, hint=True)
    asked = reading.embed(fields) if modern else reading.embeddings(fields)
    return Asking(
        model=named.wanted,
        action="infer" if asked.texts else "load",
        needs="embedding",
        tasks=max(1, len(asked.texts)),
        launcher="ollama",
        keep_alive=asked.keep_alive,
        context=asked.options.context,
        request=request,
        asked=asked,
        name=named.typed,
    )


def _text_intent(named: _Named, asked: Chat | Generate, request: Request, *, is_empty: bool) -> Intent:
    common = asked.common
    action: Literal["infer", "load", "unload"] = "infer"
    if is_empty:
        action = "unload" if common.keep_alive == 0 else "load"
    return Asking(
        model=named.wanted,
        action=action,
        needs="any" if action == "unload" else "chat",
        stream=common.stream and action == "infer" and not common.debug,
        launcher="ollama",
        keep_alive=common.keep_alive,
        context=common.options.context,
        request=request,
        asked=asked,
        name=named.typed,
    )


class _Named(NamedTuple):
    """A model's name: as it was typed, and as the kernel is asked for it (None: the one of an instance port)."""

    typed: str
    wanted: str | None


def _named(
    fields: Fields, request: Request, *, empty: LlamaManError | None = None, hint: bool = False
) -> _Named:
    """The model's name.

    :param empty: what is raised when there is none; None for Ollama's usual refusal.
    :param hint: answer an unknown name as the embedding endpoints do.
    """
    typed = reading.name_of(fields)
    if not typed.strip():
        if request.own_model is None:
            raise empty or InvalidField("model", "model is required")
        return _Named("", None)
    if request.own_model is not None:
        return _Named(typed, names.local(typed))
    found = names.resolve(typed, request.models)
    # A caller who may not use every model may be refused one that is there, which the kernel knows.
    if found is None and hint and request.identity.models is None:
        raise NotFound(f'model "{typed}" not found, try pulling it first', field="model")
    return _Named(typed, found.name if found else typed)


def _done(asked: Any, intent: Asking, model: ModelView, lease: Lease) -> dict[str, Any]:
    """The answer to a request that loads or unloads."""
    name = intent.name or model.name
    if isinstance(asked, Embed):
        return embed.empty(asked, name)
    return {**stream.answer(asked.kind, name, lease.granted, done=True), "done_reason": intent.action}


# --- descriptions -----------------------------------------------------------------------------------------


def _described(path: str, request: Request) -> Reply:
    own = request.own_model
    models = [own] if own else [model for model in request.models if model.runnable]
    if path == TAGS:
        return json_reply(describe.tags(models))
    if path == PS:
        paths = {model.path for model in models}
        running = [instance for instance in request.instances if instance.model_path in paths]
        return json_reply(describe.ps(models, running, request.received))
    fields = Fields(request.json)
    model = _shown(fields, request)
    return json_reply(
        describe.show(
            model,
            verbose=fields.flag("verbose", False),
            user_agent=request.user_agent,
            running=[each for each in request.instances if each.model_path == model.path],
            preset=request.presets.get(model.path),
        )
    )


def _shown(fields: Fields, request: Request) -> ModelView:
    name = reading.name_of(fields)
    own = request.own_model
    if not name.strip():
        if own is None:
            raise InvalidField("model", "model is required")
        return own
    found = names.resolve(name, [own] if own else request.models)
    if found is None or not found.runnable:
        raise ModelNotFound(names.parse(names.local(name)).display)
    return found
