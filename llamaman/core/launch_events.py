"""What engines were started with, and for whom: the topic ``launches``, which the audit log keeps.

A topic of its own: a command line holds paths, which are not for everybody who may read ``instances``.
"""

from __future__ import annotations

from llamaman.core.events import Events
from llamaman.errors import LlamaManError
from llamaman.records import LaunchPlan

TOPIC = "launches"
STARTED = "started"
FAILED = "failed"


def started(events: Events, plan: LaunchPlan, actor: str) -> None:
    """Tell that an engine was started; its model is still to load."""
    _publish(events, STARTED, plan, actor, "an engine was started")


def failed(events: Events, plan: LaunchPlan, actor: str, error: LlamaManError) -> None:
    """Tell that an engine could not even be started."""
    _publish(events, FAILED, plan, actor, error.message)


def command_line(plan: LaunchPlan) -> list[str]:
    """A launch in llama-server's words, with files as this machine knows them.

    A runtime may add flags of its own; a key is never on a command line. Where a container listens inside is no
    address of this machine, so it is left out.
    """
    where = [] if plan.engine.kind == "image" else ["--host", plan.host, "--port", str(plan.port)]
    model = ["--model", str(plan.model_path), *where, "--alias", plan.alias]
    return [plan.engine.path or plan.engine.name, *model, *plan.flags]


def _publish(events: Events, kind: str, plan: LaunchPlan, actor: str, reason: str) -> None:
    data = {
        "instance_id": plan.instance_id,
        "model": plan.alias,
        "generation": plan.generation,
        "engine": plan.engine.name,
        "engine_digest": plan.engine.digest,
        "argv": command_line(plan),
    }
    events.publish(TOPIC, kind, data, actor=actor, reason=reason)
