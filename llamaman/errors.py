"""One class per cause. Every error says what happened, to what, and what the user can do about it.

``message`` may be shown to any caller that was allowed to make the request. ``detail`` (log lines, paths)
is shown only to callers who may MANAGE. Neither ever holds a secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class LlamaManError(Exception):
    """Base of all our errors.

    :ivar status: the HTTP status that a front end answers with.
    :ivar retry_after: whole seconds after which trying again makes sense, or None.
    :ivar field: the name of the offending input field, or None.
    :ivar inputs: the figures that a decision rests on; for every caller.
    :ivar request_id: of the request that is being told of it.
    """

    status = 500
    code = "internal_error"
    request_id: str | None = None

    def __init__(
        self,
        message: str,
        *,
        detail: str | None = None,
        retry_after: int | None = None,
        field: str | None = None,
        inputs: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.inputs = dict(inputs or {})
        self.detail = detail
        self.retry_after = retry_after
        self.field = field


class InvalidRequest(LlamaManError):
    """The request as a whole makes no sense (not JSON, not an object, contradictory)."""

    status = 400
    code = "invalid_request"


class InvalidField(InvalidRequest):
    """One named field has a value that is not allowed."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message, field=field)


class Unauthorized(LlamaManError):
    """No credential, or one that is not known."""

    status = 401
    code = "unauthorized"


class Forbidden(LlamaManError):
    """A known caller that may not do this."""

    status = 403
    code = "forbidden"


class SudoRequired(Forbidden):
    """A session that must confirm its password first."""

    code = "sudo_required"


class Misdirected(LlamaManError):
    """A Host that is none of our names: the request may come from a page that took over a name."""

    status = 421
    code = "misdirected"


class Cancelled(Forbidden):
    """Somebody with the right to do so ended this request. No status that clients take for a reason to retry."""

    code = "cancelled"


class NotFound(LlamaManError):
    """No such path, instance, key or preset."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """A model name that matches nothing, or more than one model."""

    code = "model_not_found"

    def __init__(self, name: str, candidates: Sequence[str] = ()) -> None:
        hint = f"; did you mean one of: {', '.join(candidates)}" if candidates else ""
        super().__init__(f"model '{name}' not found{hint}", field="model")
        self.name = name
        self.candidates = tuple(candidates)


class MethodNotAllowed(LlamaManError):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class Conflict(LlamaManError):
    """The state of the thing does not allow this now."""

    status = 409
    code = "conflict"


class PortTaken(Conflict):
    """A TCP port could not be bound."""

    code = "port_taken"


class PayloadTooLarge(LlamaManError):
    """A body over the limit of its route."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(LlamaManError):
    """A body of another type than the route takes."""

    status = 415
    code = "unsupported_media_type"


class CrashingRequest(LlamaManError):
    """A request under which an engine crashed a short while ago."""

    status = 422
    code = "crashing_request"


class TooManyRequests(LlamaManError):
    """Too many attempts, or too many at a time; ``retry_after`` says when to try again."""

    status = 429
    code = "too_many_requests"


class QueueFull(LlamaManError):
    """The model's queue is full, or the wait in it was too long."""

    status = 429
    code = "queue_full"


class ModelUnavailable(LlamaManError):
    """A known model that cannot answer now; ``retry_after`` says when it may."""

    status = 503
    code = "model_unavailable"


class ContextFull(ModelUnavailable):
    """The requests that an engine works on share its context, and together they need more than there is."""

    code = "context_full"


class ContextTooSmall(InvalidRequest):
    """A request needs more context than there is although nobody shares it: it asks for several answers."""

    code = "context_length_exceeded"


class RuntimeLost(ModelUnavailable):
    """What runs the engines (the Docker daemon) cannot be reached now; it is looked for all the time."""

    code = "runtime_lost"


class EngineDied(ModelUnavailable):
    """The llama.cpp server under a request or a launch ended."""

    code = "engine_died"


class UpstreamFailed(LlamaManError):
    """The engine broke the connection or HTTP."""

    status = 502
    code = "upstream_failed"


class UpstreamTimeout(LlamaManError):
    """The engine was silent for longer than REQUEST_TIMEOUT."""

    status = 504
    code = "upstream_timeout"


class LaunchError(LlamaManError):
    """A launch that cannot be carried out: the engine, the model or the plan is at fault."""

    status = 500
    code = "launch_failed"


class PluginError(LlamaManError):
    """A plugin failed; the message names it."""

    code = "plugin_failed"

    def __init__(self, plugin: str, reason: str, *, status: int = 500) -> None:
        super().__init__(f"plugin '{plugin}': {reason}")
        self.plugin = plugin
        self.reason = reason
        self.status = status


class ConfigError(LlamaManError):
    """The environment is wrong; the program ends with exit status 78 (EX_CONFIG of sysexits.h)."""

    code = "config_error"
    exit_status = 78


class StoreError(LlamaManError):
    """The store could not do what was asked; nothing was changed."""

    status = 503
    code = "store_failed"


class StoreReadOnly(StoreError):
    """A write failed before; the store refuses writes until one works again."""

    status = 507
    code = "store_read_only"


class StoreCorrupt(StoreError):
    """A stored file cannot be trusted; the boot stops rather than start from nothing."""

    code = "store_corrupt"
    exit_status = 78


class VersionConflict(Conflict):
    """A document changed between read and write."""

    code = "version_conflict"
