"""The benchmark harness tells failures from figures, sums memory over processes and never dresses up an old peer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.contender import Bar, Measurement, measure
from benchmarks.process import Account, ContenderFailed, Finished, run
from benchmarks.report import render
from benchmarks.rows import Absent, RowResult
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
    return Bar("speed", lambda found: found["peer"].median / found["ours"].median, needed, True, against=against)


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
    assert "| held, but against an older release |" in page(bar_of(1.25, "an older release"), *measurements)


def test_the_report_shows_no_path_of_this_machine(tmp_path: Path) -> None:
    with Workspace(tmp_path, Account()) as workspace:
        workspace.show_as(workspace.path / "bin", "PGBIN")
        shown = workspace.shown([str(workspace.path / "bin" / "tar"), str(workspace.path / "data")])
        place = workspace.path
    assert shown == "PGBIN/tar WORK/data"
    assert not place.exists()
