"""Whether a backup is an increment: each obstacle is told in a clause, and without one it is."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from datamanager.base.errors import IncrementRefused
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.backup.increment_plan import AUDIT_PACE_SECONDS, SLICES, BackupPlan, is_uploaded, plan_backup
from datamanager.engine.backup.run import BackupResult
from datamanager.postgres.facts import ServerFacts, SettingFact
from datamanager.postgres.source import FileReceiver, SourceEnd
from datamanager.postgres.wal_summaries import Summaries
from datamanager.repository.manifest import ChecksumFailure, Manifest
from datamanager.repository.repository import Repository
from tests.engine.synthetic_increment import PAGE, SyntheticIncrementSource, SyntheticServer
from tests.engine.synthetic_source import SyntheticCluster
from tests.engine.test_increments import back_up, relations
from tests.repository.parts import SetClock, new_repository

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


def scene() -> tuple[Repository, SyntheticServer, Manifest]:
    repository, server = new_repository(), SyntheticServer(relations())
    manifest = back_up(repository, server).manifest
    server.moved(server.cluster)
    return repository, server, manifest


def plan(
    parent: Manifest, facts: ServerFacts, summaries: Summaries | None, *, damaged: bool = False, full: bool = False
) -> BackupPlan:
    return plan_backup([parent], facts, summaries, damaged=damaged, full=full, now=NOW)


def test_without_an_obstacle_it_is_an_increment() -> None:
    _, server, parent = scene()
    found = plan(parent, server.cluster.facts, server.summaries())
    assert (found.native, found.reason) == (True, "")


@pytest.mark.decision(7)
@pytest.mark.decision(18)
@pytest.mark.decision(19)
@pytest.mark.decision(20)
def test_every_obstacle_is_told_and_everything_is_read() -> None:
    _, server, parent = scene()
    facts, summaries = server.cluster.facts, server.summaries()
    reasons = [
        plan(parent, facts, summaries, full=True),
        plan(parent, facts, None),
        plan(parent, replace(facts, major=16), summaries),
        plan(parent, replace(facts, in_recovery=True), summaries),
        plan(parent, replace(facts, segment_size=1 << 29), summaries),
        plan(replace(parent, major=17), facts, summaries),
        plan(replace(parent, control={"state": "shut down"}), facts, summaries),
        plan(parent, replace(facts, timeline=2), summaries),
        plan(parent, replace(facts, data_checksums=True), summaries),
        plan(replace(parent, checksum_failures=[ChecksumFailure("base/5/1", [3])]), facts, summaries),
        plan(parent, facts, summaries, damaged=True),
        plan(parent, facts, replace(summaries, enabled=False)),
        plan(parent, facts, replace(summaries, ranges=())),
        plan_backup([parent], replace(facts, system_identifier=1), summaries, damaged=False, full=False, now=NOW),
        plan_backup([], facts, summaries, damaged=False, full=False, now=NOW),
    ]
    assert not any(one.native for one in reasons)
    assert all((one.reason and one.reason[0].islower()) or one.reason.startswith("PostgreSQL") for one in reasons)
    assert len({one.reason for one in reasons}) == len(reasons)
    assert [one.parent is None for one in reasons] == [False] * 13 + [True, True]


@pytest.mark.decision(2)
@pytest.mark.decision(5)
def test_visibility_maps_and_one_slice_are_never_uploaded_and_every_file_has_its_turn() -> None:
    paths = [b"base/5/%d" % number for number in range(16384, 17384)]
    for path in paths:
        assert [is_uploaded(path, number) for number in range(SLICES)].count(False) == 1
    shares = [sum(not is_uploaded(path, number) for path in paths) for number in range(SLICES)]
    assert min(shares) > 0
    for other in (b"base/5/16384_vm", b"base/5/16384_fsm", b"base/5/16384_init", b"pg_xact/0000", b"PG_VERSION"):
        assert not any(is_uploaded(other, number) for number in range(SLICES))


class Refusing(SyntheticIncrementSource):
    """A server that takes no increment once it is asked for one, although its summaries promised it."""

    def run(self, receiver: FileReceiver, stop: StopToken, upload: bytes | None = None) -> SourceEnd:
        if upload is not None:
            raise IncrementRefused("run on server: WAL summaries are required on timeline 1")
        return super().run(receiver, stop)


@pytest.mark.decision(20)
def test_what_the_server_refuses_is_read_whole_in_the_same_run() -> None:
    repository, server, _ = scene()
    result = back_up(repository, server, source=Refusing(server, random.Random(1)))
    assert result.manifest.method == "compared"
    assert "WAL summaries are required" in result.manifest.reason
    assert any("everything is read instead" in warning for warning in result.warnings)


def _page(number: int, lsn: int) -> bytes:
    return lsn.to_bytes(8, "little")[4:] + lsn.to_bytes(8, "little")[:4] + bytes([number % 250 + 1]) * (PAGE - 8)


def _audited(server: SyntheticServer, repository: Repository, path: bytes) -> BackupResult:
    for _ in range(SLICES):
        result = back_up(repository, server)
        if result.manifest.method != "native":
            return result
        server.moved(server.cluster)
    raise AssertionError(f"{path!r} was never looked at")


@pytest.mark.decision(5)
def test_the_audit_finds_a_page_that_changed_without_a_word_in_the_wal() -> None:
    path = b"base/5/16390"
    old = b"".join(_page(number, 0x1000) for number in range(40))
    cluster = relations().with_files({path: old})
    repository, server = new_repository(), SyntheticServer(cluster, rewritten=0, silent=(path,))
    back_up(repository, server)
    server.moved(server.cluster)
    data = bytearray(old)
    data[7 * PAGE : 8 * PAGE] = _page(99, 0x1008)  # another page, of before the first backup by its own LSN
    server.moved(server.cluster.with_files({path: bytes(data)}))
    result = _audited(server, repository, path)
    assert result.manifest.method == "compared"
    assert "block 7 of base/5/16390" in result.manifest.reason
    assert any("are not what the server held" in warning for warning in result.warnings)
    assert result.manifest.audit["mismatches"] == [{"path": "base/5/16390", "block": 7}]


@pytest.mark.decision(5)
@pytest.mark.parametrize("hints", ["off", "on"])
def test_bytes_that_differ_under_one_lsn_count_only_where_hint_bits_are_logged(hints: str) -> None:
    path = b"base/5/16390"
    old = b"".join(_page(number, 0x1000) for number in range(40))
    repository, server = (
        new_repository(),
        SyntheticServer(relations().with_files({path: old}), rewritten=0, silent=(path,)),
    )
    server.settings = (SettingFact("wal_log_hints", hints),)
    back_up(repository, server)
    data = bytearray(old)
    data[7 * PAGE + 100] ^= 1
    server.moved(server.cluster.with_files({path: bytes(data)}))
    if hints == "on":
        assert "block 7" in _audited(server, repository, path).manifest.reason
        return
    for _ in range(SLICES):
        assert back_up(repository, server).manifest.method == "native"
        server.moved(server.cluster)


@pytest.mark.decision(5)
def test_a_slice_is_audited_once_a_day_and_not_with_every_increment_of_an_hour() -> None:
    clock = SetClock()
    repository, server = new_repository(clock=clock), SyntheticServer(relations())
    looked = []
    for _ in range(72):
        result = back_up(repository, server, pace=AUDIT_PACE_SECONDS)
        looked.append((result.manifest.audit.get("slice", -1), result.manifest.audit["at"] == result.manifest.started))
        clock.advance(3600)
        server.moved(server.cluster)
    assert [place for place, (_, now) in enumerate(looked) if now] == [0, 20, 40, 60]
    assert [looked[place][0] for place in (0, 19, 20, 39, 40, 60, 71)] == [-1, -1, 0, 0, 1, 2, 2]
    clock.set_wall(clock.now() - timedelta(days=400))
    result = back_up(repository, server, pace=AUDIT_PACE_SECONDS)
    assert result.manifest.audit["slice"] == 3


def test_lsns_of_the_synthetic_pages_are_what_they_say() -> None:
    assert Lsn.parse("0/1000") == Lsn(0x1000)
    assert SyntheticCluster(PAGE, {}, ()).facts.major == 18
