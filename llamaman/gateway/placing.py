"""What a request wants of its model's pool, and which of the instances there are may have it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from llamaman.core import fetching
from llamaman.core.admission import Launcher
from llamaman.core.instance import Instance
from llamaman.errors import InvalidField, ModelUnavailable, RuntimeLost
from llamaman.records import ModelView, State

#: Requests that may wait for an instance whose options do not say how many.
DEFAULT_QUEUE_DEPTH = 200
#: More requests than this at home than elsewhere, and another instance reads the prompt anew.
CLEARLY_BUSIER = 1

#: The states of what serves or is on its way.
ALIVE = frozenset(State) - {State.SLEEPING, State.STOPPED, State.FAILED}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request wants of its model's pool.

    :ivar weight: the slots that it needs; 0 for what runs beside what generates.
    :ivar most: the slots that it takes where there are so many; it never waits for more than an instance has.
    :ivar only: the instance that it came through, None for any.
    :ivar home: requests of the same value find their prompt's beginning in one instance's cache.
    :ivar key: the id of the API key whose cold starts are counted, None where they are not.
    """

    model: ModelView
    weight: int = 1
    most: int = 0
    only: str | None = None
    launcher: Launcher = "openai"
    embedding: bool = False
    context: int | None = None
    home: str | None = None
    key: str | None = None


def serves(instance: Instance) -> bool:
    """Whether requests may be given to it at all."""
    return instance.state is State.READY and not instance.unsettled and instance.last_exit is None


def slots(wish: Wish, instance: Instance) -> int:
    """How many of an instance's slots a request takes there."""
    return max(wish.weight, min(wish.most, instance.capacity))


def choose(wish: Wish, instances: Iterable[Instance], home: str | None) -> Instance | None:
    """The least busy of these with room for it, or the one that knows its conversation unless that is busier.

    Of equally busy ones the one that was not used for longest, so that conversations have a cache each.

    :param home: the id of the instance that knows its conversation, None when none does.
    """
    best: Instance | None = None
    at_home: Instance | None = None
    only = wish.only
    for instance in instances:
        if not serves(instance) or (only is not None and instance.id != only):
            continue
        if instance.capacity - instance.active < slots(wish, instance):
            continue
        if instance.id == home:
            at_home = instance
        if best is None or _busyness(instance) < _busyness(best):
            best = instance
    if at_home and best and at_home.active - best.active <= CLEARLY_BUSIER:
        return at_home
    return best


def too_heavy(wish: Wish, instances: Collection[Instance]) -> InvalidField | None:
    """Why a request never fits into those of these that are ready; None when it does, or when none is."""
    most = max((i.capacity for i in instances if i.state is State.READY), default=wish.weight)
    if most >= wish.weight:
        return None
    return InvalidField("n", f"n must be at most {most}, the number of slots of this model's instances")


def depth(instance: Instance) -> int:
    """How many requests may wait for it."""
    given = instance.options.get("max_queue_depth")
    return DEFAULT_QUEUE_DEPTH if given is None else int(given)


def delay(instances: Collection[Instance]) -> ModelUnavailable | None:
    """Why it makes no sense to wait for any of these now; None when it does, or when none is on its way."""
    coming = [instance for instance in instances if instance.state in ALIVE]
    if not coming or not all(instance.delay for instance in coming):
        return None
    first = coming[0]
    cause = RuntimeLost if first.lost else ModelUnavailable
    return cause(f"model '{first.model}' is not loaded yet: {first.delay}", retry_after=fetching.RETRY_S)


def _busyness(instance: Instance) -> tuple[int, float]:
    return instance.active, instance.last_release or 0.0
