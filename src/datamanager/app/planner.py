"""The planner: once a second it looks what is due, queues it, and lets the worker begin what is queued.

    second   schedules that are due ─► queue ─► worker: begin, look after, take in what has ended
    2 s      sign of life in STATE/planner.json
    5 s      people are told what they should know      10 s  services of killed runs are started again
    minute   leftovers, how busy the servers are, what is too old

It remembers nothing that matters: queued jobs, due moments and runs are in the database and in files, so that a planner
that was killed anywhere is followed by one that goes on.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import psutil

from datamanager.app import around, drills, notifications, status
from datamanager.app.activity import ActivitySampler
from datamanager.app.chores import Chore
from datamanager.app.context import Context
from datamanager.app.http_metrics import MetricsServer
from datamanager.app.jobs import clear_up
from datamanager.app.planner_file import PlannerBeat, write_beat
from datamanager.app.supervisor import ServeOptions
from datamanager.app.wal_looking import stands_still
from datamanager.base.errors import DataManagerError, StateError, StateUnavailable
from datamanager.base.events import Event, Executed, Warned
from datamanager.base.pipeline import StopToken
from datamanager.config.state_url import sqlite_path
from datamanager.jobs.record import FORCE_SECONDS
from datamanager.jobs.run_file import RunFolder
from datamanager.jobs.worker import Worker
from datamanager.notify.courier import Courier
from datamanager.schedule.planner import SETTLE_SECONDS, Replan, Run, Situation, Wait, Watch, decide_one
from datamanager.state.database import State
from datamanager.state.model import Job, Schedule, Trigger
from datamanager.system.processes import end_tree, this_process

WHO = "the service, which was stopped"
_RESTORING, _TELLING = "start services again", "tell people"
_STEP_SECONDS = 1.0
_BEAT_SECONDS = 2.0
_STATE_AGAIN_SECONDS = 5.0
_SAID_AGAIN_SECONDS = 3600.0
_SERVICES_SECONDS, _SERVICES_LIMIT = 10.0, 3600.0
_TELL_SECONDS, _TELL_LIMIT = 5.0, 600.0
_UPKEEP_SECONDS, _UPKEEP_LIMIT = 60.0, 3600.0
# Looking at everything reads each backup location, which may wake a drive.
_LOOK_SECONDS = 300.0
_LOOK_SOONER_SECONDS = 60.0
_PATIENCE_SECONDS = 10.0
_DAY_SECONDS = 86_400.0
# Six years: the retention of documentation that HIPAA asks for (45 CFR 164.316(b)(2)(i)).
_KEPT = timedelta(days=6 * 366)
_CLOCK_SET_SECONDS = 60.0
# What did not end by itself is ended by force meanwhile.
_AFTER_FORCE_SECONDS = FORCE_SECONDS + 4.0
_MOST_SAID = 200


class Planner:
    """One planner at work, until ``context.stop``.

    Args: say - told what happens, a sentence each; log - told of commands and statements that were run.
    """

    def __init__(
        self, context: Context, options: ServeOptions, say: Callable[[str], None], log: Callable[[Event], None]
    ) -> None:
        self._context = replace(context, listener=self._hear)
        self._home = context.home
        self._clock = context.clock
        self._stop = context.stop
        self._options = options
        self._say_now = say
        self._log = log
        self._said: dict[str, float] = {}
        self._said_lock = threading.Lock()
        self._began = context.clock.now()
        self._began_elapsed = context.clock.elapsed()
        self._uptime_at_begin = max(time.time() - psutil.boot_time(), 0.0)
        self._watch = Watch(self._began_elapsed)
        self._offset: float | None = None
        self._waits: dict[str, tuple[datetime | None, datetime]] = {}
        self._beaten = -_BEAT_SECONDS
        self._running = 0
        self._next_due: datetime | None = None
        self._state: State | None = None
        self._state_url: str | None = None
        self._config_stamp: tuple[int, int, int] | None = None
        self._courier = Courier()
        self._sampler = ActivitySampler(self._context)
        # Not at once: one that dies again and again must not say each time that the planner runs.
        self._looked = time.monotonic()
        self._swept = -_DAY_SECONDS
        self._metrics: MetricsServer | None = None
        self._chores: list[Chore] = []
        self._jobs_ended = False
        self.forsaken = False

    def run(self) -> None:
        """Plan until stopping is asked for, then end what runs, unless ``forsaken``: then jobs are left to the next.

        A database that is away is waited for.
        """
        self._beat()
        self._begin_chores()
        try:
            while not self._stop.stopping:
                try:
                    with self._context.state() as state:
                        self._state = state
                        self._plan(state)
                except DataManagerError as error:
                    # Whatever is wrong with configuration or database, people mend it while we wait.
                    self._say(f"Nothing can be planned now: {error.message}. {error.hint}")
                finally:
                    self._state = None
                self._rest(_STATE_AGAIN_SECONDS)
            if not (self.forsaken or self._jobs_ended):
                self._end_jobs_anew()
        finally:
            self._end()

    # -- planning ------------------------------------------------------------------------------------------------------
    def _plan(self, state: State) -> None:
        """Raises: StateUnavailable, StateError."""
        worker = Worker(self._home, state, self._clock, after_force=lambda run: clear_up(self._context, run))
        place = self._place_of_state()
        while not self._stop.stopping:
            if self._place_of_state() != place:
                self._say_now("The state lies elsewhere now; it is opened anew.")
                return
            try:
                self._step(worker, state)
            except StateUnavailable as error:
                self._say(f"The state cannot be reached, so nothing new begins: {error.message}.")
                self._rest(_STATE_AGAIN_SECONDS)
            self._beat()
            self._stop.wait(_STEP_SECONDS)
        if not self.forsaken:
            self._end_jobs(worker, state)

    def _place_of_state(self) -> tuple[str | None, int]:
        """Changes when another database is named, or when its file was moved away or replaced: what people add to the
        new one must be planned, and a file that has no name any more is nobody's history.
        """
        config = _stamp(self._home.config_file)
        if config != self._config_stamp:
            self._config_stamp = config
            with contextlib.suppress(DataManagerError):  # people are about to mend it
                self._state_url = self._context.config().state.url
        path = self._home.state_file if self._state_url is None else sqlite_path(self._state_url)
        return self._state_url, 0 if path is None else _stamp(path)[0]

    def _step(self, worker: Worker, state: State) -> None:
        """Raises: StateUnavailable, StateError."""
        self._queue_due(state)
        self._tell_of(worker.step())
        self._running = worker.running
        self._next_due = state.schedules.next_due()

    def _queue_due(self, state: State) -> None:
        elapsed, now = self._clock.elapsed(), self._clock.now()
        since_begin = elapsed - self._began_elapsed
        situation = Situation(now, self._uptime_at_begin + since_begin, since_begin, self._watch.look(elapsed))
        if self._clock_was_set(now.timestamp() - elapsed):
            self._waits.clear()
            schedules = state.schedules.list()
        else:
            schedules = state.schedules.due(now)
        for schedule in schedules:
            waits = self._waits.get(schedule.name)
            if waits is not None and waits[0] == schedule.next_due and now < waits[1]:
                continue
            try:
                self._deal_with(state, schedule, situation)
            except StateError:
                raise
            except DataManagerError as error:
                self._say(f"The schedule {schedule.name} cannot be understood: {error.message}. {error.hint}")
                self._waits[schedule.name] = (schedule.next_due, now + timedelta(minutes=10))

    def _deal_with(self, state: State, schedule: Schedule, situation: Situation) -> None:
        """Raises: ConfigurationError (the schedule), StateUnavailable, StateError."""
        settle = SETTLE_SECONDS if self._options.settle_seconds is None else self._options.settle_seconds
        decision = decide_one(schedule, situation, settle)
        self._waits.pop(schedule.name, None)
        match decision:
            case Wait(name, until, _):
                if schedule.next_due is not None and schedule.next_due <= situation.now:
                    self._waits[name] = (schedule.next_due, until)
            case Replan():
                _note(state, schedule, decision)
                if decision.message:
                    self._say(decision.message)
            case Run():
                # Queued first: killed in between, the same comes again and is refused as queued already.
                queued = state.jobs.add(decision.request)
                _note(state, schedule, decision)
                self._tell_of_run(decision, queued)

    def _tell_of_run(self, decision: Run, queued: Job | None) -> None:
        if queued is None:
            return
        self._say_now(decision.message or f"{decision.schedule} is due and was queued as {queued.id}.")
        if decision.suggest:
            self._say_now(
                f"{decision.schedule} came late {decision.caught_up} times in a row: the computer is off at its hour. "
                f"`datamanager schedule suggest` finds a better one."
            )

    def _clock_was_set(self, offset: float) -> bool:
        """Whether the wall clock was moved since the last look; also at the first one."""
        before, self._offset = self._offset, offset
        return before is None or abs(offset - before) > _CLOCK_SET_SECONDS

    def _tell_of(self, ended: list[Job]) -> None:
        for job in ended:
            if job.request.trigger is not Trigger.PERSON:
                self._say_now(f"{job.request.kind} {job.request.subject}: {job.state} ({job.id}). {job.summary}")
        if ended:
            for chore in self._chores:
                if chore.name in (_RESTORING, _TELLING):
                    chore.soon()

    # -- ending --------------------------------------------------------------------------------------------------------
    def _end_jobs(self, worker: Worker, state: State) -> None:
        """Let what runs go on for the grace, then end it; what people run at a terminal is theirs.

        Raises: StateUnavailable, StateError.
        """
        deadline = time.monotonic() + self._options.grace_seconds
        while worker.running and time.monotonic() < deadline:
            self._tell_of(worker.step(claiming=False))
            self._beat()
            time.sleep(0.2)
        folder = RunFolder(self._home.runs)
        for job in state.jobs.running():
            if job.pid is not None and _is_ours(job.pid):
                # Begun by a planner that was killed, or by this one before it opened the state anew.
                with contextlib.suppress(OSError):
                    folder.ask_to_cancel(job.id, WHO)
        self._tell_of(worker.stop(WHO, FORCE_SECONDS))
        deadline = time.monotonic() + _AFTER_FORCE_SECONDS
        while worker.running and time.monotonic() < deadline:
            self._tell_of(worker.step(claiming=False))
            self._beat()
            time.sleep(0.2)
        self._jobs_ended = True

    def _end_jobs_anew(self) -> None:
        """The same where the state was not open when stopping was asked for; without it what we began is ended."""
        with StopToken() as own:
            try:
                with replace(self._context, stop=own).state() as state:
                    self._end_jobs(Worker(self._home, state, self._clock), state)
            except DataManagerError as error:
                self._say(f"The jobs that run are ended by force: {error.message}.")
                for child in psutil.Process().children():
                    end_tree(child.pid, FORCE_SECONDS)

    def _end(self) -> None:
        for chore in self._chores:
            chore.join(2.0)
        if self._metrics is not None:
            self._metrics.close()
        if not self.forsaken:
            self._home.planner_file.unlink(missing_ok=True)

    def _rest(self, seconds: float) -> None:
        """Wait, and go on saying that we live."""
        until = time.monotonic() + seconds
        while not self._stop.stopping and time.monotonic() < until:
            self._beat()
            self._stop.wait(_STEP_SECONDS)

    # -- saying --------------------------------------------------------------------------------------------------------
    def _beat(self) -> None:
        """Say that we live, unless something hangs that only a new planner can mend."""
        elapsed = time.monotonic()
        if elapsed - self._beaten < _BEAT_SECONDS:
            return
        for chore in self._chores:
            if chore.hangs:
                self._say(f"{chore.name}: it hangs, so the planner begins anew.")
                return
        self._beaten = elapsed
        beat = PlannerBeat(self._clock.now(), this_process(), self._began, self._running, self._next_due)
        with contextlib.suppress(OSError):  # a full disk must not end the planning
            write_beat(self._home.planner_file, beat)

    def _say(self, text: str) -> None:
        """Tell, and not again within the hour."""
        now = time.monotonic()
        with self._said_lock:
            if now - self._said.get(text, -_SAID_AGAIN_SECONDS) < _SAID_AGAIN_SECONDS:
                return
            if len(self._said) >= _MOST_SAID:
                self._said.clear()
            self._said[text] = now
        self._say_now(text)

    def _hear(self, event: Event) -> None:
        match event:
            case Warned(message):
                self._say(f"{message}.")
            case Executed():
                self._log(event)

    # -- beside planning -----------------------------------------------------------------------------------------------
    def _begin_chores(self) -> None:
        for name, every_seconds, limit_seconds, work in (
            (_RESTORING, _SERVICES_SECONDS, _SERVICES_LIMIT, self._restore_services),
            (_TELLING, _TELL_SECONDS, _TELL_LIMIT, self._tell),
            ("keep house", _UPKEEP_SECONDS, _UPKEEP_LIMIT, self._keep_house),
        ):
            self._chores.append(Chore(name, every_seconds, limit_seconds, work, self._stop, self._say))

    def _restore_services(self) -> None:
        around.restore_services(self._context)

    def _tell(self) -> None:
        state = self._state
        if state is None:
            return
        findings, verdict = None, ""
        since = time.monotonic() - self._looked
        if since >= _LOOK_SECONDS or (since >= _LOOK_SOONER_SECONDS and self._is_urgent()):
            self._looked = time.monotonic()
            found = status.gather(self._context, patience_seconds=_PATIENCE_SECONDS).verdict
            findings, verdict = found.findings, found.sentence
        told = notifications.tell(self._context, state, self._courier, findings=findings, verdict=verdict)
        for warning in told.warnings:
            self._say(f"{warning}.")

    def _is_urgent(self) -> bool:
        """Whether people may have to be told of something that cannot wait for the next look."""
        if around.services_down(self._context):
            return True
        with contextlib.suppress(DataManagerError):
            return stands_still(self._context)
        return False

    def _keep_house(self) -> None:
        self._serve_metrics()
        state = self._state
        if state is None:
            return
        self._sampler.look(state)
        if time.monotonic() - self._swept >= _DAY_SECONDS:
            self._swept = time.monotonic()
            for folder in drills.sweep(self._context):
                self._say_now(f"Removed {folder}, which a killed test restore had left.")
            state.jobs.drop_before(self._clock.now() - _KEPT)

    def _serve_metrics(self) -> None:
        port = self._options.metrics_port
        if port is None or self._metrics is not None:
            return
        self._metrics = MetricsServer(self._context, port)
        self._say_now(f"Metrics are served on {self._metrics.url}/metrics.")


def _stamp(path: Path) -> tuple[int, int, int]:
    """Which file it is, and what changes when it is written; zeros for none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_mtime_ns, status.st_size


def _note(state: State, schedule: Schedule, decision: Run | Replan) -> None:
    """Someone may be changing the schedule this moment: then nothing is noted, and it is looked at again."""
    state.schedules.dealt_with(schedule.name, decision.last_due, decision.next_due, decision.caught_up, of=schedule)


def _is_ours(pid: int) -> bool:
    """Whether a planner began a job, this one or one that is gone; a person's own command is not ours."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid).parent()
        return parent is None or parent.pid == os.getpid() or "datamanager" not in " ".join(parent.cmdline())
    return False
