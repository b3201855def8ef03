"""Every number that a client can run into at a door, declared once. Read by the code that enforces it and by the docs.

A limit is a plain ``int``; :func:`limit` also puts it into :data:`TABLE`, from which ``docs/reference/limits.md``
is written. Numbers of the kernel's inner workings (back-off, rotation) stay with the code that they steer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Unit = Literal["bytes", "s", ""]


@dataclass(frozen=True, slots=True)
class Limit:
    """One row of the table.

    :ivar section: the heading under which the documentation lists it.
    :ivar answer: the HTTP status of what goes beyond, or None where nothing is answered.
    """

    name: str
    value: int
    unit: Unit
    section: str
    meaning: str
    answer: int | None


TABLE: list[Limit] = []


def limit(
    name: str, value: int, meaning: str, *, section: str, unit: Unit = "", answer: int | None = None
) -> int:
    """Declare a limit and return its value.

    :raises ValueError: the name is taken.
    """
    if any(other.name == name for other in TABLE):
        raise ValueError(f"limit '{name}' is declared twice")
    TABLE.append(Limit(name, value, unit, section, meaning, answer))
    return value


_CONNECTIONS = "Connections"
HEAD_BYTES: Final = limit(
    "head", 32 << 10, "Request line and headers together.", section=_CONNECTIONS, unit="bytes", answer=431
)
HEAD_S: Final = limit(
    "head_time", 10, "From the first byte of a head to its last.", section=_CONNECTIONS, unit="s", answer=408
)
HEADERS: Final = limit("headers", 100, "Header lines.", section=_CONNECTIONS, answer=400)
HEADER_NAME_BYTES: Final = limit(
    "header_name", 256, "Of a header, before the colon.", section=_CONNECTIONS, unit="bytes", answer=400
)
TARGET_BYTES: Final = limit(
    "target", 8 << 10, "Path and query.", section=_CONNECTIONS, unit="bytes", answer=400
)
KEEPALIVE_S: Final = limit(
    "keepalive",
    75,
    "A connection without a request, before the first and between two; then it is closed.",
    section=_CONNECTIONS,
    unit="s",
)
WRITE_STALL_S: Final = limit(
    "write_stall",
    60,
    "Without one byte taken by the client; then the connection is closed and the engine's work ended.",
    section=_CONNECTIONS,
    unit="s",
)
DISCARD_BYTES: Final = limit(
    "discard",
    1 << 20,
    "Of a body that nobody wants, read so that the client sees the early answer.",
    section=_CONNECTIONS,
    unit="bytes",
)
DISCARD_S: Final = limit("discard_time", 2, "The same, in time.", section=_CONNECTIONS, unit="s")
CONNECTIONS_PER_ADDRESS: Final = limit(
    "connections_per_address",
    128,
    "Of one IPv4 address or IPv6 /64; loopback and the admin socket are exempt.",
    section=_CONNECTIONS,
    answer=503,
)
CONNECTIONS: Final = limit(
    "connections", 512, "All together; the longest idle one goes first.", section=_CONNECTIONS, answer=503
)

FRESH_S: Final = limit(
    "fresh",
    2,
    "How long a new connection keeps its place without a request while others want to come in.",
    section=_CONNECTIONS,
    unit="s",
)

_BODIES = "Bodies"
INFERENCE_BODY: Final = limit(
    "inference_body",
    64 << 20,
    "A body for a model, unless its route says otherwise.",
    section=_BODIES,
    unit="bytes",
    answer=413,
)
AUDIO_BODY: Final = limit(
    "audio_body", 25 << 20, "An upload that is to be transcribed.", section=_BODIES, unit="bytes", answer=413
)
BODIES_IN_MEMORY: Final = limit(
    "bodies_in_memory",
    512 << 20,
    "All bodies together; a tenth of the machine's memory where that is less.",
    section=_BODIES,
    unit="bytes",
    answer=503,
)
BODY_RATE: Final = limit(
    "body_rate",
    1 << 10,
    "Bytes a second that a body arrives with at least, on average.",
    section=_BODIES,
    answer=408,
)
BODY_GRACE_S: Final = limit(
    "body_grace", 10, "Waiting for a body before that rate is demanded.", section=_BODIES, unit="s"
)
FORM_BODY: Final = limit(
    "form_body", 16 << 10, "A form: /login, /setup, /logout.", section=_BODIES, unit="bytes", answer=413
)
MANAGEMENT_BODY: Final = limit(
    "management_body", 1 << 20, "A body of the management API.", section=_BODIES, unit="bytes", answer=413
)
MANAGEMENT_DEPTH: Final = limit(
    "management_depth", 64, "Levels of nesting in a management body.", section=_BODIES, answer=400
)
MEDIA_URLS: Final = limit(
    "media_urls",
    16,
    "Images and the like that a request names by URL, where they are fetched (`media.fetch_urls`).",
    section=_BODIES,
    answer=400,
)
MEDIA_BYTES: Final = limit("media", 10 << 20, "One of those.", section=_BODIES, unit="bytes", answer=400)
MEDIA_FETCH_S: Final = limit(
    "media_time", 10, "Fetching one of those.", section=_BODIES, unit="s", answer=400
)
PICTURES: Final = limit(
    "pictures", 128, "Pictures, sounds and videos that a request holds.", section=_BODIES, answer=400
)
PICTURE_BYTES: Final = limit(
    "picture",
    32 << 20,
    "One of those, without its base64.",
    section=_BODIES,
    unit="bytes",
    answer=400,
)
PICTURE_PIXELS: Final = limit(
    "picture_pixels",
    64_000_000,
    "Pixels of a picture; half as many where it has 16 bits a colour. An engine takes 6 to 13 bytes for one.",
    section=_BODIES,
    answer=400,
)
PICTURE_SIDE: Final = limit(
    "picture_side", 32_768, "Pixels of a picture from side to side.", section=_BODIES, answer=400
)
PICTURES_PIXELS: Final = limit(
    "pictures_pixels",
    192_000_000,
    "Pixels of all pictures of a request; an engine keeps three bytes for each until it has looked at them.",
    section=_BODIES,
    answer=400,
)
PICTURES_CONVERTED: Final = limit(
    "pictures_converted",
    32_000_000,
    "Pixels of all WebP pictures of a request, which are made into PNG or JPEG, one picture at a time.",
    section=_BODIES,
    answer=400,
)
SOUNDS_S: Final = limit(
    "sounds",
    3600,
    "All sounds of a request; an engine takes some 64 KiB for a second.",
    section=_BODIES,
    unit="s",
    answer=400,
)

_FIELDS = "What a body for a model may hold"
BODY_DEPTH: Final = limit("body_depth", 128, "Levels of nesting.", section=_FIELDS, answer=400)
BODY_VALUES: Final = limit(
    "body_values", 1_000_000, "Values in all lists and objects together.", section=_FIELDS, answer=400
)
BODY_OBJECTS: Final = limit("body_objects", 200_000, "Lists and objects.", section=_FIELDS, answer=400)
NUMBER_DIGITS: Final = limit("number_digits", 64, "Digits of a number.", section=_FIELDS, answer=400)
MESSAGES: Final = limit("messages", 10_000, "Messages of a conversation.", section=_FIELDS, answer=400)
TOOLS: Final = limit("tools", 256, "Tools.", section=_FIELDS, answer=400)
SCHEMA_BYTES: Final = limit(
    "schema",
    256 << 10,
    "A JSON schema: of the answer, or of one tool's parameters.",
    section=_FIELDS,
    unit="bytes",
    answer=400,
)
SCHEMA_DEPTH: Final = limit(
    "schema_depth", 64, "Levels of nesting in a JSON schema.", section=_FIELDS, answer=400
)
PATTERN_BYTES: Final = limit(
    "pattern", 1 << 10, "A pattern in a JSON schema.", section=_FIELDS, unit="bytes", answer=400
)
SCHEMA_NAME_BYTES: Final = limit(
    "schema_name",
    1 << 10,
    "A name in a JSON schema, or of a tool.",
    section=_FIELDS,
    unit="bytes",
    answer=400,
)
GRAMMAR_BYTES: Final = limit("grammar", 64 << 10, "A grammar.", section=_FIELDS, unit="bytes", answer=400)
GRAMMAR_DEPTH: Final = limit("grammar_depth", 64, "Open brackets in a grammar.", section=_FIELDS, answer=400)
STOPS: Final = limit("stops", 64, "Texts that end an answer.", section=_FIELDS, answer=400)
STOP_BYTES: Final = limit("stop", 1 << 10, "One of those.", section=_FIELDS, unit="bytes", answer=400)
BREAKERS: Final = limit(
    "breakers", 128, "Texts that end a repetition (dry_sequence_breakers).", section=_FIELDS, answer=400
)
CHOICES: Final = limit(
    "choices", 128, "Answers to one request; never more than a model has slots.", section=_FIELDS, answer=400
)
PROBABILITIES: Final = limit(
    "probabilities",
    100,
    "Probabilities a token (n_probs, logprobs, top_logprobs).",
    section=_FIELDS,
    answer=400,
)
LOGIT_BIASES: Final = limit(
    "logit_biases", 1000, "Tokens whose probability is changed.", section=_FIELDS, answer=400
)

_CRASHES = "Requests that end an engine"
CRASH_BODY_S: Final = limit(
    "crash_body",
    300,
    "How long a request is refused, whoever sends it, after an engine crashed while it was alone in it.",
    section=_CRASHES,
    unit="s",
    answer=422,
)
CRASHES_PER_KEY: Final = limit(
    "crashes_per_key", 3, "Engines that crashed so under a key's requests.", section=_CRASHES, answer=429
)
CRASHES_WINDOW_S: Final = limit(
    "crashes_window", 600, "How long such a crash counts against its key.", section=_CRASHES, unit="s"
)

_STREAMS = "Open streams"
STREAMS_PER_CALLER: Final = limit(
    "streams_per_caller", 16, "Log and event streams of one session or key.", section=_STREAMS, answer=429
)
STREAMS_IN_ALL: Final = limit(
    "streams_in_all", 512, "Log and event streams of all callers.", section=_STREAMS, answer=429
)

_ACCOUNTS = "Users, sessions and keys"
USERS: Final = limit("users", 1000, "Users.", section=_ACCOUNTS, answer=409)
USER_NAME: Final = limit("user_name", 128, "Characters of a user's name.", section=_ACCOUNTS, answer=400)
PASSWORD_SHORTEST: Final = limit(
    "password_shortest", 10, "Characters that a password has at least.", section=_ACCOUNTS, answer=400
)
PASSWORD_LONGEST: Final = limit(
    "password_longest", 256, "Characters that a password has at most.", section=_ACCOUNTS, answer=400
)
SESSIONS_PER_USER: Final = limit(
    "sessions_per_user", 50, "Sessions of one user; the oldest ends for a new one.", section=_ACCOUNTS
)
SESSION_IDLE_S: Final = limit(
    "session_idle", 24 * 3600, "A session that nobody uses ends.", section=_ACCOUNTS, unit="s", answer=401
)
SESSION_LONGEST_S: Final = limit(
    "session_longest", 14 * 86400, "Every session ends.", section=_ACCOUNTS, unit="s", answer=401
)
SUDO_S: Final = limit(
    "sudo",
    600,
    "How long a confirmed password opens sensitive actions.",
    section=_ACCOUNTS,
    unit="s",
    answer=403,
)
KEYS: Final = limit("keys", 1000, "API keys.", section=_ACCOUNTS, answer=409)
NAME: Final = limit("name", 128, "Characters of a key's or a model's name.", section=_ACCOUNTS, answer=400)
KEY_MODELS: Final = limit(
    "key_models", 256, "Models that a key may be limited to.", section=_ACCOUNTS, answer=400
)

_LOGINS = "Logins"
HASHES_AT_ONCE: Final = limit("hashes_at_once", 2, "Passwords checked at the same time.", section=_LOGINS)
HASHES_WAITING: Final = limit(
    "hashes_waiting", 8, "Password checks that wait for a turn.", section=_LOGINS, answer=429
)
FAILURES_WINDOW_S: Final = limit(
    "failures_window", 900, "How long a failed login counts.", section=_LOGINS, unit="s"
)
FAILURES_PER_ACCOUNT: Final = limit(
    "failures_per_account",
    5,
    "Failed logins of one user name from one address, before a growing pause (1 to 60 s).",
    section=_LOGINS,
    answer=429,
)
FAILURES_PER_ADDRESS: Final = limit(
    "failures_per_address",
    30,
    "Failed logins from one address, or of one user's sessions from anywhere, before the same.",
    section=_LOGINS,
    answer=429,
)
FAILURES_IN_ALL: Final = limit(
    "failures_in_all", 300, "Failed logins from anywhere, before the same.", section=_LOGINS, answer=429
)
LONGEST_PAUSE_S: Final = limit(
    "login_longest_pause",
    60,
    "The longest pause before another login is looked at.",
    section=_LOGINS,
    unit="s",
)
SETUP_CODES: Final = limit(
    "setup_codes", 10, "Wrong set-up codes in one run of the manager.", section=_LOGINS, answer=429
)

_LAUNCHES = "Launches and presets"
PRESETS: Final = limit("presets", 10_000, "Presets.", section=_LAUNCHES, answer=409)
NOTE_BYTES: Final = limit("note", 4 << 10, "A preset's note.", section=_LAUNCHES, unit="bytes", answer=400)
ALIASES: Final = limit("aliases", 32, "Further names of a model.", section=_LAUNCHES, answer=400)
EXTRA_ARGS: Final = limit("extra_args", 64, "Words in extra_args.", section=_LAUNCHES, answer=400)
EXTRA_ARGS_BYTES: Final = limit(
    "extra_args_text", 4 << 10, "The text of extra_args.", section=_LAUNCHES, unit="bytes", answer=400
)

DRAINS_AT_ONCE: Final = limit(
    "drains_at_once",
    2,
    "Stops and restarts asked for over REST that run at the same time.",
    section=_LAUNCHES,
)
DRAINS_WAITING: Final = limit(
    "drains_waiting", 64, "Stops and restarts that wait for their turn.", section=_LAUNCHES, answer=429
)

_LISTS = "Lists"
EVENTS_SHOWN: Final = limit("events_shown", 500, "Events in one answer; the newest.", section=_LISTS)
AUDIT_SHOWN: Final = limit("audit_shown", 500, "Audit entries in one answer.", section=_LISTS)
AUDIT_DAYS: Final = limit("audit_days", 90, "Days that the audit log is kept.", section=_LISTS)
AUDIT_BYTES: Final = limit(
    "audit_bytes", 100 << 20, "Size of the audit log; the oldest days go first.", section=_LISTS, unit="bytes"
)
