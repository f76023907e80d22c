"""Memory does not follow the size of the database: one of 1 TiB, simulated, beside one of 1 GiB."""

from __future__ import annotations

import subprocess
import sys

import pytest

# What else a backup holds at the same time: 6 x 1 MiB batches, 3 x 33 MiB packs, 16 MiB of metadata chunks,
# interpreter and libraries 60 MiB. With the bar of 400 MiB this leaves 200 MiB.
ROOM_MIB = 200


def peak(files: int, segments: int) -> tuple[float, int]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.flat_memory", str(files), str(segments)],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    mib, rows = done.stdout.split()
    return float(mib), int(rows)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_tebibyte_in_a_thousand_segments_takes_hardly_more_memory_than_a_gibibyte() -> None:
    small, _ = peak(1_000, 1)
    large, rows = peak(1_000, 1024)
    assert rows < 30_000
    assert large < small + 40


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_tebibyte_with_two_hundred_thousand_files_stays_within_the_bar() -> None:
    large, _ = peak(200_000, 1024)
    assert large < ROOM_MIB
