"""The questions a request must answer before it may have an engine. Pure but for reading the body."""

from __future__ import annotations

from llamaman.core.auth import allows_model
from llamaman.core.instance import Instance
from llamaman.core.library_contract import Library
from llamaman.core.model_names import find_model, key_of, known_names
from llamaman.errors import (
    Forbidden,
    InvalidRequest,
    LlamaManError,
    ModelNotFound,
    ModelUnavailable,
    NotFound,
    PayloadTooLarge,
)
from llamaman.gateway.body import dump
from llamaman.gateway.dialect import JSON_HEADERS, Intent, Reply
from llamaman.gateway.limits import BodyTooLarge, BodyTooSlow, BufferFull
from llamaman.gateway.request import Request
from llamaman.records import Identity, ModelView, Reject


def resolve(library: Library, intent: Intent, own: Instance | None, identity: Identity) -> ModelView:
    """The model that a request means: by name, or the one of the instance port it came through.

    :raises ModelNotFound: the candidates are only those that the caller may use.
    :raises Forbidden: it is a model that the caller may not use, by its whole name.
    :raises WrongPort: another model's name on an instance port.
    """
    if own is None:
        if not intent.model:
            raise InvalidRequest("model is required", field="model")
        if identity.models is not None:
            return _resolve_narrowed(library, intent.model, identity)
        return library.find(intent.model)
    model = library.by_path(own.model_path)
    if intent.model and not _fits(intent.model, model):
        raise WrongPort(f"model '{intent.model}' is not loaded on this port", field="model")
    return model


def _resolve_narrowed(library: Library, name: str, identity: Identity) -> ModelView:
    """For a key that may use some models only, and learns the names of no others: beginnings mean its own."""
    try:
        found = library.find(name)
    except ModelNotFound:
        pass
    else:
        if allows_model(identity, found.name):
            return found
        if key_of(name) in known_names((found,)):
            raise Forbidden(f"this key may not use model '{name}'", field="model")
    return find_model(name, allowed(library.models(), identity))


class WrongPort(NotFound):
    """A model name that is not the one of this instance port; the answer's shape is the specification's."""


def plain_error(error: LlamaManError) -> Reply:
    return Reply(error.status, JSON_HEADERS, dump({"error": error.message}))


async def read_body(request: Request, limit: int) -> bytes:
    try:
        return await request.read_body(limit)
    except BodyTooLarge:
        raise PayloadTooLarge(f"the request body is over the limit of {_size(limit)}") from None
    except BodyTooSlow:
        raise InvalidRequest("the request body arrived too slowly") from None
    except BufferFull:
        raise ModelUnavailable("too many large requests at once; try again", retry_after=1) from None


def _size(limit: int) -> str:
    return f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"


def allowed(models: tuple[ModelView, ...], identity: Identity) -> tuple[ModelView, ...]:
    return tuple(model for model in models if allows_model(identity, model.name))


def _fits(name: str, model: ModelView) -> bool:
    """Whether a client's name means the model of an instance port: exact, an alias, or a prefix of its stem."""
    wanted = key_of(name)
    return bool(wanted) and (wanted in known_names((model,)) or model.path.stem.lower().startswith(wanted))


def check_role(intent: Intent, model: ModelView, embedding: bool) -> None:
    if intent.needs == "embedding" and not (embedding or model.embedding):
        raise InvalidRequest(
            f"model '{model.name}' is not an embedding model; set Embedding Model in its preset",
            field="model",
        )
    if intent.needs in ("chat", "completion") and embedding:
        raise InvalidRequest(
            f"model '{model.name}' runs as an embedding model and cannot generate text", field="model"
        )


def raise_reject(outcome: object) -> None:
    if isinstance(outcome, Reject):
        raise Rejected(outcome)


class Rejected(LlamaManError):
    """A plugin's refusal, with its own status."""

    def __init__(self, reject: Reject) -> None:
        super().__init__(reject.message, retry_after=reject.retry_after)
        self.status = reject.status
        self.code = reject.code
