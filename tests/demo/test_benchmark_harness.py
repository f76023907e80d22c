"""The benchmark harness tells failures from figures, sums memory over processes and never dresses up an old peer."""

from __future__ import annotations

import io
import random
import struct
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.contender import Bar, Measurement, measure
from benchmarks.increment_rows import ABOVE_FIGURE, sizes_row
from benchmarks.process import Account, ContenderFailed, Finished, run
from benchmarks.raw_increment import changed_pages
from benchmarks.report import bar_lines, merge, render
from benchmarks.server import PAGE_BYTES
from benchmarks.setting import Absent, RowResult, stored_share
from benchmarks.workspace import Workspace
from datamanager.base.units import MIB

# A process that holds 60 MiB only in a child of its own.
_PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time; held = bytearray(60 << 20); time.sleep(0.3)"], check=True)
"""


class Sleeper:
    """A contender that needs no server."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.command = "sleep 0.01"
        self.calls: list[str] = []

    def prepare(self) -> None:
        self.calls.append("prepare")

    def run(self, sample_memory: bool) -> Finished:
        self.calls.append("run")
        return run(["sleep", "0.01"], sample_memory=sample_memory)

    def stored_bytes(self) -> int | None:
        return None

    def clean(self) -> None:
        self.calls.append("clean")


def bar_of(needed: float, against: str = "") -> Bar:
    return Bar("speed", lambda found: found["peer"].median / found["ours"].median, needed, True, but=against)


def page(bar: Bar, *measurements: Measurement) -> str:
    return render(["a fact"], [RowResult("Row", "Note.", list(measurements), [bar], 10 * MIB, ours="ours")])


def test_a_contender_that_fails_gets_a_row_that_says_so_and_the_others_go_on() -> None:
    sleeper = Sleeper("peer")
    results = measure([Absent("ours", "it is | not there"), sleeper], 3, lambda text: None)
    assert [len(result.seconds) for result in results] == [0, 3]
    assert sleeper.calls == ["prepare", "run", "clean"] * 3
    text = page(bar_of(1.0), *results)
    assert "| ours | failed: it is \\| not there |" in text
    assert "not measured: a contender failed" in text


def test_each_round_begins_with_another_contender() -> None:
    order: list[str] = []
    measure([Sleeper("one"), Sleeper("two")], 2, lambda text: order.append(text.split()[2].rstrip(":")))
    assert order == ["one", "two", "two", "one"]


def test_memory_is_that_of_the_whole_tree_of_processes() -> None:
    peak = run([sys.executable, "-c", _PARENT], sample_memory=True).peak
    assert 60 * MIB < peak.anonymous_bytes < 120 * MIB
    assert peak.processes == 2
    assert peak.mapped_bytes > 0


def test_a_pipeline_fails_when_any_part_of_it_fails() -> None:
    with pytest.raises(ContenderFailed, match="ended with 1"):
        run("false | cat")
    assert run("true | cat").stdout == ""


def test_of_a_traceback_only_the_last_line_is_shown() -> None:
    with pytest.raises(ContenderFailed) as caught:
        run([sys.executable, "-c", "import nothing_of_this_name"])
    assert "ModuleNotFoundError" in str(caught.value)
    assert "File" not in str(caught.value)


def test_a_bar_is_held_or_missed_and_an_older_peer_is_named() -> None:
    measurements = Measurement("ours", seconds=[1.0, 1.0, 9.0]), Measurement("peer", seconds=[2.0, 2.5, 1.0])
    assert "| ≥ 1.25 × | 2.00 × | held |" in page(bar_of(1.25), *measurements)
    assert "| ≥ 2.50 × | 2.00 × | missed |" in page(bar_of(2.5), *measurements)
    assert "| held, but against an older release |" in page(bar_of(1.25, "against an older release"), *measurements)


def test_the_report_shows_no_path_of_this_machine(tmp_path: Path) -> None:
    with Workspace(tmp_path, Account()) as workspace:
        workspace.show_as(workspace.path / "bin", "PGBIN")
        shown = workspace.shown([str(workspace.path / "bin" / "tar"), str(workspace.path / "data")])
        place = workspace.path
    assert shown == "PGBIN/tar WORK/data"
    assert not place.exists()


def test_changes_come_before_each_round_and_outside_the_time() -> None:
    sleeper = Sleeper("ours")
    measure([sleeper], 2, lambda text: None, before_round=lambda turn: sleeper.calls.append(f"change {turn}"))
    assert sleeper.calls == ["change 0", "prepare", "run", "clean", "change 1", "prepare", "run", "clean"]


def test_a_bar_on_bytes_is_not_judged_where_a_size_is_unknown() -> None:
    ours, peer = Sleeper("ours"), Sleeper("peer")
    bar = Bar("bytes", stored_share(ours, peer), 0.3, False)
    known = (
        Measurement("ours", seconds=[1.0], stored_bytes=MIB),
        Measurement("peer", seconds=[1.0], stored_bytes=10 * MIB),
    )
    assert "| ≤ 0.30 × | 0.10 × | held |" in page(bar, *known)
    unknown = known[0], Measurement("peer", seconds=[1.0])
    assert "not measured" in page(bar, *unknown)


def test_a_page_keeps_the_sections_that_a_run_did_not_measure() -> None:
    def section(title: str, seconds: float) -> RowResult:
        return RowResult(title, "Note.", [Measurement("ours", seconds=[seconds])], [], MIB, ours="ours")

    before = render(["an older fact"], [section("Kept", 1.0), section("Again", 2.0)])
    merged = merge(render(["a fact"], [section("Again", 3.0), section("New", 4.0)]), before)
    assert [line for line in merged.splitlines() if line.startswith("## ")] == ["## Kept", "## Again", "## New"]
    assert "| ours | 3.00 s |" in merged
    assert "| ours | 2.00 s |" not in merged
    assert "an older fact" not in merged
    assert merge(merged, merged) == merged


def test_equal_cost_at_every_size_is_judged_from_two_sizes_on() -> None:
    rows = [
        RowResult("Row", "Note.", [], [], size, figures={ABOVE_FIGURE: cost})
        for size, cost in ((10**9, 0.4), (5 * 10**9, 0.6))
    ]
    assert sizes_row(rows[:1]) is None
    row = sizes_row(rows)
    assert row is not None
    assert bar_lines(row) == ["equal at every size: most less least: 0.20 s (needed ≤ 0.15 s): missed"]


@pytest.mark.parametrize("pages", [0, 3, 40])
def test_changed_pages_are_counted_and_weighed_in_files_sent_as_increments_only(tmp_path: Path, pages: int) -> None:
    stream, numbers = tmp_path / "stream.tar", random.Random(1)
    with open(stream, "wb") as whole:
        for _ in range(2):  # two archives, one after the other, as a cluster with a tablespace is sent
            increment = struct.pack("=III", 0xD3AE1F0D, pages, 131_072) + struct.pack(f"={pages}I", *range(pages))
            if pages:
                increment += bytes(-len(increment) % PAGE_BYTES) + numbers.randbytes(pages * PAGE_BYTES)
            files = {
                "base/5/INCREMENTAL.16384": increment,
                "base/5/16385": bytes(5 * PAGE_BYTES),
                "pg_wal/1": b"w" * 99,
            }
            with tarfile.open(fileobj=whole, mode="w") as archive:
                for name, content in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    found, compressed = changed_pages(stream)
    assert found == 2 * pages
    assert 2 * pages * PAGE_BYTES <= compressed <= 2 * pages * PAGE_BYTES * 1.01
