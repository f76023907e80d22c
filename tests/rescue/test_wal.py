"""rescue.py writes the archived WAL as the files that PostgreSQL asks for, and says what is missing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.units import MIB, Lsn
from datamanager.postgres.wal.names import segment_name
from datamanager.repository.keys import SlotSecret
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line, WalArchive
from datamanager.repository.wal.container import WalInfo
from datamanager.storage.local import LocalStorage
from tests.rescue.build import Maker, flip, sample_tree

SYSTEM = 7_401_234_567_890_123_456
SIZE = 16 * MIB
BEGIN = Lsn.parse("0/FD000000")
INFO = WalInfo("2026-11-23T10:00:00+00:00")
HISTORY = b"1\t1/1000060\tno recovery target specified\n\n"


def wal_of(segment: int) -> bytes:
    """Bytes that compress well, and differ from segment to segment."""
    return random.Random(segment).randbytes(1000) * (SIZE // 1000 + 1)


@pytest.fixture
def made(tmp_path: Path) -> Maker:
    maker = Maker(tmp_path / "repository", open_slot=True)
    maker.backup(sample_tree(), alter={"start_lsn": str(Lsn(BEGIN + 40)), "system_identifier": str(SYSTEM)})
    return maker


@pytest.fixture
def archive(made: Maker) -> WalArchive:
    storage = LocalStorage(made.root, growing=["wal"])
    return WalArchive(Repository.open(storage, SlotSecret.open(), SystemClock()), SYSTEM)


def fill(line: Line, numbers: range) -> None:
    for number in numbers:
        line.put(BEGIN + number * SIZE, wal_of(number)[:SIZE], INFO)


def test_segments_and_histories_come_out_as_the_server_wrote_them(
    made: Maker, archive: WalArchive, tmp_path: Path
) -> None:
    first = archive.begin_line(1, SIZE, b"", "clinic", "18.6")
    fill(first, range(-1, 4))
    second = archive.begin_line(2, SIZE, HISTORY, "clinic", "18.6")
    second.put(BEGIN + 4 * SIZE, wal_of(40)[:5000], INFO)
    second.put(BEGIN + 4 * SIZE + 5000, wal_of(40)[5000:9000], INFO)
    made.deliver()
    done = made.rescue("wal", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout
    expected = {segment_name(1, BEGIN + number * SIZE, SIZE): wal_of(number)[:SIZE] for number in range(4)}
    expected["00000002.history"] = HISTORY
    expected[segment_name(2, BEGIN + 4 * SIZE, SIZE)] = wal_of(40)[:9000] + bytes(SIZE - 9000)
    assert {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()} == expected


def test_a_hole_and_a_damaged_segment_are_named(made: Maker, archive: WalArchive, tmp_path: Path) -> None:
    line = archive.begin_line(1, SIZE, b"", "clinic", "18.6")
    fill(line, range(5))
    stored = line.stored()
    line.delete(stored[1:2])
    flip(made.root / stored[3].key, stored[3].size // 2)
    made.deliver()
    done = made.rescue("wal", str(tmp_path / "out"))
    assert done.returncode == 40, done.stdout
    missing = [one for one in done.stdout.splitlines() if one.startswith("  MISSING")]
    assert len(missing) == 2
    assert segment_name(1, BEGIN + SIZE * 2, SIZE) in missing[0]
    assert segment_name(1, BEGIN + SIZE * 3, SIZE) in missing[1]
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_a_repository_without_an_archive_says_so(made: Maker, tmp_path: Path) -> None:
    made.deliver()
    done = made.rescue("wal", str(tmp_path / "out"))
    assert done.returncode == 0
    assert "no archived WAL" in done.stdout
