"""Every metric of ``/metrics``, declared once. Read by what counts, by what writes the answer, and by the docs.

Units are base units (seconds, tokens), names begin with ``llamaman_``, and a label's values come from a bounded
set: models of the library, instances of this node, words of this program. Nothing that a client sends is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram", "info"]

#: Models that are counted by name at a time; the one that was not used for the longest makes room for another.
MOST_MODELS: Final = 1000

_ANSWER_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_WAIT_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_LOAD_S = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all its labels.

    :ivar name: as it is asked for; of a histogram without ``_bucket``, ``_sum`` and ``_count``.
    :ivar buckets: upper bounds of a histogram, ``+Inf`` left out.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


REQUESTS: Final = Family(
    "llamaman_requests_total",
    "counter",
    "Inference requests that are over. status is 2xx, 4xx, 5xx, or none when the client left before an answer began; "
    "outcome is complete, error or cancelled (the client left). model is empty where none was found.",
    ("dialect", "model", "status", "outcome"),
)
PROMPT_TOKENS: Final = Family(
    "llamaman_prompt_tokens_total",
    "counter",
    "Tokens of the prompts that were read, cached ones included.",
    ("dialect", "model"),
)
CACHED_TOKENS: Final = Family(
    "llamaman_cached_prompt_tokens_total",
    "counter",
    "Tokens of these prompts that the engine still had in its cache.",
    ("dialect", "model"),
)
COMPLETION_TOKENS: Final = Family(
    "llamaman_completion_tokens_total",
    "counter",
    "Tokens that were generated.",
    ("dialect", "model"),
)
DURATION: Final = Family(
    "llamaman_request_duration_seconds",
    "histogram",
    "From the first byte of a request for a known model to the last of its answer, waiting included.",
    ("model",),
    _ANSWER_S,
)
FIRST_TOKEN: Final = Family(
    "llamaman_time_to_first_token_seconds",
    "histogram",
    "From a streamed request to the first event of its answer, waiting and loading included.",
    ("model",),
    _FIRST_S,
)
QUEUE_WAIT: Final = Family(
    "llamaman_queue_wait_seconds",
    "histogram",
    "Waiting for a free slot or for the model's load, of requests that got a slot; 0 for those that had one at once.",
    ("model",),
    _WAIT_S,
)
IN_FLIGHT: Final = Family(
    "llamaman_requests_in_flight",
    "gauge",
    "Inference requests that are not answered yet. phase is queue, load, prefill or generate.",
    ("model", "phase"),
)
QUEUED: Final = Family(
    "llamaman_requests_queued",
    "gauge",
    "Requests in flight that wait for a slot or for the model's load.",
    ("model",),
)
LOADS: Final = Family(
    "llamaman_model_loads_total",
    "counter",
    "Launches and wakes that came to an end. outcome is ready or failed; those that were stopped are not counted.",
    ("model", "outcome"),
)
LOAD_TIME: Final = Family(
    "llamaman_model_load_seconds",
    "histogram",
    "From the engine's start to its readiness.",
    ("model",),
    _LOAD_S,
)
EVICTIONS: Final = Family(
    "llamaman_evictions_total",
    "counter",
    "Instances that had to leave so that another model could be loaded.",
    ("model",),
)
CRASHES: Final = Family(
    "llamaman_crashes_total",
    "counter",
    "Engines that ended by themselves, while loading or later.",
    ("model",),
)
STATE: Final = Family(
    "llamaman_instance_state",
    "gauge",
    "1 for the state an instance is in, 0 for every other state.",
    ("instance", "model", "state"),
)
SLOTS: Final = Family(
    "llamaman_instance_slots",
    "gauge",
    "Requests that the engine can work on at the same time. Absent while none runs.",
    ("instance", "model"),
)
ACTIVE: Final = Family(
    "llamaman_instance_slots_in_use",
    "gauge",
    "Slots that requests hold.",
    ("instance", "model"),
)
LAG: Final = Family(
    "llamaman_event_loop_lag_seconds",
    "histogram",
    "How late the event loop came to a timer, looked at four times a second. Every stream waits that long.",
    buckets=_LAG_S,
)
LONGEST_LAG: Final = Family(
    "llamaman_event_loop_longest_lag_seconds",
    "gauge",
    "The longest of the last one to two minutes.",
)
BUILD: Final = Family(
    "llamaman_build_info",
    "info",
    "1; what runs is in the labels.",
    ("version", "python", "node"),
)

FAMILIES: Final = (
    REQUESTS,
    PROMPT_TOKENS,
    CACHED_TOKENS,
    COMPLETION_TOKENS,
    DURATION,
    FIRST_TOKEN,
    QUEUE_WAIT,
    IN_FLIGHT,
    QUEUED,
    LOADS,
    LOAD_TIME,
    EVICTIONS,
    CRASHES,
    STATE,
    SLOTS,
    ACTIVE,
    LAG,
    LONGEST_LAG,
    BUILD,
)
