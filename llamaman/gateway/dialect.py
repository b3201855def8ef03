"""The dialect contract: how a plugin translates one client API.

A dialect is pure and synchronous: no I/O, no clock, no threads. It says *what* to ask the engine
and how to phrase what came back; the pipeline owns connections, queues, cancellation and metering.

The life of a request: ``open`` reads it and returns an :class:`Intent` (or a :class:`Reply`, to answer at
once). ``check`` may refuse it for what the model cannot do, before anything is loaded for it. When an engine
has been granted, ``serve`` runs as a generator: it yields operations and is sent events. Closing the generator
is cancellation.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from llamaman.access import Access
from llamaman.errors import LlamaManError
from llamaman.limits import INFERENCE_BODY
from llamaman.records import EngineFacts, Identity, InstanceView, ModelView

Phase = Literal["queue", "load", "prefill"]
Surface = Literal["manage", "proxy", "instance"]
Headers = Sequence[tuple[bytes, bytes]]

JSON_HEADERS: Headers = ((b"content-type", b"application/json"),)
SSE_HEADERS: Headers = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


@dataclass(frozen=True, slots=True)
class InferenceRoute:
    """One endpoint of a dialect.

    :ivar pattern: a literal path, or one with ``{name}`` segments; ``{name...}`` at its end is the rest of a path.
    :ivar body: ``json`` bodies (objects) are read, checked and parsed before ``open``; ``list`` ones are JSON lists,
        read and checked; ``raw`` ones are only read (uploads); ``none`` has no body.
    :ivar limit: bytes a body may have.
    :ivar surfaces: the kinds of ports that serve it.
    :ivar instances: whether ``open`` needs to know what runs and which presets there are.
    :ivar header: a header's name in lower case. Of a path that two APIs share, the route serves the requests that
        carry it, and the other API's the rest; all of them where the other API is not there.
    """

    method: str
    pattern: str
    access: Access = Access.INFERENCE
    body: Literal["json", "list", "raw", "none"] = "json"
    limit: int = INFERENCE_BODY
    surfaces: tuple[Surface, ...] = ("manage", "proxy", "instance")
    instances: bool = False
    header: bytes = b""


@dataclass(frozen=True, slots=True)
class Request:
    """What a dialect may know of a client's request; credentials are gone before it is made.

    :ivar received: epoch seconds.
    :ivar instances: what there is of instances the caller may know of; only for routes that ask for it.
    :ivar presets: saved launch options by model file; only for routes that ask for instances.
    :ivar user_agent: what the client calls itself; only for routes that ask for instances.
    """

    route: InferenceRoute
    path: str
    values: Mapping[str, str]
    query: bytes
    identity: Identity
    json: dict[str, Any]
    raw: bytes
    models: Sequence[ModelView]
    own_model: ModelView | None = None
    request_id: str = ""
    content_type: bytes = b""
    user_agent: bytes = b""
    received: float = 0.0
    instances: Sequence[InstanceView] = ()
    presets: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Intent:
    """What a request wants.

    :ivar model: the name as the client wrote it; None means the model of the instance port it came through.
    :ivar action: ``load`` sees that the model is ready and ``unload`` that it leaves when nobody needs it; ``serve``
        only phrases the answer then.
    :ivar needs: the role a model must have.
    :ivar slots: permits that the request needs at once (``n`` of a completion), refused where no instance has so
        many; 0 for what needs no slot.
    :ivar tasks: what the engine works on for it (``n`` times the prompts, the inputs of embeddings): it takes so
        many permits, or all that there are, since nothing may wait inside an engine.
    :ivar launcher: whose rights decide what may be evicted for a start.
    :ivar wakes: whether it may start or wake an instance; only inference does.
    :ivar keep_alive: seconds of idleness after which the model may sleep; ``math.inf`` for never, 0 for as soon as
        nobody needs it, None for no change. It counts for models that were started on demand.
    :ivar context: tokens of context that the client asks for.
    :ivar affinity: requests with the same value prefer the same instance; None: by the conversation's beginning.
    """

    model: str | None
    action: Literal["infer", "load", "unload"] = "infer"
    needs: Literal["chat", "completion", "embedding", "any"] = "any"
    stream: bool = False
    slots: int = 1
    tasks: int = 1
    wakes: bool = True
    launcher: Literal["openai", "ollama"] = "openai"
    keep_alive: float | None = None
    context: int | None = None
    affinity: str | None = None
    request: Request | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """What a dialect may know of the instance that serves a request.

    :ivar instance_id: None where none is needed (``unload``).
    :ivar granted: epoch seconds; the time from the request's ``received`` was spent in the queue and on loading.
    :ivar context_length: tokens that one request may use, None when the engine did not say.
    :ivar options: the launch options it runs with.
    """

    instance_id: str | None
    granted: float
    context_length: int | None = None
    slots: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineFacts | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer.

    :ivar late: what ends the stream instead where a heartbeat has begun it; None: the body as one SSE event.
    """

    status: int
    headers: Headers
    body: bytes
    late: bytes | None = None


# --- operations a generator yields ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the engine.

    ``body`` is the JSON text to send; ``patch`` is laid over its top level without parsing it again.

    Modes: ``relay`` forwards the engine's SSE events untouched (progress and pings removed) and then sends
    the generator a :class:`Result` without body; ``stream`` sends a :class:`Chunk` for this and for every
    following :class:`Next`, and a :class:`Result` at the end; ``assemble`` streams from the engine but
    sends one :class:`Result` with the whole body, so that a client that leaves frees its slot at once;
    ``plain`` is one request and one body.

    :ivar patch: dotted paths of object keys -> values, laid over the body.
    :ivar most_tokens: tokens after which the answer ends at the latest, where the client said so; the kernel
        does not stream what will be over at once.
    :ivar rename: (the engine's model name, the client's) to be exchanged in what comes back.
    :ivar content_type: of the body; only JSON can be patched.
    :ivar compressed: whether the answer may come compressed, as the result then says.
    """

    method: str
    path: str
    body: bytes
    mode: Literal["relay", "stream", "assemble", "plain"] = "plain"
    patch: Mapping[str, Any] = field(default_factory=dict)
    rename: tuple[str, str] | None = None
    most_tokens: int | None = None
    content_type: bytes = b"application/json"
    compressed: bool = False


@dataclass(frozen=True, slots=True)
class Next:
    """The next event of the ``stream`` call in progress."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Several plain calls under the one grant, at most ``limit`` at a time."""

    calls: Sequence[Call]
    limit: int = 1


@dataclass(frozen=True, slots=True)
class Work:
    """A computation too long for the event loop (decoding an image); its result comes as a :class:`Value`.

    What the function raises ends the request; a LlamaManError is told to the client.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """Begin the answer."""

    status: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class Emit:
    """Send bytes of the answer."""

    data: bytes


Op = Call | Next | Calls | Work | Start | Emit | Reply


# --- events it is sent --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chunk:
    """One SSE event of the engine, parsed. ``[DONE]`` is not delivered.

    :ivar at: when it came, epoch seconds.
    """

    data: dict[str, Any]
    at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a call. ``relayed`` is True when the answer already went to the client.

    :ivar status: of an error, put right where llama-server blames the wrong side.
    :ivar body: of an error, without the host's paths.
    :ivar at: when it came, epoch seconds.
    :ivar content_type: what the engine calls a plain body. It is not to be trusted.
    :ivar encoding: how a compressed body is encoded.
    """

    status: int
    body: bytes
    relayed: bool = False
    at: float = field(default=0.0, compare=False)
    content_type: bytes = b""
    encoding: bytes = b""


@dataclass(frozen=True, slots=True)
class Results:
    """The results of :class:`Calls`, in their order."""

    results: Sequence[Result]


@dataclass(frozen=True, slots=True)
class Value:
    """The result of :class:`Work`."""

    value: Any


Event = Chunk | Result | Results | Value | None
Serving = Generator[Op, Event, None]


class Dialect(Protocol):
    """One client API. See the module's docstring."""

    @property
    def name(self) -> str:
        """A short word for records and logs."""

    @property
    def routes(self) -> Sequence[InferenceRoute]:
        """Its endpoints."""

    def open(self, request: Request) -> Intent | Reply:
        """Read a request; raise a LlamaManError to refuse it."""

    def check(self, intent: Intent, model: ModelView) -> None:
        """Refuse, with a LlamaManError, what this model cannot do; nothing has been loaded yet."""

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        """Answer it. Runs with an engine granted."""

    def error(self, error: LlamaManError, *, started: bool) -> Reply | bytes:
        """Phrase an error: a Reply, or bytes of the stream when the answer has started."""

    def waiting(self, phase: Phase, seconds: float) -> bytes | None:
        """What may be sent while a stream waits, or None when nothing may."""
