"""What is said about the archive of WAL: the sentence, how bad it is, and the one command that mends it."""

from __future__ import annotations

import shlex
from datetime import timedelta

import click
import pytest
from prometheus_client.parser import text_string_to_metric_families

from datamanager.app.metrics import render
from datamanager.app.status import Status
from datamanager.app.verdict import judge
from datamanager.app.verdict_facts import WalFacts
from datamanager.base.units import GIB
from datamanager.cli.root import cli
from datamanager.state.finding import Severity
from tests.app.test_verdict import NOW, with_clinic

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
RUNS = WalFacts(
    running=True, connected=True, ended=NOW - timedelta(hours=3), newest=NOW - 2 * SECOND, behind=False,
    retained_bytes=20_000_000, limit_bytes=10 * GIB, waiting=0, continuous=True,
)  # fmt: skip
OFF = WalFacts(ended=NOW - timedelta(hours=2), newest=NOW - timedelta(hours=2), behind=True, continuous=True)

TABLE: dict[str, tuple[WalFacts, Severity, str, str]] = {
    "commits wait for a receiver that is gone": (
        WalFacts(synchronous=True, waiting=3, newest=NOW - MINUTE, behind=True),
        Severity.URGENT,
        "On database server clinic 3 commits wait for the WAL archive, which does not run.",
        "datamanager wal stop clinic",
    ),
    "commits will wait, though none is seen": (
        WalFacts(synchronous=True, running=True, error="the drive is away", newest=NOW - MINUTE),
        Severity.URGENT,
        "On database server clinic every commit waits for the WAL archive, which does not run (the drive is away).",
        "datamanager wal stop clinic",
    ),
    "commits wait for a drive that is stuck": (
        WalFacts(
            running=True,
            connected=True,
            synchronous=True,
            waiting=1,
            newest=NOW - 30 * SECOND,
            behind=True,
        ),
        Severity.URGENT,
        "On database server clinic a commit waits for the WAL archive, which does not store what has come.",
        "datamanager wal stop clinic",
    ),
    "no receiver": (
        OFF,
        Severity.AT_RISK,
        "The WAL of database server clinic is not archived now: no receiver runs; the newest came 2 hours ago.",
        "datamanager service status",
    ),
    "a receiver without a connection": (
        WalFacts(running=True, error="connect: refused.", ended=NOW - timedelta(hours=1), newest=NOW - MINUTE),
        Severity.AT_RISK,
        "The WAL of database server clinic is not archived now: connect: refused; the newest came 1 minute ago.",
        "datamanager wal status clinic",
    ),
    "a gap since the newest backup": (
        WalFacts(running=True, connected=True, newest=NOW, behind=False, gap_since=NOW - 20 * MINUTE),
        Severity.AT_RISK,
        "The WAL archive of database server clinic has a gap that ended today 9:10 AM: no moment behind it can be "
        "restored until the next backup.",
        "datamanager backup run clinic",
    ),
    "old, though the server has written more": (
        WalFacts(running=True, connected=True, newest=NOW - 20 * MINUTE, behind=True),
        Severity.AT_RISK,
        "The newest WAL of database server clinic in the archive came 20 minutes ago, and the server has written more "
        "since.",
        "datamanager wal status clinic",
    ),
    "much is kept on the server": (
        WalFacts(running=True, connected=True, newest=NOW, behind=True, retained_bytes=6 * GIB, limit_bytes=10 * GIB),
        Severity.AT_RISK,
        "Database server clinic keeps 6.0 GiB of WAL that was not fetched, of at most 10.0 GiB; beyond that the "
        "archive gets a gap.",
        "datamanager wal status clinic",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_trouble_of_the_archive_has_its_sentence_and_command(name: str) -> None:
    wal, severity, sentence, command = TABLE[name]
    verdict = judge(with_clinic(wal=wal))
    first = verdict.findings[0]
    assert (first.severity, first.sentence, first.command) == (severity, sentence, command)
    words = shlex.split(command)[1:]
    found: click.Command = cli
    while isinstance(found, click.Group):
        found = found.get_command(click.Context(cli), words.pop(0))  # type: ignore[assignment]
    found.make_context(command, words)


def test_an_archive_that_runs_is_no_finding_and_shortens_what_would_be_lost() -> None:
    verdict = judge(with_clinic(wal=RUNS))
    assert verdict.severity is Severity.NOTE
    assert verdict.risks[0].lost == timedelta()
    assert judge(with_clinic(wal=OFF)).risks[0].lost == timedelta(hours=2)
    gap = WalFacts(newest=NOW, gap_since=NOW - MINUTE)
    assert judge(with_clinic(wal=gap)).risks == judge(with_clinic()).risks


def test_a_commit_that_waits_for_a_moment_or_a_receiver_that_just_begins_is_no_finding() -> None:
    busy = WalFacts(
        running=True, connected=True, synchronous=True, waiting=4, newest=NOW - SECOND, behind=True, continuous=True
    )
    assert judge(with_clinic(wal=busy)).severity is Severity.NOTE
    begins = WalFacts(running=True, ended=NOW - 5 * SECOND, newest=NOW - MINUTE, continuous=True)
    assert judge(with_clinic(wal=begins)).severity is Severity.NOTE


def test_metrics_tell_how_old_the_archive_is_and_what_the_server_keeps() -> None:
    situation = with_clinic(wal=RUNS)
    text = render(Status(judge(situation), situation)).decode()
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("cluster") == "clinic"
    }
    assert RUNS.newest is not None
    assert found["datamanager_wal_newest_timestamp_seconds"] == RUNS.newest.timestamp()
    assert found["datamanager_wal_retained_bytes"] == 20_000_000
    assert (found["datamanager_wal_receiving"], found["datamanager_wal_commits_waiting"]) == (1, 0)
