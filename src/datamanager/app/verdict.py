"""Is the data safe? From what is known to findings, one sentence and an exit code; pure.

    not protected  1   no database server, no enabled schedule, no backup, two planned backups in a row missing, a test
                       restore that failed or is too long ago, a planner that does not run, a state that cannot be read
    at risk        3   never proven, dates in the future, a planned backup missing, a failed run, damage, a backup
                       location too long away, a WAL archive that stands still or has a gap since the newest backup
    safe           0   all else; recommendations and notes change nothing

``Finding`` and ``Severity`` are in ``state/finding.py``, where notifications can import them.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from datamanager.app.past_words import ago, length, when
from datamanager.app.verdict_facts import BackupFact, ClusterFacts, Situation
from datamanager.app.verdict_wal import newest_moment, of_forgotten_slots, of_slots_left, of_wal
from datamanager.schedule.words import counted
from datamanager.state.finding import MACHINE_OFF, ONE_PLACE, READS_EVERYTHING, RECOMMENDATIONS, Finding, Severity

__all__ = ["Finding", "Severity", "Verdict", "judge"]

SAFE, AT_RISK, NOT_PROTECTED = 0, 3, 1
# So many planned hours in a row at which the machine was off call for another hour.
CAUGHT_UP_TOO_OFTEN = 3
# One missing backup is a risk; two in a row are no protection, unless they are only hours old.
_DAY = timedelta(days=1)
# Clocks of two computers differ by seconds; by an hour where one does not know of summer time.
_CLOCKS_DIFFER = timedelta(hours=2)
# Of findings that are equally bad the one that explains the others comes first.
_ORDER = (
    *(
        "restore",
        "service",
        "wal-waiting",
        "configuration",
        "state",
        "no-cluster",
        "no-backup",
        "unknown",
        "no-schedule",
        "planner",
    ),
    *("clock", "overdue", "failed", "test-failed", "proof-old", "not-proven", "test-not-done", "damaged"),
    *("wal-lost", "wal-off", "wal-gap", "wal-slot", "wal-old", "wal-room"),
    *("damaged-place", "away", *RECOMMENDATIONS, "wal-left", "remembered"),
)


@dataclass(frozen=True, slots=True)
class Risk:
    """What a dead server would cost. Args: lost - work; back - until it runs again, measured; None: not known."""

    cluster: str
    lost: timedelta | None
    back: timedelta | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Args: findings - the worst first; sentence - the verdict; risk_sentence - empty without a cluster."""

    severity: Severity
    sentence: str
    risk_sentence: str
    findings: Sequence[Finding]
    risks: Sequence[Risk]

    @property
    def exit_code(self) -> int:
        if self.severity >= Severity.NOT_PROTECTED:
            return NOT_PROTECTED
        return AT_RISK if self.severity is Severity.AT_RISK else SAFE

    @property
    def word(self) -> str:
        """``safe``, ``at risk`` or ``not protected``."""
        return {SAFE: "safe", AT_RISK: "at risk", NOT_PROTECTED: "not protected"}[self.exit_code]


def judge(situation: Situation) -> Verdict:
    """The verdict on a situation."""
    found = [*_of_services(situation), *_of_troubles(situation), *_of_repositories(situation)]
    clusters = situation.clusters
    if clusters is not None:
        if not clusters:
            sentence = "No database server is set up to be backed up."
            command = "datamanager cluster add NAME CONNINFO"
            found.append(Finding("no-cluster", Severity.NOT_PROTECTED, "", sentence, command))
        for cluster in clusters:
            found += _of_cluster(cluster, situation)
        found += of_forgotten_slots(situation.forgotten_slots)
        if any(cluster.schedules for cluster in clusters):
            found += _of_planner(clusters, situation)
    found.sort(key=lambda one: (-one.severity, _ORDER.index(one.kind), one.cluster, one.key))
    # A recommendation that was declined stays in the list and no longer asks for anything.
    severity = max((one.severity for one in found), default=Severity.NOTE)
    risks = [_risk(one, situation) for one in clusters or ()]
    return Verdict(severity, _sentence(severity, found, situation), _risk_sentence(risks), found, risks)


# -- findings ----------------------------------------------------------------------------------------------------------
def _of_services(situation: Situation) -> list[Finding]:
    found = []
    for one in situation.services_down:
        why = _clause(one.error or "nobody has tried yet")
        sentence = f"Service {one.name} was stopped for a run and does not run again: {why}."
        if not one.name:
            sentence = f"Services that were stopped for a run may not run again, and which is not known: {why}."
        found.append(Finding(f"service:{one.name}", Severity.URGENT, "", sentence, "datamanager services restore"))
    return found


def _of_troubles(situation: Situation) -> list[Finding]:
    return [Finding(one.kind, Severity.NOT_PROTECTED, "", one.sentence, one.command) for one in situation.troubles]


def _of_repositories(situation: Situation) -> list[Finding]:
    found = []
    for one in situation.repositories:
        if one.damaged:
            sentence = f"Part of what is stored on backup location {one.name} is known to be damaged."
            command = f"datamanager repo verify {one.name}"
            found.append(Finding(f"damaged-place:{one.name}", Severity.AT_RISK, "", sentence, command))
        if not one.error:
            continue
        seen = f"was last seen {ago(one.seen, situation.now)}" if one.seen else "was never seen"
        sentence = f"Backup location {one.name} cannot be read now and {seen}: {_clause(one.error)}."
        too_long = one.rhythm is not None and (one.seen is None or situation.now - one.seen > one.rhythm + _DAY / 2)
        severity = Severity.AT_RISK if too_long else Severity.NOTE
        found.append(Finding(f"away:{one.name}", severity, "", sentence, f"datamanager repo check {one.name}"))
    return found


def _of_planner(clusters: Sequence[ClusterFacts], situation: Situation) -> list[Finding]:
    if situation.planner_alive:
        return []
    if situation.planner_died is not None:
        sentence = f"Scheduled backups do not run: the planner ended {ago(situation.planner_died, situation.now)}."
    elif all(schedule.run_elsewhere for cluster in clusters for schedule in cluster.schedules or ()):
        return []
    else:
        sentence = "Scheduled backups do not run: the planner was not started on this computer."
    return [Finding("planner", Severity.NOT_PROTECTED, "", sentence, "datamanager service install")]


def _of_cluster(cluster: ClusterFacts, situation: Situation) -> list[Finding]:
    name = cluster.name
    found = []
    if cluster.schedules is not None and not any(one.goes_on(situation.now) for one in cluster.schedules):
        sentence = f"No schedule backs up database server {name} by itself."
        command = (
            f"datamanager schedule enable {cluster.has_disabled}"
            if cluster.has_disabled
            else f"datamanager schedule add {name}-nightly --daily --at 1:00AM -- backup run {name}"
        )
        found.append(Finding(f"no-schedule:{name}", Severity.NOT_PROTECTED, name, sentence, command))
    found += _of_restore(cluster, situation)
    found += _of_failed_runs(cluster, situation)
    found += of_wal(cluster, situation)
    found += of_slots_left(cluster)
    if cluster.newest is None:
        return [*found, _without_backup(cluster, situation)]
    return [
        *found,
        *_of_clock(cluster, cluster.newest, situation),
        *_of_age(cluster, cluster.newest, situation),
        *_of_damage(cluster, situation),
        *_of_proof(cluster, situation),
        *_advice(cluster, cluster.newest),
        *_remembered(cluster, cluster.newest, situation),
    ]


def _of_restore(cluster: ClusterFacts, situation: Situation) -> list[Finding]:
    """A restore in place that was cut off: its server may be down, and starts again when it is finished."""
    one, name = cluster.restore, cluster.name
    if one is None:
        return []
    why = f": {_clause(one.error)}" if one.error else ""
    began = when(one.began, situation.now, situation.zone)
    if not one.owes_backup:
        sentence = f"A restore in place of database server {name}, begun {began}, was cut off and is not finished{why}."
        command = one.command or f"datamanager restore complete {name}"
        return [Finding(f"restore:{name}", Severity.URGENT, name, sentence, command)]
    if cluster.newest is not None and cluster.newest.started > one.began:
        return []
    sentence = f"Database server {name} was restored in place, {began}, and is not backed up since{why}."
    return [Finding(f"restore:{name}", Severity.AT_RISK, name, sentence, f"datamanager backup run {name}")]


def _without_backup(cluster: ClusterFacts, situation: Situation) -> Finding:
    name = cluster.name
    command = f"datamanager backup run {name}"
    if cluster.unsure:
        sentence = f"Nothing is known of backups of database server {name}: {_clause(cluster.unsure)}."
        return Finding(f"unknown:{name}", Severity.NOT_PROTECTED, name, sentence, command)
    if cluster.newest_damaged is not None:
        when_made = when(cluster.newest_damaged.ended, situation.now, situation.zone)
        sentence = f"Every backup of database server {name} holds pages that were damaged on the server, also the one "
        sentence += f"of {when_made}."
        return Finding(f"no-backup:{name}", Severity.NOT_PROTECTED, name, sentence, command)
    sentence = f"No backup of database server {name} exists yet{', one is being made' if cluster.running else ''}."
    return Finding(f"no-backup:{name}", Severity.NOT_PROTECTED, name, sentence, command)


def _of_clock(cluster: ClusterFacts, newest: BackupFact, situation: Situation) -> list[Finding]:
    """What is dated after now never becomes old: its age says nothing."""
    latest = situation.now + _CLOCKS_DIFFER
    test = cluster.passed_test
    if newest.ended > latest:
        what = f"The newest backup of database server {cluster.name} is dated"
        moment = newest.ended
    elif test is not None and test.time > latest:
        what = f"The last test restore of database server {cluster.name} is dated"
        moment = test.time
    else:
        return []
    sentence = f"{what} {when(moment, situation.now, situation.zone)}, which is still to come: a clock is wrong, or "
    sentence += "was."
    command = f"datamanager backup list --cluster {cluster.name}"
    return [Finding(f"clock:{cluster.name}", Severity.AT_RISK, cluster.name, sentence, command)]


def _of_age(cluster: ClusterFacts, newest: BackupFact, situation: Situation) -> list[Finding]:
    """Whether planned backups are missing: by the moments that were planned, and by sheer age."""
    if cluster.newest_damaged is not None and cluster.newest_damaged.started > newest.started:
        newest = cluster.newest_damaged  # it was made; that it is damaged is said apart
    age = situation.now - newest.started
    missing = max((sum(one > newest.started for one in each.planned) for each in cluster.schedules or ()), default=0)
    rhythms = [each.rhythm for each in cluster.schedules or () if each.rhythm is not None]
    if rhythms and age > 2 * min(rhythms) + _DAY / 2:
        missing = max(missing, 2)
    if not missing:
        return []
    severity = Severity.NOT_PROTECTED if missing > 1 and age >= _DAY else Severity.AT_RISK
    made = when(newest.ended, situation.now, situation.zone)
    more = " Another one is being made now." if cluster.running else ""
    what = "A planned backup" if missing == 1 else "More than one planned backup"
    sentence = f"{what} of database server {cluster.name} is missing; the last one was made {made}.{more}"
    command = f"datamanager backup run {cluster.name}"
    return [Finding(f"overdue:{cluster.name}", severity, cluster.name, sentence, command)]


def _of_failed_runs(cluster: ClusterFacts, situation: Situation) -> list[Finding]:
    found = []
    for one in cluster.failed:
        time = when(one.time, situation.now, situation.zone)
        by = f" by schedule {one.schedule}" if one.schedule else ""
        sentence = f"The last backup of database server {cluster.name}{by} failed {time}: {_clause(one.cause)}."
        key = f"failed:{cluster.name}{f'/{one.schedule}' if one.schedule else ''}"
        command = f"datamanager job show {shlex.quote(one.job)}"
        found.append(Finding(key, Severity.AT_RISK, cluster.name, sentence, command))
    return found


def _of_damage(cluster: ClusterFacts, situation: Situation) -> list[Finding]:
    if cluster.newest_damaged is None:
        return []
    made = when(cluster.newest_damaged.ended, situation.now, situation.zone)
    sentence = f"The newest backup of database server {cluster.name}, made {made}, holds pages that are damaged on "
    sentence += "the server."
    command = f"datamanager backup show {cluster.newest_damaged.backup}"
    return [Finding(f"damaged:{cluster.name}", Severity.AT_RISK, cluster.name, sentence, command)]


def _of_proof(cluster: ClusterFacts, situation: Situation) -> list[Finding]:
    name, now = cluster.name, situation.now
    test_again = f"datamanager drill run latest --cluster {name}"
    test, passed = cluster.test, cluster.passed_test
    if test is not None and not test.passed:
        time = when(test.time, now, situation.zone)
        sentence = f"The last test restore of database server {name} failed {time}: {_clause(test.finding)}."
        return [Finding(f"test-failed:{name}", Severity.NOT_PROTECTED, name, sentence, test_again)]
    found = []
    if passed is None:
        sentence = f"No test restore has shown yet that the backups of database server {name} come back."
        found.append(Finding(f"not-proven:{name}", Severity.AT_RISK, name, sentence, test_again))
    elif now - passed.time > situation.proof_limit:
        sentence = f"The last test restore of database server {name} was {ago(passed.time, now)}, and no longer than "
        sentence += f"{length(situation.proof_limit)} are allowed."
        found.append(Finding(f"proof-old:{name}", Severity.NOT_PROTECTED, name, sentence, test_again))
    if cluster.failed_test_run is not None:
        run = cluster.failed_test_run
        time = when(run.time, now, situation.zone)
        sentence = f"The last test restore of database server {name} could not be done {time}: {_clause(run.cause)}."
        command = f"datamanager job show {shlex.quote(run.job)}"
        found.append(Finding(f"test-not-done:{name}", Severity.AT_RISK, name, sentence, command))
    return found


def _advice(cluster: ClusterFacts, newest: BackupFact) -> list[Finding]:
    name = cluster.name
    found = []

    def add(kind: str, sentence: str, command: str) -> None:
        declined = cluster.declined.get(kind, "")
        found.append(Finding(f"{kind}:{name}", Severity.ADVICE, name, sentence, command, declined))

    late = [one for one in cluster.schedules or () if one.caught_up >= CAUGHT_UP_TOO_OFTEN]
    if late:
        times = counted(max(one.caught_up for one in late), "time")
        sentence = f"This computer was off at the planned hour of schedule {late[0].name} {times} in a row; another "
        add(MACHINE_OFF, f"{sentence}hour would suit better.", f"datamanager schedule suggest {name}")
    if newest.reads_everything:
        sentence = f"Each backup of database server {name} reads everything; one setting of the server makes most of "
        add(READS_EVERYTHING, f"{sentence}them short.", f"datamanager cluster check {name} --enable-increments")
    if cluster.places == 1 and not cluster.unsure:
        sentence = f"All backups of database server {name} are in one place, {newest.repository}; a second one, kept "
        command = f"datamanager repo init NAME URL --like {newest.repository}"
        add(ONE_PLACE, f"{sentence}elsewhere, survives a fire.", command)
    return found


def _remembered(cluster: ClusterFacts, newest: BackupFact, situation: Situation) -> list[Finding]:
    if cluster.seen is None:
        return []
    sentence = (
        f"What is said of the backups of database server {cluster.name} was seen {ago(cluster.seen, situation.now)}"
    )
    sentence += "; their place cannot be read now."
    command = f"datamanager repo check {newest.repository}" if newest.repository else ""
    return [Finding(f"remembered:{cluster.name}", Severity.NOTE, cluster.name, sentence, command)]


def _clause(text: str) -> str:
    """A cause as a part of a sentence: one line, without a full stop."""
    return " ".join(text.split()).rstrip(".") or "no cause was given"


# -- sentences ---------------------------------------------------------------------------------------------------------
def _sentence(severity: Severity, findings: Sequence[Finding], situation: Situation) -> str:
    if severity >= Severity.AT_RISK:
        worst = findings[0].sentence
        lowered = f"{worst[:1].lower()}{worst[1:]}"
        if severity is Severity.URGENT:
            return f"Needs you now: {lowered}"
        if severity is Severity.NOT_PROTECTED:
            return f"Not protected: {lowered}"
        if all(one.kind == "not-proven" for one in findings if one.severity is Severity.AT_RISK):
            return f"Backed up, not yet proven. {_last_copies(situation)}."
        return f"At risk: {lowered}"
    tests = [one.passed_test.time for one in situation.clusters or () if one.passed_test is not None]
    proven = ago(min(tests), situation.now) if tests else ""
    if len(tests) == 1:
        return f"Your records are safe. {_last_copies(situation)}, proven by a test restore {proven}."
    return f"Your records are safe. {_last_copies(situation)}, the oldest proof by a test restore {proven}."


def _last_copies(situation: Situation) -> str:
    ended = [one.newest.ended for one in situation.clusters or () if one.newest is not None]
    oldest = when(min(ended), situation.now, situation.zone)
    if len(ended) == 1:
        return f"Last copy {oldest}"
    return f"Last copies of all {len(ended)} database servers, the oldest {oldest}"


def _risk(cluster: ClusterFacts, situation: Situation) -> Risk:
    lost = None
    if cluster.newest is not None:
        lost = max(timedelta(), situation.now - newest_moment(cluster.newest.ended, cluster.wal, situation.now))
    passed = cluster.passed_test
    seconds = passed.restore_seconds if passed is not None else None
    return Risk(cluster.name, lost, None if seconds is None else timedelta(seconds=seconds))


def _risk_sentence(risks: Sequence[Risk]) -> str:
    """The worst of all database servers: the most work lost, the longest way back."""
    if not risks:
        return ""
    of = "the server" if len(risks) == 1 else "the worst placed database server"
    losses = [one.lost for one in risks if one.lost is not None]
    if len(losses) < len(risks):
        return f"If {of} died now everything on it would be lost."
    backs = [one.back for one in risks if one.back is not None]
    if len(backs) < len(risks):
        return (
            f"If {of} died now you would lose about {length(max(losses))} of work; how long it takes to be back is "
            "not measured yet."
        )
    return (
        f"If {of} died now you would lose about {length(max(losses))} of work and be back in about "
        f"{length(max(backs))} (measured)."
    )
