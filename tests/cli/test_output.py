"""Progress in lines, and the JSON contract, by a clock that the test moves."""

from __future__ import annotations

import io
import json

from datamanager.base.events import Executed, PhaseStarted, Progress, Warned
from datamanager.base.units import MIB
from datamanager.cli.output import HumanConsole, JsonConsole


class Time:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_progress_is_a_line_a_tenth_and_never_more_than_one_a_second() -> None:
    time, out = Time(), io.StringIO()
    console = HumanConsole(out, io.StringIO(), time)
    console.event(PhaseStarted("copying"))
    for step in range(1, 1001):
        time.now += 0.02  # 20 s in all
        console.event(Progress(step * MIB, 1000 * MIB))
    lines = out.getvalue().splitlines()
    assert lines[0] == "copying …"
    assert 9 <= len(lines) - 1 <= 10
    assert lines[1] == "copying: 10 % (100 MiB of 1000 MiB), 50.0 MiB/s, 18 s left"


def test_fast_progress_is_kept_to_one_line_a_second() -> None:
    time, out = Time(), io.StringIO()
    console = HumanConsole(out, io.StringIO(), time)
    console.event(PhaseStarted("copying"))
    for step in range(1, 1001):
        time.now += 0.003
        console.event(Progress(step * MIB, 1000 * MIB))
    assert len(out.getvalue().splitlines()) <= 4


def test_a_slow_phase_says_every_half_minute_that_it_lives() -> None:
    time, out = Time(), io.StringIO()
    console = HumanConsole(out, io.StringIO(), time)
    console.event(PhaseStarted("copying"))
    for step in range(1, 121):
        time.now += 1
        console.event(Progress(step * MIB))
    lines = out.getvalue().splitlines()
    assert lines[1:] == [f"copying: {count} MiB, 1.0 MiB/s" if count > 99 else f"copying: {count}.0 MiB, 1.0 MiB/s"
                         for count in (30, 60, 90, 120)]  # fmt: skip


def test_json_lines_carry_every_event_and_at_most_one_progress_a_second() -> None:
    time, out = Time(), io.StringIO()
    console = JsonConsole(out, time)
    console.event(PhaseStarted("copying"))
    for step in range(1, 101):
        time.now += 0.1
        console.event(Progress(step * MIB, 100 * MIB))
    time.now += 1
    console.event(Progress(5 * MIB, fraction=0.5))
    console.event(Warned("über"))
    console.event(Executed("SELECT 1"))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    progress = [line for line in lines if line["message_type"] == "progress"]
    assert 11 <= len(progress) <= 12
    assert progress[-1] | {"bytes_per_second": 0} == {
        "message_type": "progress", "done_bytes": 5 * MIB, "total_bytes": None, "percent": 50.0,
        "bytes_per_second": 0, "seconds_left": 11.0,
    }  # fmt: skip
    assert progress[0] == {
        "message_type": "progress", "done_bytes": MIB, "total_bytes": 100 * MIB, "percent": 1.0,
        "bytes_per_second": 10 * MIB, "seconds_left": 9.9,
    }  # fmt: skip
    assert lines[-2:] == [
        {"message_type": "warning", "message": "über"},
        {"message_type": "executed", "text": "SELECT 1"},
    ]
    assert out.getvalue().isascii()
