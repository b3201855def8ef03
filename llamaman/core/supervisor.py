"""The life of one instance: the only code that changes its state.

A supervisor is a task on the event loop with an inbox. Timers, threads and requests only post messages;
what they mean is decided here, with the state as it is when the message is read. What takes time (spawn,
stop, readiness) is an errand that ends with a message.

While the runtime cannot be reached nothing is stopped, restarted or given up: silence is never failure.

Reading order: ``_on`` (one branch per message), then the transitions below it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from llamaman.core import crash, fetching
from llamaman.core import messages as m
from llamaman.core.attachment import Attachment
from llamaman.core.errands import Errands
from llamaman.core.inbox import Inbox
from llamaman.core.instance import STILL, Instance
from llamaman.core.notes import Notes
from llamaman.core.runtime_choice import LOST_RETRY_S
from llamaman.core.services import Services
from llamaman.core.timers import Timers
from llamaman.errors import LlamaManError, RuntimeLost
from llamaman.records import Exit, Handle, LaunchPlan, State

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
LOST_PAUSE_S = 5.0
MOST_RESTARTS = 5
#: An instance that stayed ready this long starts again with a clean restart count.
STEADY_S = 300.0

_RUNNING = frozenset({State.READY, State.DRAINING})
_LOADING = frozenset({State.PREPARING, State.STARTING})
#: Whose stops do not change what an administrator or a request wanted, when they come to nothing.
_OF_THE_MANAGER = frozenset({"boot", "shutdown", "reconcile"})
#: Who stops only what a runtime has just told of, although it counts as lost until all of it is looked at.
_BACK_ALREADY = frozenset({"boot", "reconcile"})


class Supervisor:
    """Owns the transitions of one instance."""

    def __init__(self, instance: Instance, services: Services) -> None:
        self.instance = instance
        self._s = services
        self._inbox = Inbox(instance.id, self._on, self._on_error)
        self._stop: m.Stop | None = None
        self._stop_waiters: list[asyncio.Future[bool]] = []
        self._want: m.Want | None = None
        self._timers = Timers(self.post)
        self._spawning = False
        self._adopted = False
        self._before_stop = State.STOPPED
        self._preparing: asyncio.Task[None] | None = None
        self._told_at = 0.0
        self._notes = Notes(instance, services.persist, self._background)
        self._errands = Errands(instance, services, self._notes, self.post)
        self._engine = Attachment(instance, services, self._errands, self.post, self._background)
        #: Why the last stop did not end it; None when it did.
        self.stop_error: LlamaManError | None = None

    # --- the inbox -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Start the supervisor's task."""
        self._inbox.run()

    def post(self, message: m.Message) -> None:
        """Tell it something; from the event loop only."""
        self._inbox.post(message)

    async def tell(self, message: m.Message) -> None:
        """Tell it something and return when the transition, if any, has been made."""
        await self._inbox.tell(message)

    async def close(self) -> None:
        """Forget the instance without touching its process; nobody is left waiting for an answer."""
        self._timers.cancel_all()
        self._engine.unwatch()
        await self._inbox.close()
        self._answer_stops(done=False)
        if self.instance.client:
            await self.instance.client.close()

    def _on_error(self, message: m.Message, error: Exception) -> None:
        self._stop = self._want = None
        self._fail(f"internal error while handling {type(message).__name__}: {type(error).__name__}")

    async def _on(self, message: m.Message) -> None:
        current = self.instance.generation
        match message:
            case m.Want():
                self._on_want(message)
            case m.Adopted(handle=handle):
                await self._begin_readiness(handle, "adopted, checking its health")
            case m.Stop():
                await self._on_stop(message)
            case m.Started(generation=generation, handle=handle) if generation == current:
                self._spawning = False
                self.instance.handle = handle
                self._background(self._notes.will())
                if self._stop:
                    self._begin_stop()
                else:
                    await self._begin_readiness(handle)
            case m.Started(handle=handle):
                await self._s.stop(self._s.runtime(self.instance.runtime).stop, handle, m.STOP_GRACE_S)
            case _ if message.generation != current:  # late news of an earlier generation
                return
            case m.Fetching(text=text):
                self._on_fetching(text)
            case m.Planned(plan=plan):
                self._on_planned(plan)
            case m.StartFailed(error=error):
                self._on_start_failed(error)
            case m.Ready():
                self._on_ready(message)
            case m.NotReady():
                self._on_not_ready(message)
            case m.Exited(exit=exit_):
                self._on_exited(exit_)
            case m.Diagnosed():
                self._on_diagnosed(message)
            case m.DrainOver(expired=expired):
                self._on_drain_over(expired=expired)
            case m.Stopped():
                await self._on_stopped(message)
            case m.Idle():
                self._on_idle()
            case m.Retry():
                self._on_retry()
            case m.Suspect():
                self._on_suspect()
            case m.Wedged():
                self._on_wedged()
            case m.Frozen():
                self._on_frozen(message)

    # --- starting ------------------------------------------------------------------------------------

    def _on_want(self, want: m.Want) -> None:
        instance = self.instance
        by_request = want.actor == "gateway"
        if self.leaving:
            # A stop stands. A request waits in its pool, which asks the registry again when this is over, so
            # that what was evicted comes back through admission; whoever else asks is served after the stop.
            if not by_request:
                self._want = want
            return
        if instance.state in _LOADING or instance.state is State.READY:
            return
        if instance.state is State.BACKOFF and by_request:
            return
        if instance.handle is not None:  # an earlier stop failed: never a second process beside the first
            self._want = want
            self._end_process(m.Stop("sleeping", want.actor, "ending what is left of its last run", 0))
            return
        if want.actor != "gateway":
            self._s.breaker.reset(self.instance.config_hash)
            self.instance.restarts = 0
        elif pause := self._s.breaker.check(self.instance.config_hash, time.monotonic()):
            self._fail(pause.reason)
            return
        self._begin_start(want.actor, want.reason)

    def _begin_start(self, actor: str, reason: str) -> None:
        self._timers.cancel_all()
        instance = self.instance
        instance.generation += 1
        instance.desired = "running"
        instance.actor = actor
        instance.ready_at = None
        instance.load_seconds = None
        instance.slots = None
        instance.context_length = None
        instance.facts = None
        instance.last_exit = None
        self._want = None
        self._spawning = True
        self._set(State.PREPARING, reason, actor)
        self._preparing = self._background(self._errands.prepare(instance.generation))

    def _on_fetching(self, text: str | None) -> None:
        instance = self.instance
        if instance.state is not State.PREPARING:
            return  # it was given up meanwhile
        has_begun, instance.fetching = instance.fetching is None, text
        if self._stop and text:
            self._abandon_fetch()
            return
        instance.reason = text or "its engine is here"
        now = time.monotonic()
        if has_begun or text is None or now - self._told_at >= fetching.NEWS_EVERY_S:
            self._told_at = now
            self._s.told(instance, "fetching")

    def _abandon_fetch(self) -> None:
        """Stop without waiting for what is being fetched; others may still want it."""
        assert self._preparing is not None
        self._preparing.cancel()
        self._spawning = False
        self._s.release_internal(self.instance)
        self._after_stop(None)

    def _on_planned(self, plan: LaunchPlan) -> None:
        if not self._spawning:
            return  # it was given up in the very moment of its completion
        if self._stop:
            self._spawning = False
            self._s.release_internal(self.instance)
            self._after_stop(None)
            return
        self._set(State.STARTING, "loading the model", self.instance.actor)
        self.instance.started = time.time()
        self._background(self._errands.spawn(plan))

    def _on_start_failed(self, error: LlamaManError) -> None:
        if not self._spawning:
            return
        self._spawning = False
        instance = self.instance
        self._s.release_internal(instance)
        if self._stop:
            self._after_stop(None)
            return
        now = time.monotonic()
        if isinstance(error, fetching.FetchFailed):
            hold_s = error.retry_after or fetching.HOLD_S
            self._s.breaker.hold(instance.config_hash, error.message, hold_s, now)
        elif not isinstance(error, RuntimeLost):  # neither is the model's fault
            self._s.breaker.death(instance.config_hash, error.message, now)
        self._fail(error.message)

    async def _begin_readiness(self, handle: Handle, adopted: str | None = None) -> None:
        """Watch it and wait for its first answer.

        :param adopted: the reason to show where it was not started just now.
        """
        await self._engine.attach(handle)
        self._adopted = adopted is not None
        if adopted is not None:
            self._set(State.STARTING, adopted, "boot")
        self._engine.await_ready()
        self._background(self._errands.guard_memory(self.instance.generation))

    def _on_ready(self, ready: m.Ready) -> None:
        instance = self.instance
        if instance.state is not State.STARTING or self._stop:
            return
        instance.slots = ready.slots or int(instance.options.get("parallel") or 1)
        instance.context_length = ready.context_length
        instance.facts = ready.engine
        instance.ready_at = time.time()
        instance.last_release = time.monotonic()
        instance.failures = 0
        instance.frozen = None
        if instance.started and not self._adopted:
            instance.load_seconds = round(instance.ready_at - instance.started, 3)
        self._s.breaker.success(instance.config_hash)
        self._set(State.READY, "ready", instance.actor)
        self._background(self._notes.will())
        self._arm_idle()
        self._engine.look_after()

    def _on_not_ready(self, news: m.NotReady) -> None:
        if self.instance.state is not State.STARTING or self._stop:
            return
        if self._lost:
            self._engine.await_ready()
            return
        self._s.breaker.death(self.instance.config_hash, news.reason, time.monotonic())
        self._end_process(m.Stop("stopped", "supervisor", news.reason, 0, grace_s=news.grace_s))

    # --- ending --------------------------------------------------------------------------------------

    def _on_exited(self, exit_: Exit) -> None:
        instance = self.instance
        if instance.state is State.STOPPING or instance.handle is None:
            return  # the stop reports its own exit
        instance.last_exit = exit_
        guilty = crash.culprit(exit_, instance.inside)  # now: they leave as soon as they see that it is gone
        instance.excused = guilty is not None and guilty.blamed(instance)
        if instance.client:
            instance.client.abort()
        self._background(self._errands.diagnose(instance.generation, exit_))

    def _on_diagnosed(self, news: m.Diagnosed) -> None:
        instance = self.instance
        if instance.state is State.STOPPING or instance.handle is None:
            return  # a stop was faster than the search for the cause
        was_running = instance.state in _RUNNING
        had_failed = instance.state is State.FAILED
        self._process_gone()
        if had_failed:  # a stop had failed before; its reason is history now
            self._fail(f"its process ended only after its stop had failed: {news.cause}")
            return
        if self._stop:
            self._after_stop(news.exit)
            return
        instance.crashes += 1
        if not was_running:
            self._s.breaker.death(instance.config_hash, news.cause, time.monotonic())
            self._fail(news.cause)
            return
        if instance.ready_at and time.time() - instance.ready_at > STEADY_S:
            instance.restarts = 0
        given_up = instance.restarts >= MOST_RESTARTS
        if given_up or instance.options.get("restart_policy") != "on-failure":
            if given_up or not instance.excused:
                self._s.breaker.death(instance.config_hash, news.cause, time.monotonic())
            self._fail(news.cause)
            return
        pause = min(FIRST_BACKOFF_S * 2**instance.restarts, LONGEST_BACKOFF_S)
        instance.restarts += 1
        self._set(State.BACKOFF, f"{news.cause}; restarting in {pause:.0f} s", "supervisor")
        self._background(self._notes.will())
        self._arm_retry(pause)

    def _on_retry(self) -> None:
        if self.instance.state is not State.BACKOFF:
            return
        if self._lost:
            self._arm_retry(LOST_PAUSE_S)
            return
        self._begin_start("supervisor", "restarting after a crash")

    def _arm_retry(self, pause_s: float) -> None:
        self._timers.arm("retry", pause_s, m.Retry(self.instance.generation))

    @property
    def leaving(self) -> bool:
        """Whether a stop is under way or will be as soon as its process can be stopped."""
        return self._stop is not None or self.instance.state in (State.STOPPING, State.DRAINING)

    @property
    def is_busy(self) -> bool:
        """Whether its engine is, or may be about to be, started or stopped: what others see of it means nothing."""
        return (
            self._inbox.is_busy
            or self._spawning
            or self._stop is not None
            or self.instance.state is State.STOPPING
        )

    async def _on_stop(self, stop: m.Stop) -> None:
        instance = self.instance
        if (reason := self._lost) and stop.actor not in _BACK_ALREADY and self._refuses_stops:
            self.stop_error = RuntimeLost(f"it cannot be stopped now: {reason}", retry_after=LOST_RETRY_S)
            m.answer(stop)
            return
        self.stop_error = None
        if stop.done:
            self._stop_waiters.append(stop.done)
        if instance.state in STILL and (stop.give_up or stop.target == "sleeping") and not instance.handle:
            self._answer_stops(done=True)  # it has gone meanwhile, in its own way
            return
        if stop.give_up:
            if instance.state is State.FAILED:
                self._answer_stops(done=True)
                return
            if self._stop and not self._stop.give_up:
                return  # it is leaving anyway, and for good
        else:
            stop = m.not_weaker(stop, self._stop)
            instance.desired = stop.target
            # Durable before anything is ended, so that the next manager completes a stop under way.
            await self._notes.may("its stop")
        self._want = None
        match instance.state:
            case State.READY | State.DRAINING:
                self._stop = stop
                self._begin_drain(stop)
            case State.STOPPING:
                self._stop = stop
            case State.QUEUED | State.PREPARING | State.STARTING:
                self._stop = stop
                if instance.fetching:
                    self._abandon_fetch()
                elif not self._spawning:
                    self._begin_stop()
            case State.SLEEPING | State.STOPPED | State.FAILED | State.BACKOFF:
                self._timers.cancel_all()
                self._stop = stop
                if instance.handle:  # an earlier stop failed
                    self._begin_stop()
                else:
                    self._after_stop(instance.last_exit)

    def _begin_drain(self, stop: m.Stop) -> None:
        if self.instance.active == 0 or stop.drain_s <= 0:
            self._begin_stop()
            return
        self._set(State.DRAINING, f"{stop.reason}; waiting for {self.instance.active} running", stop.actor)
        self._timers.arm("drain", stop.drain_s, m.DrainOver(self.instance.generation, expired=True))

    def _on_drain_over(self, *, expired: bool) -> None:
        if self.instance.state is not State.DRAINING or self._stop is None:
            return
        self._timers.cancel("drain")
        if expired and self._stop.give_up:
            self._stop = None
            self._answer_stops(done=False)
            self._set(State.READY, "kept: requests were still running", "supervisor")
            self._background(self._notes.will())
            self.rearm_idle()  # its timer may have fired in vain meanwhile
        else:
            self._begin_stop()

    def _begin_stop(self) -> None:
        assert self._stop is not None
        self._end_process(self._stop)

    def _end_process(self, stop: m.Stop) -> None:
        instance = self.instance
        self._timers.cancel_all()
        self._stop = stop
        self._before_stop = instance.state
        self._set(State.STOPPING, stop.reason, stop.actor)
        self._engine.hurry()
        self._background(self._errands.end(instance.generation, stop.grace_s))

    async def _on_stopped(self, news: m.Stopped) -> None:
        if news.error:
            stop, self._stop, self._want = self._stop, None, None
            self.stop_error = news.error
            self._answer_stops(done=False)
            if isinstance(news.error, RuntimeLost) and self._before_stop in (*_RUNNING, State.STARTING):
                await self._keep(stop, news.error)
            else:
                self._fail(f"could not be stopped: {news.error.message}")
            return
        self._process_gone()
        self._after_stop(news.exit)

    async def _keep(self, stop: m.Stop | None, error: RuntimeLost) -> None:
        """Its runtime was lost in the middle of its stop: go on with it, and see whether it still answers."""
        instance = self.instance
        assert instance.handle is not None
        if stop is None or stop.actor not in _OF_THE_MANAGER:
            instance.desired = "running"
        self._background(self._notes.will())
        self._engine.detach()
        await self._begin_readiness(instance.handle, f"could not be stopped: {error.message}")

    def _after_stop(self, exit_: Exit | None) -> None:
        stop = self._stop
        assert stop is not None
        self._stop = None
        instance = self.instance
        instance.last_exit = exit_
        if stop.actor == "supervisor":
            self._fail(stop.reason)
            return
        instance.desired = stop.target
        state = State.SLEEPING if stop.target == "sleeping" else State.STOPPED
        self._set(state, stop.reason, stop.actor)
        self._settle(state)
        if self._want:  # now, not through the inbox: a stop that waits there came later and wins
            want, self._want = self._want, None
            self._on_want(want)

    def _settle(self, state: State) -> None:
        """Make the outcome durable and give the port back before those are told who waited for it.

        Whoever asks for a stop from now on waits for the outcome of that one.
        """
        self.instance.keep_alive_s = None
        waiters, self._stop_waiters = self._stop_waiters, []
        self._background(self._store_outcome(state)).add_done_callback(lambda _: m.tell(waiters, done=True))

    async def _store_outcome(self, state: State) -> None:
        if state in (State.STOPPED, State.FAILED):
            await self._s.release_port(self.instance)
        await self._notes.will()

    def _process_gone(self) -> None:
        self._engine.detach()
        self.instance.handle = None
        self.instance.slots = None
        self._s.release_internal(self.instance)

    def _fail(self, reason: str) -> None:
        self._timers.cancel_all()
        self._set(State.FAILED, reason, "supervisor")
        self._settle(State.FAILED)

    # --- while it runs -------------------------------------------------------------------------------

    def released(self) -> None:
        """A request has left; called by the pool for each one, so it does nothing that costs."""
        if self.instance.state is State.DRAINING and self.instance.active == 0:
            self.post(m.DrainOver(self.instance.generation, expired=False))

    def _arm_idle(self) -> None:
        timeout = self.instance.idle_s = self._s.idle_timeout_s(self.instance)
        if timeout > 0:
            self._timers.arm("idle", timeout, m.Idle(self.instance.generation))

    def _on_idle(self) -> None:
        instance = self.instance
        timeout = self._s.idle_timeout_s(instance)
        if instance.state is not State.READY or timeout <= 0:
            return
        idle_for = time.monotonic() - (instance.last_release or 0)
        if self._lost or instance.active or instance.queued or idle_for < timeout:
            wait = timeout if instance.active or instance.queued else timeout - idle_for
            if self._lost:
                wait = max(wait, LOST_PAUSE_S)
            self._timers.arm("idle", max(wait, 0.05), m.Idle(instance.generation))
            return
        instance.desired = "sleeping"
        self._end_process(m.Stop("sleeping", "idle", _idle_reason(instance, timeout), 0))

    def options_changed(self) -> None:
        """Live options changed: note them, and look at the idle time again."""
        self._background(self._notes.will())
        self.rearm_idle()

    def rearm_idle(self) -> None:
        """Its idle time may be another one now."""
        self._timers.cancel("idle")
        if self.instance.state is State.READY:
            self._arm_idle()

    def _on_suspect(self) -> None:
        if self.instance.state is State.READY and self.instance.client:
            self._background(self._errands.check_wedged(self.instance.generation))

    def _on_wedged(self) -> None:
        if self.instance.state is State.READY and not self._lost:
            self._replace("the engine no longer answers", "restarting a wedged engine")

    def _on_frozen(self, news: m.Frozen) -> None:
        instance = self.instance
        if instance.state is not State.READY or self._lost:
            return
        instance.frozen = news
        if guilty := crash.alone(news.suspects):
            guilty.blamed(instance)
        self._replace(
            f"frozen: the engine got no further for {news.silent_s:g} s (instances.frozen_after_s)",
            "restarting a frozen engine",
        )

    def _replace(self, reason: str, want: str) -> None:
        """End what does not work any more, and start it again; those who queue wait for that."""
        self._want = m.Want("supervisor", want)
        self._end_process(m.Stop("sleeping", "watchdog", reason, 0, grace_s=m.SHORT_GRACE_S))

    # --- small things --------------------------------------------------------------------------------

    @property
    def _lost(self) -> str | None:
        return self._s.lost(self.instance.runtime)

    @property
    def _refuses_stops(self) -> bool:
        """Whether there is an engine, or may be one, that could not be reached; one that ends already does so."""
        instance = self.instance
        if instance.unsettled:
            return True
        if instance.state is State.STOPPING:
            return False
        return instance.handle is not None or instance.state is State.STARTING

    def _set(self, state: State, reason: str, actor: str) -> None:
        previous, self.instance.state = self.instance.state, state
        self.instance.fetching = None
        self.instance.reason = reason
        self.instance.actor = actor
        self._s.changed(self.instance, previous)

    def _answer_stops(self, *, done: bool) -> None:
        waiters, self._stop_waiters = self._stop_waiters, []
        m.tell(waiters, done=done)

    def _background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._inbox.background(work)


def _idle_reason(instance: Instance, timeout_s: float) -> str:
    return "unloaded by a client" if instance.keep_alive_s == 0 else f"idle for {timeout_s / 60:g} min"
