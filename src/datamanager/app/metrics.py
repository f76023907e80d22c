"""The state of things for Prometheus: one text, made anew for each question.

Times are seconds since the epoch, so that an age stays right however old the answer is. A value that is not known is
absent, never zero. Source: https://prometheus.io/docs/practices/naming/, exposition format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from prometheus_client import CollectorRegistry, Gauge, Info, generate_latest

from datamanager import __version__
from datamanager.app.status import Status
from datamanager.app.verdict_facts import ClusterFacts, WalFacts
from datamanager.state.finding import Severity

_PREFIX = "datamanager"


class _Gauges:
    """Gauges of one registry, made at their first value."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made: dict[str, Gauge] = {}

    def set(self, name: str, text: str, value: float | datetime | None, **labels: str) -> None:
        """Nothing for a value that is not known."""
        if value is None:
            return
        if name not in self._made:
            self._made[name] = Gauge(f"{_PREFIX}_{name}", text, list(labels), registry=self.registry)
        gauge = self._made[name].labels(**labels) if labels else self._made[name]
        gauge.set(value.timestamp() if isinstance(value, datetime) else value)


def render(status: Status) -> bytes:
    """The text that a scrape gets."""
    gauges = _Gauges()
    Info(f"{_PREFIX}_build", "The release that answers.", registry=gauges.registry).info({"version": __version__})
    verdict = status.verdict
    for word in ("safe", "at risk", "not protected"):
        gauges.set(
            "verdict", "1 for the verdict in force.", 1 if verdict.word == word else 0, verdict=word.replace(" ", "_")
        )
    for severity in Severity:
        count = sum(one.severity is severity for one in verdict.findings)
        gauges.set("findings", "Findings of the verdict.", count, severity=severity.name.lower())
    gauges.set("planner_alive", "1 while the planner runs.", int(status.situation.planner_alive))
    gauges.set("services_down", "Services that did not start again.", len(status.situation.services_down))
    gauges.set("checked_timestamp_seconds", "When all this was looked at.", status.situation.now)
    if status.recalled is not None and status.recalled.complete:
        gauges.set("jobs_queued", "Jobs that wait.", status.recalled.queued)
        gauges.set("jobs_running", "Jobs that run.", status.recalled.running)
    gauges.set("state_readable", "1 when the history could be read.", int(_readable(status)))
    _clusters(gauges, status, status.situation.clusters or ())
    _repositories(gauges, status)
    return generate_latest(gauges.registry)


def _readable(status: Status) -> bool:
    return status.recalled is not None and status.recalled.complete


def _clusters(gauges: _Gauges, status: Status, clusters: Sequence[ClusterFacts]) -> None:
    for one in clusters:
        name, history = one.name, status.history(one.name)
        gauges.set(
            "last_backup_timestamp_seconds",
            "When the newest backup without damage ended.",
            one.newest.ended if one.newest else None,
            cluster=name,
        )
        gauges.set(
            "last_proof_timestamp_seconds",
            "When the newest test restore that passed ended.",
            one.passed_test.time if one.passed_test else None,
            cluster=name,
        )
        gauges.set(
            "last_test_restore_passed",
            "1 when the newest test restore passed, 0 when it failed.",
            None if one.test is None else int(one.test.passed),
            cluster=name,
        )
        run = history.last_run
        gauges.set(
            "last_backup_run_good",
            "1 when the newest backup run ended well, 0 when it failed.",
            None if run is None else int(run.state.good),
            cluster=name,
        )
        gauges.set(
            "last_backup_seconds",
            "How long the newest good backup took.",
            history.backup_seconds[0] if history.backup_seconds else None,
            cluster=name,
        )
        gauges.set(
            "restore_seconds",
            "How long the newest test restore took until the server answered.",
            one.passed_test.restore_seconds if one.passed_test else None,
            cluster=name,
        )
        sizes = [look.manifests[name].total_bytes for look in status.looks if name in look.manifests]
        known = history.known.size_bytes if history.known else None
        gauges.set("cluster_bytes", "Size of the data.", max(sizes, default=known), cluster=name)
        if one.wal is not None:
            _archive(gauges, name, one.wal)
        enabled = None if one.schedules is None else len(one.schedules)
        gauges.set("schedules_enabled", "Enabled schedules of backups.", enabled, cluster=name)


def _archive(gauges: _Gauges, cluster: str, wal: WalFacts) -> None:
    gauges.set("wal_receiving", "1 while the WAL is archived.", int(wal.connected), cluster=cluster)
    gauges.set(
        "wal_newest_timestamp_seconds", "When the newest byte came into the WAL archive.", wal.newest, cluster=cluster
    )
    gauges.set("wal_retained_bytes", "WAL that the server keeps for the archive.", wal.retained_bytes, cluster=cluster)
    gauges.set("wal_retained_limit_bytes", "How much of it the server may keep.", wal.limit_bytes, cluster=cluster)
    gauges.set("wal_commits_waiting", "Commits that wait for a synchronous standby.", wal.waiting, cluster=cluster)


def _repositories(gauges: _Gauges, status: Status) -> None:
    for look in status.looks:
        gauges.set("repository_readable", "1 when it could be read now.", int(look.complete), repository=look.name)
        if look.complete:
            gauges.set("repository_backups", "Backups in it.", look.backups, repository=look.name)
            gauges.set("repository_free_bytes", "Free space of it.", look.free_bytes, repository=look.name)
