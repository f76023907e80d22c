"""Situations and what is said about them: the sentence, the exit code, and the one command that mends it."""

from __future__ import annotations

import itertools
import shlex
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import click
import pytest

from datamanager.app.past_words import ago, length, when
from datamanager.app.verdict import judge
from datamanager.app.verdict_facts import (
    BackupFact,
    ClusterFacts,
    ProofFact,
    RepositoryFacts,
    RunFact,
    ScheduleFact,
    Situation,
    Trouble,
)
from datamanager.cli.root import cli
from datamanager.jobs.services_around import ServiceDown
from datamanager.state.finding import RECOMMENDATIONS, Finding, Severity

NEW_YORK = ZoneInfo("America/New_York")
NOW = datetime(2026, 11, 23, 9, 30, tzinfo=NEW_YORK)
LAST_NIGHT = datetime(2026, 11, 23, 1, 0, tzinfo=NEW_YORK)
DAY = timedelta(days=1)


def backup(days_ago: float = 0, **changes: object) -> BackupFact:
    started = LAST_NIGHT - days_ago * DAY
    fact = BackupFact("20261123T060000Z-0a1b2c3d", started, started + timedelta(minutes=4), "usb")
    return replace(fact, **changes)  # type: ignore[arg-type]


def passed(days_ago: float) -> ProofFact:
    return ProofFact("20261123T060000Z-0a1b2c3d", NOW - days_ago * DAY, passed=True, restore_seconds=2400, job="j1")


NIGHTLY = ScheduleFact("clinic-nightly", planned=(LAST_NIGHT - 2 * DAY, LAST_NIGHT - DAY, LAST_NIGHT), rhythm=DAY)
SAFE = ClusterFacts("clinic", newest=backup(), places=2, schedules=(NIGHTLY,), test=passed(9), passed_test=passed(9))
FAILED_TEST = ProofFact(
    "20261123T060000Z-0a1b2c3d", NOW - timedelta(hours=3), passed=False, finding="an index is damaged"
)


def situation(*clusters: ClusterFacts, **changes: object) -> Situation:
    found = Situation(NOW, clusters=clusters, planner_alive=True, zone=NEW_YORK)
    return replace(found, **changes)  # type: ignore[arg-type]


def with_clinic(**changes: object) -> Situation:
    return situation(replace(SAFE, **changes))  # type: ignore[arg-type]


SERVICE = ServiceDown("SOAPwareXchange", "20261123T060000Z-3f9a1c", NOW, "the command ended with 1")
USB_AWAY = RepositoryFacts("usb", "the drive is not there", NOW - 3 * DAY, DAY)
CONFIGURATION = Trouble("configuration", "The configuration cannot be read: line 3.", "datamanager config show")
STATE = Trouble(
    "state",
    "The history of runs and schedules cannot be read: it is no database.",
    "datamanager config get state.url",
)
DRILL = "datamanager drill run latest --cluster clinic"
RUN = "datamanager backup run clinic"

# situation, verdict, exit code, command of the worst finding
TABLE: dict[str, tuple[Situation, str, int, str]] = {
    "no database server": (
        situation(),
        "Not protected: no database server is set up to be backed up.",
        1,
        "datamanager cluster add NAME CONNINFO",
    ),
    "no backup": (
        with_clinic(newest=None, test=None, passed_test=None),
        "Not protected: no backup of database server clinic exists yet.",
        1,
        RUN,
    ),
    "the first backup runs": (
        with_clinic(newest=None, test=None, passed_test=None, running=True),
        "Not protected: no backup of database server clinic exists yet, one is being made.",
        1,
        RUN,
    ),
    "nothing is known": (
        with_clinic(newest=None, unsure="backup location usb: the drive is not there"),
        "Not protected: nothing is known of backups of database server clinic: backup location usb: the drive is not "
        "there.",
        1,
        RUN,
    ),
    "only damaged backups": (
        with_clinic(newest=None, newest_damaged=backup(damaged=True)),
        "Not protected: every backup of database server clinic holds pages that were damaged on the server, also the "
        "one of today 1:04 AM.",
        1,
        RUN,
    ),
    "no schedule": (
        with_clinic(schedules=()),
        "Not protected: no schedule backs up database server clinic by itself.",
        1,
        "datamanager schedule add clinic-nightly --daily --at 1:00AM -- backup run clinic",
    ),
    "a schedule that is switched off": (
        with_clinic(schedules=(), has_disabled="clinic-nightly"),
        "Not protected: no schedule backs up database server clinic by itself.",
        1,
        "datamanager schedule enable clinic-nightly",
    ),
    "never proven": (
        with_clinic(test=None, passed_test=None),
        "Backed up, not yet proven. Last copy today 1:04 AM.",
        3,
        DRILL,
    ),
    "safe": (
        with_clinic(),
        "Your records are safe. Last copy today 1:04 AM, proven by a test restore 9 days ago.",
        0,
        "",
    ),
    "the proof is a month old": (
        with_clinic(test=passed(30), passed_test=passed(30)),
        "Your records are safe. Last copy today 1:04 AM, proven by a test restore 30 days ago.",
        0,
        "",
    ),
    "the proof is too old": (
        with_clinic(test=passed(31), passed_test=passed(31)),
        "Not protected: the last test restore of database server clinic was 31 days ago, and no longer than 30 days "
        "are allowed.",
        1,
        DRILL,
    ),
    "the owner allows a week": (
        replace(with_clinic(), proof_limit=7 * DAY),
        "Not protected: the last test restore of database server clinic was 9 days ago, and no longer than 7 days are "
        "allowed.",
        1,
        DRILL,
    ),
    "a test restore failed": (
        with_clinic(test=FAILED_TEST),
        "Not protected: the last test restore of database server clinic failed today 6:30 AM: an index is damaged.",
        1,
        DRILL,
    ),
    "a test restore could not be done": (
        with_clinic(failed_test_run=RunFact("j7", NOW - DAY, "There is no room in the scratch folder.")),
        "At risk: the last test restore of database server clinic could not be done yesterday 9:30 AM: There is no "
        "room in the scratch folder.",
        3,
        "datamanager job show j7",
    ),
    "one night is missing": (
        with_clinic(newest=backup(1)),
        "At risk: a planned backup of database server clinic is missing; the last one was made yesterday 1:04 AM.",
        3,
        RUN,
    ),
    "two nights are missing": (
        with_clinic(newest=backup(2)),
        "Not protected: more than one planned backup of database server clinic is missing; the last one was made on "
        "Saturday 1:04 AM.",
        1,
        RUN,
    ),
    "two hours are missing": (
        with_clinic(
            schedules=(replace(NIGHTLY, planned=(NOW - timedelta(hours=3), NOW - timedelta(hours=2))),),
            newest=backup(started=NOW - timedelta(hours=4), ended=NOW - timedelta(hours=4)),
        ),
        "At risk: more than one planned backup of database server clinic is missing; the last one was made today 5:30 "
        "AM.",
        3,
        RUN,
    ),
    "long ago by a schedule that was changed today": (
        with_clinic(newest=backup(9), schedules=(replace(NIGHTLY, planned=()),)),
        "Not protected: more than one planned backup of database server clinic is missing; the last one was made on "
        "November 14, 1:04 AM.",
        1,
        RUN,
    ),
    "the last run failed": (
        with_clinic(failed=(RunFact("j2", NOW - timedelta(hours=2), "the drive is full.", "clinic-nightly"),)),
        "At risk: the last backup of database server clinic by schedule clinic-nightly failed today 7:30 AM: the drive "
        "is full.",
        3,
        "datamanager job show j2",
    ),
    "a service is down": (
        replace(with_clinic(newest=None), services_down=(SERVICE,)),
        "Needs you now: service SOAPwareXchange was stopped for a run and does not run again: the command ended with "
        "1.",
        1,
        "datamanager services restore",
    ),
    "the planner died": (
        replace(with_clinic(), planner_alive=False, planner_died=NOW - timedelta(minutes=5)),
        "Not protected: scheduled backups do not run: the planner ended 5 minutes ago.",
        1,
        "datamanager service install",
    ),
    "the planner was never started": (
        replace(with_clinic(), planner_alive=False),
        "Not protected: scheduled backups do not run: the planner was not started on this computer.",
        1,
        "datamanager service install",
    ),
    "a timer of the system runs the schedule": (
        replace(with_clinic(schedules=(replace(NIGHTLY, run_elsewhere=True),)), planner_alive=False),
        "Your records are safe. Last copy today 1:04 AM, proven by a test restore 9 days ago.",
        0,
        "",
    ),
    "a location is away as planned": (
        replace(with_clinic(), repositories=(replace(USB_AWAY, rhythm=7 * DAY),)),
        "Your records are safe. Last copy today 1:04 AM, proven by a test restore 9 days ago.",
        0,
        "datamanager repo check usb",
    ),
    "a location is away too long": (
        replace(with_clinic(), repositories=(USB_AWAY,)),
        "At risk: backup location usb cannot be read now and was last seen 3 days ago: the drive is not there.",
        3,
        "datamanager repo check usb",
    ),
    "damage on the server": (
        with_clinic(newest=backup(0.25), newest_damaged=backup(damaged=True)),
        "At risk: the newest backup of database server clinic, made today 1:04 AM, holds pages that are damaged on the "
        "server.",
        3,
        "datamanager backup show 20261123T060000Z-0a1b2c3d",
    ),
    "damage in the location": (
        replace(with_clinic(), repositories=(RepositoryFacts("usb", damaged=True),)),
        "At risk: part of what is stored on backup location usb is known to be damaged.",
        3,
        "datamanager repo verify usb",
    ),
    "the computer was off": (
        with_clinic(schedules=(replace(NIGHTLY, caught_up=3),)),
        "Your records are safe. Last copy today 1:04 AM, proven by a test restore 9 days ago.",
        0,
        "datamanager schedule suggest clinic",
    ),
    "backups read everything": (
        with_clinic(newest=backup(reads_everything=True)),
        "Your records are safe. Last copy today 1:04 AM, proven by a test restore 9 days ago.",
        0,
        "datamanager cluster check clinic --enable-increments",
    ),
    "one place": (
        with_clinic(places=1),
        "Your records are safe. Last copy today 1:04 AM, proven by a test restore 9 days ago.",
        0,
        "datamanager repo init NAME URL --like usb",
    ),
    "the configuration is broken": (
        Situation(NOW, clusters=None, troubles=(CONFIGURATION,)),
        "Not protected: the configuration cannot be read: line 3.",
        1,
        "datamanager config show",
    ),
    "the state is broken": (
        replace(with_clinic(schedules=None), troubles=(STATE,)),
        "Not protected: the history of runs and schedules cannot be read: it is no database.",
        1,
        "datamanager config get state.url",
    ),
    "remembered": (
        with_clinic(seen=NOW - timedelta(hours=3)),
        "Your records are safe. Last copy today 1:04 AM, proven by a test restore 9 days ago.",
        0,
        "datamanager repo check usb",
    ),
    "two servers, both safe": (
        situation(
            SAFE,
            replace(
                SAFE,
                name="reports",
                newest=backup(0.5),
                passed_test=passed(2),
                schedules=(replace(NIGHTLY, planned=()),),
            ),
        ),
        "Your records are safe. Last copies of all 2 database servers, the oldest yesterday 1:04 PM, the oldest proof "
        "by a test restore 9 days ago.",
        0,
        "",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_situation_has_its_sentence_exit_code_and_command(name: str) -> None:
    given, sentence, exit_code, command = TABLE[name]
    verdict = judge(given)
    assert verdict.sentence == sentence
    assert (verdict.exit_code, verdict.findings[0].command if verdict.findings else "") == (exit_code, command)


@pytest.mark.requirement("R6", missing="the page")
def test_a_cluster_without_an_enabled_schedule_is_red() -> None:
    verdict = judge(with_clinic(schedules=()))
    assert (verdict.severity, verdict.exit_code) == (Severity.NOT_PROTECTED, 1)


def test_the_worst_decides_and_stands_first() -> None:
    given = [one for one, *_ in TABLE.values()]
    for first, second in itertools.product(given, given):
        both = Situation(
            NOW,
            clusters=None if None in (first.clusters, second.clusters) else [*first.clusters, *second.clusters],  # type: ignore[misc]
            repositories=[*first.repositories, *second.repositories],
            services_down=[*first.services_down, *second.services_down],
            troubles=[*first.troubles, *second.troubles],
            planner_alive=first.planner_alive and second.planner_alive,
            planner_died=first.planner_died or second.planner_died,
            proof_limit=min(first.proof_limit, second.proof_limit),
            zone=NEW_YORK,
        )
        if not both.clusters:
            continue
        verdict = judge(both)
        severities = [one.severity for one in verdict.findings]
        assert severities == sorted(severities, reverse=True)
        alone = [judge(one).severity for one in (first, second) if one.clusters and one.proof_limit == both.proof_limit]
        assert verdict.severity >= max(alone, default=Severity.NOTE)


def test_every_command_that_is_shown_exists() -> None:
    commands = {one.command for given, *_ in TABLE.values() for one in judge(given).findings if one.command}
    commands |= {f'datamanager audit decline {kind}:clinic --reason "why"' for kind in RECOMMENDATIONS}
    assert len(commands) > 15
    for text in commands:
        words = shlex.split(text)
        assert words.pop(0) == "datamanager"
        command: click.Command = cli
        context = click.Context(cli)
        while isinstance(command, click.Group):
            found = command.get_command(context, words.pop(0))
            assert found is not None, text
            command = found
        command.make_context(text, words)  # raises on an option or an argument that the command does not take


def test_a_finding_reads_as_a_sentence_and_names_whom_it_is_about() -> None:
    for given, *_ in TABLE.values():
        for one in judge(given).findings:
            assert one.sentence[0].isupper()
            assert one.sentence.endswith(".")
            assert "repository" not in one.sentence
            assert not one.cluster or one.cluster in one.sentence
            assert one.key.startswith(one.kind)


def test_a_declined_recommendation_says_why_and_changes_no_verdict() -> None:
    verdict = judge(with_clinic(places=1, declined={"one-place": "the hoster copies it"}))
    assert verdict.exit_code == 0
    assert [(one.key, one.declined) for one in verdict.findings] == [("one-place:clinic", "the hoster copies it")]


@pytest.mark.requirement("N11", missing="the owner's limit")
def test_the_risk_sentence_says_what_is_measured_and_what_is_not() -> None:
    minutes = backup(started=NOW - timedelta(minutes=9), ended=NOW - timedelta(minutes=6))
    measured = judge(with_clinic(newest=minutes)).risk_sentence
    unmeasured = judge(with_clinic(passed_test=None, test=None)).risk_sentence
    lost = judge(with_clinic(newest=None)).risk_sentence
    several = judge(situation(SAFE, replace(SAFE, name="reports", newest=minutes))).risk_sentence
    assert judge(situation()).risk_sentence == ""
    assert lost == "If the server died now everything on it would be lost."
    assert several == (
        "If the worst placed database server died now you would lose about 8 hours of work and be back in about 40 "
        "minutes (measured)."
    )
    assert unmeasured == (
        "If the server died now you would lose about 8 hours of work; how long it takes to be back is not measured yet."
    )
    assert measured == (
        "If the server died now you would lose about 6 minutes of work and be back in about 40 minutes (measured)."
    )  # requirement N11


def test_times_are_said_as_people_say_them() -> None:
    utc = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    said = [when(utc - one, utc, UTC) for one in (timedelta(), timedelta(hours=13), 6 * DAY, 7 * DAY, 400 * DAY)]
    assert said == [
        "today 12:00 PM",
        "yesterday 11:00 PM",
        "on Monday 12:00 PM",
        "on February 22, 12:00 PM",
        "on January 25, 2025, 12:00 PM",
    ]
    assert [length(timedelta(seconds=one)) for one in (3, 89, 3600, 5400, 86400, 172800)] == [
        "1 minute", "1 minute", "60 minutes", "2 hours", "24 hours", "2 days",
    ]  # fmt: skip
    assert ago(utc + DAY, utc) == "just now"  # a wrong clock
    assert ago(utc - 9 * DAY, utc) == "9 days ago"


def test_the_kind_of_a_finding_is_what_stands_before_the_colon() -> None:
    assert Finding("overdue:clinic", Severity.AT_RISK, "clinic", "It.").kind == "overdue"
