"""``/metrics`` and ``/health``: held against what they were made from, and against clients that mean no good."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from datamanager.app.context import Context
from datamanager.app.http_metrics import FRESH_SECONDS, MAX_CONNECTIONS, MetricsServer
from datamanager.app.metrics import render
from datamanager.app.planner_file import PlannerBeat, write_beat
from datamanager.app.status import gather
from datamanager.base.clock import SystemClock
from datamanager.base.errors import ConfigurationError, UsageError
from datamanager.base.events import Event
from datamanager.base.pipeline import StopToken
from datamanager.config.home import Home
from datamanager.config.state_url import sqlite_url
from datamanager.schedule.recurrence import Kind, Recurrence
from datamanager.state.database import open_state
from datamanager.state.model import (
    Job,
    JobProgress,
    JobRequest,
    JobState,
    KnownCluster,
    KnownRepository,
    Proof,
    Schedule,
)
from datamanager.system.processes import this_process

NOW = datetime.now(UTC).replace(microsecond=0)
BACKUP_ENDED, PROVEN = NOW - timedelta(hours=2), NOW - timedelta(days=3)
PLANNED = clock_time((NOW - timedelta(hours=3)).hour, 0)
CONFIG = """
[repositories.usb]
url = "{folder}/no drive here"
open = true
open_reason = "a test"

[clusters.clinic]
conninfo = "host=nowhere.invalid"
repository = "usb"
"""


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """A home whose only cluster is safe by what is remembered, its drive being away."""
    home = Home(tmp_path, tmp_path)
    home.config_file.write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    request = JobRequest("backup run", ("clinic",), "clinic", heavy=True)
    recurrence = Recurrence(Kind.DAILY, "UTC", date(2026, 1, 1), PLANNED).to_json()
    job = Job(
        "20261123T010000Z-000001", request, JobState.DONE, BACKUP_ENDED, BACKUP_ENDED - timedelta(seconds=240),
        BACKUP_ENDED, progress=JobProgress(done_bytes=5 << 30), exit_code=0,
    )  # fmt: skip
    proof = Proof("b", "clinic", "7", BACKUP_ENDED, PROVEN, passed=True, seconds=90, restore_seconds=2400.5)
    known = KnownCluster("clinic", "7", "18.1", 123456, ("records",), "b", BACKUP_ENDED, "usb", BACKUP_ENDED)
    with open_state(sqlite_url(home.state_file), clock=SystemClock()) as state:
        state.jobs.save(job)
        state.jobs.add(JobRequest("repo prune", ("usb",), "usb"))
        state.proofs.add(proof)
        state.known.put_cluster(known)
        state.known.put_repository(KnownRepository("usb", "file:///gone", seen=BACKUP_ENDED))
        state.schedules.put(Schedule("nightly", recurrence, request, True, NOW, NOW))
    write_beat(home.planner_file, PlannerBeat(datetime.now(UTC), this_process(), NOW))

    def unheard(event: Event) -> None:
        pass

    with StopToken() as stop:
        yield Context(home, SystemClock(), stop, unheard)


@pytest.fixture
def server(context: Context) -> Iterator[MetricsServer]:
    with MetricsServer(context, 0) as found:
        yield found


def parsed(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def asked(server: MetricsServer, path: str, method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.getheader("Content-Type", "")


def raw(server: MetricsServer, data: bytes) -> bytes:
    """What comes back until the end; empty when the server just hangs up."""
    with socket.create_connection((server.host, server.port), timeout=30) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
        found = b""
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                found += part
        return found


def test_the_metrics_say_what_the_state_holds(context: Context) -> None:
    status = gather(context, patience_seconds=10)
    found = parsed(render(status).decode())
    assert {name: found["datamanager_verdict", (name,)] for name in ("safe", "at_risk", "not_protected")} == {
        "safe": 1,
        "at_risk": 0,
        "not_protected": 0,
    }
    clinic = ("clinic",)
    assert found["datamanager_last_backup_timestamp_seconds", clinic] == BACKUP_ENDED.timestamp()
    assert found["datamanager_last_proof_timestamp_seconds", clinic] == PROVEN.timestamp()
    assert found["datamanager_last_test_restore_passed", clinic] == 1
    assert found["datamanager_last_backup_run_good", clinic] == 1
    assert found["datamanager_last_backup_seconds", clinic] == 240
    assert found["datamanager_restore_seconds", clinic] == 2400.5
    assert found["datamanager_cluster_bytes", clinic] == 123456
    assert found["datamanager_schedules_enabled", clinic] == 1
    assert found["datamanager_jobs_queued", ()] == 1
    assert found["datamanager_jobs_running", ()] == 0
    assert found["datamanager_planner_alive", ()] == 1
    assert found["datamanager_repository_readable", ("usb",)] == 0
    assert ("datamanager_repository_free_bytes", ("usb",)) not in found  # not known, so absent
    assert found["datamanager_findings", ("note",)] == len(status.verdict.findings) == 2


def test_what_is_not_known_is_absent_and_broken_parts_are_said(context: Context) -> None:
    context.home.config_file.write_text("nonsense", encoding="utf-8")
    found = parsed(render(gather(context)).decode())
    assert found["datamanager_verdict", ("not_protected",)] == 1
    assert found["datamanager_state_readable", ()] == 0
    assert not [name for name, _ in found if name.startswith("datamanager_last_")]


def test_metrics_and_health_are_served_on_loopback(server: MetricsServer) -> None:
    status, text, content_type = asked(server, "/metrics")
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert parsed(text)["datamanager_verdict", ("safe",)] == 1
    assert asked(server, "/metrics?name=x")[0] == 200
    status, text, _ = asked(server, "/health")
    assert (status, text.partition(" Last copy")[0]) == (200, "safe: Your records are safe.")
    assert asked(server, "/health", "HEAD") == (200, "", "text/plain; charset=utf-8")
    assert server.host == "127.0.0.1"


def test_health_is_503_when_the_data_is_not_protected(context: Context) -> None:
    context.home.planner_file.unlink()
    with MetricsServer(context, 0) as server:
        status, text, _ = asked(server, "/health")
    assert (status, text) == (
        503,
        "not protected: Not protected: scheduled backups do not run: the planner was not started on this computer.\n",
    )


def configured(context: Context, **options: str) -> None:
    with context.home.config_file.open("a", encoding="utf-8") as file:
        file.write("\n[metrics]\n" + "".join(f"{name} = {value}\n" for name, value in options.items()))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "localhost", "example.org", ""])
def test_any_other_address_is_refused_unless_it_is_allowed(context: Context, host: str) -> None:
    configured(context, host=f'"{host}"')
    with pytest.raises(ConfigurationError):
        MetricsServer(context, 0)


def test_another_address_is_served_when_it_is_allowed(context: Context) -> None:
    configured(context, host='"0.0.0.0"', anybody="true")
    with MetricsServer(context, 0) as server:
        assert server.url == f"http://0.0.0.0:{server.port}"
        assert asked(server, "/health")[0] == 200


def test_a_port_that_is_taken_is_said(context: Context, server: MetricsServer) -> None:
    with pytest.raises(UsageError, match=r"serve metrics on 127\.0\.0\.1 port"):
        MetricsServer(context, server.port)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_other_methods_are_refused(server: MetricsServer, method: str) -> None:
    assert asked(server, "/metrics", method)[0] == 405


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"GET /" + b"a" * 1000 + b" HTTP/1.1\r\n\r\n", b"HTTP/1.0 414"),
        (b"GET /" + b"a" * 10_000_000 + b" HTTP/1.1\r\n\r\n", b""),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 5_000_000, b""),
        (b"GET /metrics HTTP/1.1\r\n" + b"X-" + b"y" * 5_000_000 + b": 1\r\n\r\n", b""),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"HTTP/1.0 404"),
        (b"GET http://other/metrics HTTP/1.1\r\n\r\n", b"HTTP/1.0 404"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"HTTP/1.0 505"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b""),
        (b"GET /%00<script> HTTP/1.1\r\n\r\n", b"HTTP/1.0 404"),
        (b"\r\n\r\n", b""),
        (b"", b""),
    ],
    ids=range(11),
)
def test_hostile_requests_get_a_short_answer_or_none(server: MetricsServer, data: bytes, answer: bytes) -> None:
    began = time.monotonic()
    found = raw(server, data) if data else b""
    assert found.startswith(answer)
    assert len(found) < 10_000
    assert b"script" not in found
    assert b"Traceback" not in found
    assert time.monotonic() - began < 10
    assert asked(server, "/health")[0] == 200


def test_many_connections_at_once_are_bounded_and_slow_ones_are_cut_off(server: MetricsServer) -> None:
    before = threading.active_count()
    idle = [socket.create_connection((server.host, server.port), timeout=30) for _ in range(MAX_CONNECTIONS * 4)]
    try:
        deadline = time.monotonic() + 3
        most = 0
        while time.monotonic() < deadline:
            most = max(most, threading.active_count() - before)
            for one in idle[:8]:
                with contextlib.suppress(OSError):
                    one.sendall(b"G")  # a byte now and then must not keep a place for ever
            time.sleep(0.1)
        assert most <= 2 * MAX_CONNECTIONS  # each has a thread and the timer that cuts it off
        deadline = time.monotonic() + 15
        while (answer := _tried(server)) is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert answer == 200
    finally:
        for one in idle:
            one.close()


def _tried(server: MetricsServer) -> int | None:
    try:
        return asked(server, "/health")[0]
    except (OSError, http.client.HTTPException):
        return None


def test_however_many_ask_everything_is_looked_at_once_in_a_while(context: Context) -> None:
    with MetricsServer(context, 0) as server:
        first = parsed(asked(server, "/metrics")[1])["datamanager_checked_timestamp_seconds", ()]
        began = time.monotonic()
        again = {parsed(asked(server, "/metrics")[1])["datamanager_checked_timestamp_seconds", ()] for _ in range(20)}
        assert time.monotonic() - began < FRESH_SECONDS
    assert again == {first}
