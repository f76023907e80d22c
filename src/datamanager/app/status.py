"""Everything that tells whether the data is safe, gathered within about a second; never fails.

Configuration, backup locations and state are read at once. A location that does not answer in time is left out; then
what was last seen of it counts, and its age is said.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from datamanager.app.context import Context
from datamanager.app.in_place_notes import read_note
from datamanager.app.looking import Look, start_looks, wait
from datamanager.app.planner_file import PlannerBeat, read_beat
from datamanager.app.recalling import ClusterHistory, Recalled, start_recalling
from datamanager.app.verdict import Verdict, judge
from datamanager.app.verdict_facts import (
    BackupFact,
    ClusterFacts,
    ProofFact,
    RepositoryFacts,
    RestoreFact,
    Situation,
    Trouble,
)
from datamanager.app.wal_looking import WalLook, forgotten_slots, slots_left, start_wal_looks, wait_wal, wal_facts
from datamanager.base.errors import DataManagerError
from datamanager.config.durations import parse_duration
from datamanager.config.model import Config
from datamanager.jobs.services_around import services_down

# How long locations are waited for: with the start of the program an answer within about a second.
QUICK_SECONDS = 0.7
# The state is a file of this computer or a server that must answer: without it nothing is known of schedules.
_STATE_SECONDS = 5.0
# What was seen is written down after it was read; an answer does not wait long for that.
_REMEMBER_SECONDS = 0.5


@dataclass(frozen=True)
class Status:
    """The verdict, and all that it was made from.

    Args: looks - None for no location; recalled - None when the configuration cannot be read.
    """

    verdict: Verdict
    situation: Situation
    looks: Sequence[Look] = ()
    recalled: Recalled | None = None
    planner: PlannerBeat | None = None

    def history(self, cluster: str) -> ClusterHistory:
        """What the state tells of a cluster; nothing where it cannot be read."""
        return (self.recalled.clusters.get(cluster) if self.recalled else None) or ClusterHistory()


def gather(context: Context, cluster: str | None = None, *, patience_seconds: float = QUICK_SECONDS) -> Status:
    """Look at everything and judge it.

    Args: cluster - only this one; patience_seconds - how long backup locations are waited for.
    Raises: NotFound, for a cluster that is not configured. Whatever else is broken is in the verdict.
    """
    situation = Situation(context.clock.now(), services_down=services_down(context.home.services), clusters=None)
    try:
        config = context.config()
    except DataManagerError as error:
        sentence = f"The configuration cannot be read: {error.message}."
        situation = replace(situation, troubles=[Trouble("configuration", sentence, "datamanager config show")])
        return Status(judge(situation), situation)
    if cluster is not None:
        context.cluster(cluster)
    wanted = {name: one.repository for name, one in config.clusters.items() if cluster in (None, name)}
    looks = start_looks(context, config.repositories, wanted)
    archives = start_wal_looks(context, {name: config.clusters[name] for name in sorted(wanted)})
    recalled = start_recalling(context, _with_only_repository(wanted, config), looks)
    began = time.monotonic()
    wait(looks, patience_seconds)
    wait_wal(archives, began + patience_seconds - time.monotonic())
    recalled.read.wait(_STATE_SECONDS)
    recalled.ended.wait(_REMEMBER_SECONDS)
    beat = read_beat(context.home.planner_file)
    alive = beat is not None and beat.alive(situation.now)
    situation = replace(
        situation,
        clusters=[
            replace(
                _with_wal(_cluster_facts(name, looks, recalled), archives, looks, situation.now),
                restore=_cut_off(context, name),
            )
            for name in sorted(wanted)
        ],
        forgotten_slots=forgotten_slots(context, config.clusters) if cluster is None else {},
        repositories=[_repository_facts(look, recalled) for look in looks],
        troubles=_troubles(recalled),
        planner_alive=alive,
        planner_died=None if beat is None or alive else beat.time,
        proof_limit=parse_duration(config.proof.limit),
    )
    return Status(judge(situation), situation, looks, recalled, beat)


def _with_wal(facts: ClusterFacts, archives: Sequence[WalLook], looks: Sequence[Look], now: datetime) -> ClusterFacts:
    look = next((one for one in archives if one.cluster == facts.name), None)
    if look is None:
        return facts
    seen = [one.wal[facts.name] for one in looks if facts.name in one.wal]
    filled = [(one.newest, one) for one in seen if one.newest is not None]
    newest = max(filled, key=lambda one: one[0], default=(None, None))[1]
    place = look.beat.repository if look.beat is not None else ""
    ends = next((one.wal[facts.name].ends for one in looks if one.name == place and facts.name in one.wal), None)
    return replace(
        facts,
        wal=wal_facts(look, newest, ends, now),
        slots_left=slots_left(look.watch, wanted=look.wanted or look.alive),
    )


def _cut_off(context: Context, name: str) -> RestoreFact | None:
    note = read_note(context.home, name)
    if note is None or not note.cut_off:
        return None
    return RestoreFact(note.began, note.owes_backup, note.error, note.command)


def _with_only_repository(clusters: dict[str, str | None], config: Config) -> dict[str, str | None]:
    only = next(iter(config.repositories)) if len(config.repositories) == 1 else None
    return {name: repository or only for name, repository in clusters.items()}


def _troubles(recalled: Recalled) -> list[Trouble]:
    if not recalled.failure:
        return []
    sentence = f"The history of runs and schedules cannot be read: {recalled.failure}."
    return [Trouble("state", sentence, "datamanager config get state.url")]


def _repository_facts(look: Look, recalled: Recalled) -> RepositoryFacts:
    known = recalled.repositories.get(look.name)
    return RepositoryFacts(
        look.name, look.failure, known.seen if known else None, recalled.rhythms.get(look.name), look.has_damage
    )


def _cluster_facts(name: str, looks: Sequence[Look], recalled: Recalled) -> ClusterFacts:
    history = recalled.clusters.get(name)
    seen = [look.newest[name] for look in looks if name in look.newest]
    newest = max(seen, key=lambda one: one.ended, default=None)
    damaged = max((one.newest_damaged[name] for one in looks if name in one.newest_damaged), key=_ended, default=None)
    if damaged is not None and newest is not None and damaged.ended <= newest.ended:
        damaged = None
    facts = ClusterFacts(
        name,
        newest=newest,
        newest_damaged=damaged,
        unsure=next((f"backup location {one.name}: {one.failure}" for one in looks if one.failure), ""),
        places=len(seen),
        schedules=None,
    )
    tests = [test for one in looks for test in one.tests.get(name, ())]
    if history is None:
        return _with_tests(facts, tests)
    facts = replace(
        facts,
        schedules=history.schedules,
        has_disabled=history.has_disabled,
        running=history.running,
        failed=history.failed,
        failed_test_run=history.failed_test_run,
        declined=history.declined,
    )
    return _with_tests(_with_remembered(facts, history, looks, recalled), [*tests, *history.tests])


def _ended(fact: BackupFact) -> float:
    return fact.ended.timestamp()


def _with_tests(facts: ClusterFacts, tests: Sequence[ProofFact]) -> ClusterFacts:
    """What test restores showed of this very cluster: not of one before an upgrade, nor of another of its name."""
    own = facts.newest.system_identifier if facts.newest is not None else ""
    found = [one for one in tests if not own or one.system_identifier in (own, "")]
    if not found:
        return facts
    latest = _measured(max(found, key=lambda one: one.time), found)
    # That an older backup came back says nothing about a newer one that did not; names begin with their time.
    of_newest = max(found, key=lambda one: (one.backup, one.time))
    test = latest if of_newest.passed or not latest.passed else of_newest
    passed = max((one for one in found if one.passed), key=lambda one: one.time, default=None)
    return replace(facts, test=test, passed_test=None if passed is None else _measured(passed, found))


def _measured(test: ProofFact, known: Sequence[ProofFact]) -> ProofFact:
    """With how long it took, which only the state knows, where a location tells of the same one or a newer one."""
    same = (one for one in known if one.backup == test.backup and one.passed == test.passed)
    measured = [one for one in same if one.restore_seconds is not None]
    if test.restore_seconds is not None or not measured:
        return test
    newest = max(measured, key=lambda one: one.time)
    return replace(test, restore_seconds=newest.restore_seconds, job=newest.job)


def _with_remembered(
    facts: ClusterFacts, history: ClusterHistory, looks: Sequence[Look], recalled: Recalled
) -> ClusterFacts:
    """What was last known, where its place cannot be read now and nothing newer was seen."""
    silent = {look.name for look in looks if look.failure}
    told = []
    if history.known is not None and history.known.newest_backup_time is not None:
        known = history.known
        time = history.known.newest_backup_time
        fact = BackupFact(
            *(known.newest_backup, time, time, known.repository), system_identifier=known.system_identifier
        )
        told.append((fact, known.seen))
    if history.last_made is not None and not _was_looked_for(history.last_made, recalled):
        told.append((history.last_made, history.last_made.ended))
    told = [one for one in told if one[0].repository in silent]
    if not told:
        return facts
    newest, seen = max(told, key=lambda one: one[0].ended)
    if facts.newest is not None and newest.ended <= facts.newest.ended + timedelta(seconds=1):
        return facts
    return replace(facts, newest=newest, seen=seen)


def _was_looked_for(made: BackupFact, recalled: Recalled) -> bool:
    """Whether its place was looked at after it was made: then what was seen there counts, for it may be deleted."""
    known = recalled.repositories.get(made.repository)
    return known is not None and known.seen is not None and known.seen > made.ended
