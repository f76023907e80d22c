"""The spool: segments in a moving window, in whatever order they are asked for, and the room that they take."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import psutil
import pytest

from datamanager.base.errors import TargetTooSmall, TargetUnfit, WalMissing
from datamanager.base.units import GIB, MIB, Lsn
from datamanager.engine.recovery.room import with_room_for_wal
from datamanager.engine.recovery.script import ABSENT, FAULT
from datamanager.engine.recovery.segments import Need, SegmentReader, histories_of, segments_of
from datamanager.engine.recovery.spool import Segment, Spool, window_of
from datamanager.engine.recovery.workplace import check_folder, folder_of
from datamanager.engine.restore.plan import RestoreOptions, RestorePlan, VolumeNeed
from datamanager.postgres.account import CurrentAccount, UnixAccount
from datamanager.postgres.wal.history import Switch, TimelineHistory
from datamanager.repository.manifest import Manifest
from datamanager.repository.wal.archive import Line, WalArchive
from datamanager.repository.wal.container import WalInfo
from tests.repository.parts import new_repository

SIZE = MIB
INFO = WalInfo("2026-11-23T10:00:00+00:00")


@dataclass(frozen=True)
class Wal:
    """What is needed of a line."""

    line: Line
    start: Lsn
    end: Lsn
    timeline: int


def bytes_of(segment: Segment) -> bytes:
    return segment.name.encode() * (SIZE // 24) + bytes(SIZE % 24)


def segments(count: int, timeline: int = 1) -> list[Segment]:
    return segments_of([Wal(cast("Line", None), Lsn(0), Lsn(count * SIZE), timeline)], SIZE)


def spool_in(folder: Path, wanted: list[Segment], fetch: Callable[[Segment], bytes], **more: int) -> Spool:
    histories = {"00000002.history": b"1\t0/100\tno reason\n"}
    return Spool(folder, CurrentAccount(), wanted, SIZE, fetch, histories, lambda brought: None, **more)


def ask(spool: Spool, name: str) -> tuple[int, bytes]:
    """The status of the spool's own program, and what it brought."""
    to = spool.folder.parent / "RECOVERYXLOG"
    words = [sys.executable] if spool.script.suffix == ".py" else ["/bin/sh"]
    done = subprocess.run([*words, spool.script, name, to], timeout=60, check=False, capture_output=True)
    return done.returncode, to.read_bytes() if done.returncode == 0 else b""


def test_segments_come_in_order_and_never_more_than_a_window(tmp_path: Path) -> None:
    wanted, fetched = segments(30), list[str]()

    def fetch(segment: Segment) -> bytes:
        fetched.append(segment.name)
        return bytes_of(segment)

    with spool_in(tmp_path / "new.wal", wanted, fetch) as spool:
        for one in wanted:
            assert ask(spool, one.name) == (0, bytes_of(one))
            assert len([path for path in spool.folder.iterdir() if len(path.name) == 24]) <= window_of(SIZE)
        assert ask(spool, "0000000100000000000000FF")[0] == ABSENT
        assert ask(spool, "00000002.history") == (0, b"1\t0/100\tno reason\n")
    assert fetched == [one.name for one in wanted]
    assert ask(spool, wanted[0].name)[0] == FAULT


def test_a_segment_is_brought_again_and_out_of_order(tmp_path: Path) -> None:
    wanted = segments(40)
    with spool_in(tmp_path / "new.wal", wanted, bytes_of) as spool:
        for place in (30, 2, 3, 4, 5, 2, 39, 39, 0):
            assert ask(spool, wanted[place].name) == (0, bytes_of(wanted[place]))


@pytest.mark.decision(3)
def test_what_keeps_a_segment_from_coming_is_a_fault_and_is_kept(tmp_path: Path) -> None:
    wanted = segments(20)

    def fetch(segment: Segment) -> bytes:
        if segment is wanted[10]:
            raise WalMissing("read WAL: gone", segment.start)
        return bytes_of(segment)

    with spool_in(tmp_path / "new.wal", wanted, fetch) as spool:
        statuses = [ask(spool, one.name)[0] for one in wanted]
        assert set(statuses) == {0, FAULT}
        assert statuses == sorted(statuses)
        with pytest.raises(WalMissing, match="gone"):
            spool.check()


def test_a_settled_spool_serves_its_tail_again_and_again(tmp_path: Path) -> None:
    wanted = segments(20)
    with spool_in(tmp_path / "new.wal", wanted, bytes_of) as spool:
        for one in wanted:
            ask(spool, one.name)
        spool.settle(Lsn(wanted[18].start + 100))
    for _ in range(2):
        assert ask(spool, wanted[18].name) == (0, bytes_of(wanted[18]))
        assert ask(spool, wanted[19].name) == (0, bytes_of(wanted[19]))
    assert ask(spool, wanted[17].name)[0] == FAULT
    assert ask(spool, "00000003.history")[0] == ABSENT


@pytest.mark.decision(3)
def test_a_process_that_is_killed_is_noticed(tmp_path: Path) -> None:
    with spool_in(tmp_path / "new.wal", segments(2), bytes_of, patience=15) as spool:
        pass
    (spool.folder / "failed").unlink()
    began = time.monotonic()
    for one in segments(2):
        (spool.folder / one.name).unlink(missing_ok=True)
    assert ask(spool, segments(2)[0].name)[0] == FAULT
    assert time.monotonic() - began < 15


@pytest.mark.decision(16)
def test_the_last_segment_is_filled_up_with_zeros_and_a_switch_is_taken_from_both_lines(tmp_path: Path) -> None:
    archive = WalArchive(new_repository(), 7)
    switch, end = Lsn(SIZE + 1000), Lsn(2 * SIZE + 77)
    parent = archive.begin_line(1, SIZE, b"", "clinic", "18.6")
    child = archive.begin_line(2, SIZE, f"1\t{switch}\tno recovery target specified\n".encode(), "clinic", "18.6")
    parent.put(Lsn(0), b"p" * SIZE, INFO)
    parent.put(Lsn(SIZE), b"p" * 1000, INFO)
    child.put(switch, b"c" * (SIZE - 1000), INFO)
    child.put(Lsn(2 * SIZE), b"c" * 77, INFO)
    pg_wal = tmp_path / "pg_wal"
    needs: list[Need] = [Wal(parent, Lsn(5000), switch, 1), Wal(child, switch, end, 2)]
    found = segments_of(needs, SIZE)
    assert [one.name for one in found] == [
        f"0000000{line}000000000000000{number}" for line, number in ((1, 0), (2, 1), (2, 2))
    ]
    reader = SegmentReader(needs, SIZE, pg_wal)
    assert reader.read(found[0]) == b"p" * SIZE
    assert reader.read(found[1]) == b"p" * 1000 + b"c" * (SIZE - 1000)
    assert reader.read(found[2]) == b"c" * 77 + bytes(SIZE - 77)


def test_the_beginning_of_the_first_segment_may_come_from_the_backup(tmp_path: Path) -> None:
    line = WalArchive(new_repository(), 7).begin_line(1, SIZE, b"", "clinic", "18.6")
    line.put(Lsn(5000), b"w" * (SIZE - 5000), INFO)
    needs: list[Need] = [Wal(line, Lsn(5000), Lsn(SIZE), 1)]
    with pytest.raises(WalMissing, match="neither in the archive nor in the backup"):
        SegmentReader(needs, SIZE, tmp_path)
    (tmp_path / "000000010000000000000000").write_bytes(b"b" * SIZE)
    (first,) = segments_of(needs, SIZE)
    assert SegmentReader(needs, SIZE, tmp_path).read(first) == b"b" * 5000 + b"w" * (SIZE - 5000)


@pytest.mark.decision(12)
def test_every_number_below_the_newest_is_taken() -> None:
    """The server takes the first one without a history; 4 tells of 2, and nobody of 3."""
    archive = WalArchive(new_repository(), 7)
    line = archive.begin_line(1, SIZE, b"", "clinic", "18.6")
    fourth = archive.begin_line(4, SIZE, b"1\t0/100\tone\n\n2\t0/200\ttwo\n", "clinic", "18.6")
    found = histories_of([line, fourth], line.history)
    assert sorted(found) == ["00000002.history", "00000003.history", "00000004.history"]
    assert found["00000004.history"] == fourth.history.text
    assert TimelineHistory.parse(2, found["00000002.history"]).switches == (Switch(1, Lsn(0x100), "one"),)
    wanted = TimelineHistory(2, (Switch(1, Lsn(0x150), "another"),))
    assert b"0/150" in histories_of([line, fourth], wanted)["00000002.history"]
    assert "00000006.history" in histories_of([line], line.history, {"00000006.history": b"1\t0/100\there\n"})


def test_room_for_the_wal_is_asked_for_before(tmp_path: Path) -> None:
    free = psutil.disk_usage(str(tmp_path)).free
    target = tmp_path / "new"
    plan = RestorePlan(cast("Manifest", None), RestoreOptions(target), {}, [VolumeNeed(target, 100, free)], [])
    needs: list[Need] = [Wal(cast("Line", None), Lsn(0), Lsn(100 * 16 * MIB), 1)]
    (found,) = with_room_for_wal(plan, needs, 16 * MIB).volumes
    assert found.need == 100 + 100 * 16 * MIB + 8 * 16 * MIB
    with pytest.raises(TargetTooSmall, match="and its WAL need"):
        with_room_for_wal(replace(plan, volumes=[VolumeNeed(target, free - GIB, free)]), needs, 16 * MIB)


def test_a_window_has_at_least_two_segments_and_is_bounded() -> None:
    assert [window_of(one * MIB) for one in (1, 16, 64, 1024)] == [8, 8, 4, 2]


def test_a_place_where_the_spool_cannot_be_is_refused_before(tmp_path: Path) -> None:
    target = tmp_path / "new"
    check_folder(target, CurrentAccount())
    folder_of(target).mkdir()
    check_folder(target, CurrentAccount())
    (folder_of(target) / "letters").touch()
    with pytest.raises(TargetUnfit, match="something else lies there"):
        check_folder(target, CurrentAccount())
    if os.name != "nt":
        tmp_path.chmod(0o700)
        with pytest.raises(TargetUnfit, match="may not enter"):
            check_folder(tmp_path / "other", UnixAccount("somebody", 54321, 54321))
