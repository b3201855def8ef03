"""Which instances there are, and who looks after each. Written on the event loop alone; any thread may read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from llamaman.core.instance import Instance
from llamaman.core.supervisor import Supervisor
from llamaman.errors import NotFound


class Roster:
    """Every instance with its supervisor, which ``supervise`` makes."""

    def __init__(self, supervise: Callable[[Instance], Supervisor]) -> None:
        self._supervise = supervise
        self._all: dict[str, Instance] = {}
        self._by_path: dict[Path, list[Instance]] = {}
        self._supervisors: dict[str, Supervisor] = {}
        self._leaving: set[str] = set()

    def enter(self, instance: Instance) -> Supervisor:
        """One more instance; its supervision begins."""
        self._all[instance.id] = instance
        self._by_path.setdefault(instance.model_path, []).append(instance)
        supervisor = self._supervisors[instance.id] = self._supervise(instance)
        supervisor.run()
        return supervisor

    def leave(self, instance: Instance) -> None:
        """It is being removed: from now on nothing is begun with it."""
        self._leaving.add(instance.id)

    def stay(self, instance: Instance) -> None:
        """Its removal came to nothing, or is complete."""
        self._leaving.discard(instance.id)

    def forget(self, instance: Instance) -> Supervisor:
        """It is gone; returns the supervisor, which still has to be closed."""
        self._all.pop(instance.id, None)
        mates = self._by_path[instance.model_path]
        mates.remove(instance)
        if not mates:
            del self._by_path[instance.model_path]
        return self._supervisors.pop(instance.id)

    def has(self, instance: Instance) -> bool:
        """Whether it is there to stay."""
        return instance.id in self._all and instance.id not in self._leaving

    def get(self, instance_id: str) -> Instance | None:
        """One instance, or None."""
        return self._all.get(instance_id)

    def require(self, instance_id: str) -> Instance:
        """One instance that is there to stay.

        :raises NotFound: there is none of this id.
        """
        instance = self._all.get(instance_id)
        if instance is None or not self.has(instance):
            raise NotFound("Not found")
        return instance

    def all(self) -> Sequence[Instance]:
        """Every instance, also those that are being removed; a snapshot."""
        return tuple(self._all.values())

    def of_path(self, path: Path) -> list[Instance]:
        """The instances of one model file."""
        return self._by_path.get(path, [])

    def supervisor(self, instance: Instance) -> Supervisor:
        """Who looks after it."""
        return self._supervisors[instance.id]

    def supervisors(self) -> Sequence[Supervisor]:
        """All of them; a snapshot."""
        return tuple(self._supervisors.values())
