"""What the state tells about schedules, runs and test restores, as the verdict needs it."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from datamanager.app.context import Context
from datamanager.app.looking import Look
from datamanager.app.schedules import called
from datamanager.app.verdict_facts import BackupFact, ProofFact, RunFact, ScheduleFact
from datamanager.base.errors import DataManagerError
from datamanager.base.events import Event
from datamanager.base.pipeline import StopToken
from datamanager.schedule.recurrence import Recurrence
from datamanager.state.database import State
from datamanager.state.finding import RECOMMENDATIONS, declined_fact
from datamanager.state.model import Job, JobState, KnownCluster, KnownRepository, Proof, Schedule, Trigger

BACKUP, TEST = "backup run", "drill run"
# A planned backup has this long to begin and end, and twice the time of the longest of the last runs.
_GRACE = timedelta(hours=1)
# One that runs longer than this is not waited for.
_LONGEST_RUN = timedelta(days=1)
_LOOKED_BACK = timedelta(days=40)
_TESTS_READ = 100
_ENDED = (JobState.DONE, JobState.WARNED, JobState.FAILED)
# What a person at a terminal did wrong and saw at once: usage, no such name, busy, stopped.
_SEEN_BY_THE_PERSON = (2, 11, 12, 130)
# How old what was written down may be before the same is written down again.
_REMEMBERED_ANEW = timedelta(minutes=10)


@dataclass(frozen=True)
class ClusterHistory:
    """What the state tells of one cluster; see ``ClusterFacts``.

    Args: last_made - the newest backup that a run told of; backup_seconds - how long the last ones took, newest first.
    """

    schedules: Sequence[ScheduleFact] = ()
    has_disabled: str = ""
    running: bool = False
    failed: Sequence[RunFact] = ()
    tests: Sequence[ProofFact] = ()
    failed_test_run: RunFact | None = None
    declined: Mapping[str, str] = field(default_factory=dict)
    known: KnownCluster | None = None
    last_made: BackupFact | None = None
    last_run: Job | None = None
    last_test: Proof | None = None
    backup_seconds: Sequence[float] = ()


@dataclass
class Recalled:
    """Everything that the state told; filled by a thread. Args: error - why it could not be read."""

    stop: StopToken
    clusters: dict[str, ClusterHistory] = field(default_factory=dict)
    repositories: dict[str, KnownRepository] = field(default_factory=dict)
    rhythms: dict[str, timedelta] = field(default_factory=dict)
    queued: int = 0
    running: int = 0
    complete: bool = False
    error: str = ""
    hint: str = ""
    read: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def failure(self) -> str:
        return "" if self.complete else self.error or "it does not answer"


def start_recalling(context: Context, clusters: Mapping[str, str | None], looks: Collection[Look]) -> Recalled:
    """Read the state in a thread, then write down what ``looks`` found, once they have ended.

    Args: clusters - the name of each, with that of its backup location.
    """
    recalled = Recalled(StopToken())
    arguments = (context, dict(clusters), tuple(looks), recalled)
    threading.Thread(target=_run, args=arguments, name="read state", daemon=True).start()
    return recalled


def _run(context: Context, clusters: Mapping[str, str | None], looks: Sequence[Look], recalled: Recalled) -> None:
    try:
        with recalled.stop, replace(context, stop=recalled.stop, listener=_unheard).state() as state:
            _recall(state, clusters, context.clock.now(), recalled)
            recalled.complete = True
            recalled.read.set()
            for look in looks:
                while not look.ended.wait(0.05) and not look.stop.stopping:
                    pass
            with contextlib.suppress(DataManagerError):  # an account that may only read asks for a status, too
                remember(state, looks, recalled, context.clock.now())
    except DataManagerError as error:
        recalled.error, recalled.hint = error.message, error.hint
    except Exception as error:  # noqa: BLE001 - a status is given whatever a broken database makes of us
        recalled.error = f"{type(error).__name__}: {error}"
    finally:
        recalled.read.set()
        recalled.ended.set()


def _unheard(event: Event) -> None:
    """Nobody is told how the state was read."""


# -- reading -----------------------------------------------------------------------------------------------------------
def _recall(state: State, clusters: Mapping[str, str | None], now: datetime, recalled: Recalled) -> None:
    schedules = [one for one in state.schedules.list() if one.request.kind == BACKUP]
    running = state.jobs.running()
    recalled.queued, recalled.running = len(state.jobs.queued()), len(running)
    recalled.repositories = {one.name: one for one in state.known.repositories()}
    for name, repository in clusters.items():
        own = [one for one in schedules if one.request.subject == name]
        recalled.clusters[name] = _history(state, name, own, running, now)
        for one in own:
            rhythm = rhythm_of(one, now) if one.enabled else None
            target = target_of(one, repository)
            if rhythm is not None and target is not None:
                recalled.rhythms[target] = min(rhythm, recalled.rhythms.get(target, rhythm))


def _history(
    state: State, name: str, schedules: Sequence[Schedule], running: Sequence[Job], now: datetime
) -> ClusterHistory:
    making = [one for one in running if one.request.kind == BACKUP and one.request.subject == name]
    seconds = [each for each, _ in state.jobs.durations(BACKUP, name)]
    grace = _GRACE + timedelta(seconds=2 * max(seconds, default=0.0))
    enabled = [one for one in schedules if one.enabled]
    last = {one.name: _last_of(state, one.name) for one in enabled}
    proofs = state.proofs.list(name, _TESTS_READ)
    proof, passed = proofs[0] if proofs else None, state.proofs.last(name, passed=True)
    good = state.jobs.last(kind=BACKUP, subject=name, states=[one for one in _ENDED if one.good])
    newest = _last_told(state, name)
    return ClusterHistory(
        schedules=[_schedule_fact(one, called(state, one.name), making, grace, now) for one in enabled],
        has_disabled=next((one.name for one in schedules if not one.enabled), ""),
        running=bool(making),
        failed=_failed(newest, list(last.values()), good),
        tests=[_test_fact(one) for one in (*proofs, passed) if one is not None],
        failed_test_run=_failed_test(state, name, proof),
        declined={kind: reason for kind in RECOMMENDATIONS if (reason := _declined(state, f"{kind}:{name}"))},
        known=state.known.cluster(name),
        last_made=_made_by(good),
        last_run=newest,
        last_test=proof,
        backup_seconds=seconds,
    )


def _last_of(state: State, schedule: str) -> Job | None:
    found = state.jobs.list(schedule=schedule, states=_ENDED, limit=1)
    return found[0] if found else None


def _last_told(state: State, cluster: str) -> Job | None:
    """The newest backup run that is worth telling of."""
    for job in state.jobs.list(kind=BACKUP, subject=cluster, states=_ENDED, limit=10):
        seen = job.request.trigger is Trigger.PERSON and job.exit_code in _SEEN_BY_THE_PERSON
        if not (job.state is JobState.FAILED and seen):
            return job
    return None


def _failed(newest: Job | None, of_schedules: Sequence[Job | None], good: Job | None) -> list[RunFact]:
    """Failed runs that no later good one to the same place has mended; each once."""
    found: dict[str, RunFact] = {}
    for job in [*of_schedules, newest]:
        if job is None or job.state is not JobState.FAILED or _mended(job, good):
            continue
        cause = job.cause or job.summary
        found.setdefault(job.id, RunFact(job.id, job.ended or job.queued, cause, job.request.schedule or ""))
    return list(found.values())


def _mended(failed: Job, good: Job | None) -> bool:
    if good is None or good.queued <= failed.queued:
        return False
    target = failed.request.option("--repo")
    return target is None or target == good.result.get("repository")


def _made_by(job: Job | None) -> BackupFact | None:
    if job is None or job.ended is None or not job.result.get("backup_id"):
        return None
    started = job.started or job.queued
    return BackupFact(str(job.result["backup_id"]), started, job.ended, str(job.result.get("repository", "")))


def _test_fact(proof: Proof) -> ProofFact:
    return ProofFact(
        *(proof.backup, proof.time, proof.passed, proof.restore_seconds, proof.finding, proof.job),
        system_identifier=proof.system_identifier,
    )


def _failed_test(state: State, cluster: str, proof: Proof | None) -> RunFact | None:
    """The newest test restore, when it ended without showing anything."""
    job = state.jobs.last(kind=TEST, subject=cluster, states=_ENDED)
    if job is None or job.state is not JobState.FAILED or (proof is not None and proof.job == job.id):
        return None
    if job.request.trigger is Trigger.PERSON and job.exit_code in _SEEN_BY_THE_PERSON:
        return None
    time = job.ended or job.queued
    if proof is not None and proof.time >= time:
        return None
    return RunFact(job.id, time, job.cause or job.summary)


def _declined(state: State, key: str) -> str:
    text = state.alerts.value(declined_fact(key))
    return str(json.loads(text).get("reason", "")) if text else ""


# -- schedules ---------------------------------------------------------------------------------------------------------
def _schedule_fact(
    schedule: Schedule, called: datetime | None, making: Sequence[Job], grace: timedelta, now: datetime
) -> ScheduleFact:
    recurrence = Recurrence.from_json(schedule.recurrence)
    since = max(schedule.changed, now - _LOOKED_BACK)
    planned = [one for one in recurrence.between(since, now - grace) if not _being_made(one, making, now)]
    newest = recurrence.at_or_before(now - grace)
    elsewhere = called is not None and (newest is None or called >= newest)
    return ScheduleFact(
        *(schedule.name, tuple(planned), rhythm_of(schedule, now), schedule.caught_up, elsewhere),
        next_run=recurrence.after(now),
    )


def _being_made(planned: datetime, making: Sequence[Job], now: datetime) -> bool:
    return now - planned < _LONGEST_RUN and any((job.started or job.queued) >= planned for job in making)


def rhythm_of(schedule: Schedule, now: datetime) -> timedelta | None:
    """The longest time between two of the next moments; None when there is none or one more."""
    recurrence = Recurrence.from_json(schedule.recurrence)
    moments: list[datetime] = []
    while len(moments) < 8 and (later := recurrence.after(moments[-1] if moments else now)) is not None:
        moments.append(later)
    return max((second - first for first, second in itertools.pairwise(moments)), default=None)


def target_of(schedule: Schedule, repository: str | None) -> str | None:
    """The backup location that a schedule names, else that of its cluster."""
    return schedule.request.option("--repo") or repository


# -- remembering -------------------------------------------------------------------------------------------------------
def remember(state: State, looks: Collection[Look], recalled: Recalled, now: datetime) -> None:
    """Write down what was seen, for when it cannot be seen. Raises: StateError."""
    for look in looks:
        if not look.complete:
            continue
        before = recalled.repositories.get(look.name)
        seen = KnownRepository(
            look.name,
            look.url,
            look.repository_id,
            look.backups,
            stored_bytes=before.stored_bytes if before else None,
            free_bytes=look.free_bytes,
            seen=now,
        )
        if before is None or _is_news(replace(before, free_bytes=None), replace(seen, free_bytes=None)):
            state.known.put_repository(seen)
    complete = {look.name for look in looks if look.complete}
    silent = {look.name for look in looks} - complete
    for name, history in recalled.clusters.items():
        found = [(look.newest[name], look) for look in looks if look.complete and name in look.newest]
        known = history.known
        if not found:
            if known is not None and known.repository in complete and known.newest_backup:
                gone = replace(known, newest_backup="", newest_backup_time=None, repository="", seen=now)
                state.known.put_cluster(gone)
            continue
        newest, look = max(found, key=lambda one: one[0].ended)
        away = known.newest_backup_time if known is not None and known.repository in silent else None
        if away is not None and away > newest.ended:
            continue  # what is away is newer
        manifest = look.manifests[name]
        told = replace(
            known or KnownCluster(name),
            system_identifier=str(manifest.system_identifier),
            server_version=manifest.version,
            size_bytes=manifest.total_bytes,
            newest_backup=newest.backup,
            newest_backup_time=newest.ended,
            repository=look.name,
            seen=now,
        )
        if known is None or _is_news(known, told):
            state.known.put_cluster(told)


def _is_news(before: KnownCluster | KnownRepository, after: KnownCluster | KnownRepository) -> bool:
    """Whether anything but the time is new, or the time by more than a little."""
    if before.seen is None or after.seen is None or abs(after.seen - before.seen) >= _REMEMBERED_ANEW:
        return True
    return replace(before, seen=after.seen) != after
