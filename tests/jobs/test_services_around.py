from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from datamanager.base.errors import Cancelled, ServiceError, UsageError
from datamanager.base.events import Event, Warned
from datamanager.base.pipeline import StopToken
from datamanager.jobs.services_around import forget_service, restore_services, services_down, services_stopped
from datamanager.system.processes import group_options
from datamanager.system.services import Service, ServiceManager, ServiceState
from tests.jobs.stopper import place_in
from tests.system.daemons import Daemons

ROOT = Path(__file__).resolve().parents[2]
ALL = ("a", "b", "c")
# What the run of `stopper` says, in order; it can be killed at each.
MESSAGES = [
    "stopping services", "stop service a: done", "stop service b: done", "stop service c: done", "the job",
    "the job is done", "starting services again", "start service c: done", "start service b: done",
    "start service a: done",
]  # fmt: skip


@pytest.fixture
def stop() -> Iterator[StopToken]:
    with StopToken() as token:
        yield token


def begin(
    daemons: Daemons, run: str = "run", names: str = "a,b,c,idle", kill: int = 0, job: str = ""
) -> subprocess.Popen[str]:
    (daemons.folder / "messages").unlink(missing_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.jobs.stopper", str(daemons.folder), run, names, str(kill), job],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **group_options(),
    )


def messages(daemons: Daemons) -> list[str]:
    file = daemons.folder / "messages"
    return file.read_text().splitlines() if file.exists() else []


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def restored(daemons: Daemons, stop: StopToken) -> None:
    """As the service does it when it starts: everything that ran runs, nothing else does, nothing is owed."""
    began = time.monotonic()
    assert restore_services(place_in(daemons.folder), stop) == []
    assert time.monotonic() - began < 60
    assert daemons.running() == set(ALL)
    assert not list((daemons.folder / "journals").glob("*.json"))
    assert not [line for line in daemons.events() if line.startswith("two")]
    assert not [line for line in daemons.events() if line.startswith("twice")]
    assert not [line for line in daemons.events() if "idle" in line]


def test_services_are_stopped_in_order_and_started_in_reverse(daemons: Daemons) -> None:
    daemons.start(*ALL)
    process = begin(daemons)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert messages(daemons) == MESSAGES
    assert daemons.events() == ["stop a", "stop b", "stop c", "start c", "start b", "start a"]
    assert daemons.running() == set(ALL)
    assert services_down(daemons.folder / "journals") == []


@pytest.mark.parametrize("ending", ["fail", "cancel"])
def test_services_run_again_after_a_failure_and_after_a_cancel(daemons: Daemons, ending: str) -> None:
    daemons.start(*ALL)
    process = begin(daemons, job="fail" if ending == "fail" else "sleep")
    if ending == "cancel":
        until(lambda: "the job" in messages(daemons))
        assert daemons.running() == set()
        process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == 1
    assert ("the job failed" if ending == "fail" else "cancelled by Ada") in errors
    assert daemons.running() == set(ALL)
    assert services_down(daemons.folder / "journals") == []


@pytest.mark.requirement("R101", missing="the loudest alert, which the notifications raise from services_down()")
@pytest.mark.requirement("R48", missing="cancel and reboot have tests of their own here")
@pytest.mark.requirement("N15", missing="the reboot has a test of its own here")
@pytest.mark.parametrize("step", range(1, len(MESSAGES) + 1), ids=lambda step: MESSAGES[step - 1].replace(" ", "-"))
def test_a_run_killed_between_any_two_steps_leaves_services_that_are_started_again(
    daemons: Daemons, stop: StopToken, step: int
) -> None:
    daemons.start(*ALL)
    process = begin(daemons, kill=step)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert messages(daemons) == MESSAGES[:step]
    restored(daemons, stop)


@pytest.mark.parametrize(
    "command", [("a", "kill-on-stop"), ("b", "kill-on-stop"), ("c", "kill-on-start"), ("a", "kill-on-start")]
)
def test_a_command_that_outlives_its_killed_run_is_waited_for(
    daemons: Daemons, stop: StopToken, command: tuple[str, str]
) -> None:
    daemons.start(*ALL)
    name, how = command
    process = begin(daemons, job="" if how == "kill-on-start" else "sleep")
    until((daemons.folder / "run.number").exists)
    daemons.steer(name, how, str(process.pid))
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert (daemons.folder / f"{name}.busy").exists()
    restored(daemons, stop)


@pytest.mark.parametrize("step", [2, 5, 8])
def test_services_run_again_after_the_power_failed(daemons: Daemons, stop: StopToken, step: int) -> None:
    daemons.start(*ALL)
    begin(daemons, kill=step).communicate(timeout=30)
    daemons.power_off()
    # Another boot, on which the number of the killed run belongs to a process that lives.
    (journal,) = (daemons.folder / "journals").glob("*.json")
    value = json.loads(journal.read_text())
    value["process"] = {**value["process"], "pid": os.getpid(), "boot": "the boot before"}
    journal.write_text(json.dumps(value))
    assert daemons.running() == set()
    restored(daemons, stop)


def test_a_killed_restore_is_finished_by_the_next_one(daemons: Daemons, stop: StopToken) -> None:
    daemons.start(*ALL)
    begin(daemons, kill=5).communicate(timeout=30)
    script = (
        "import sys; from pathlib import Path; from datamanager.base.pipeline import StopToken\n"
        "from datamanager.jobs.services_around import restore_services; from tests.jobs.stopper import place_in\n"
        "restore_services(place_in(Path(sys.argv[1])), StopToken())"
    )
    words = [sys.executable, "-c", script, str(daemons.folder)]
    process = subprocess.Popen(words, cwd=ROOT, **group_options())
    daemons.steer("b", "kill-on-start", str(process.pid))
    assert process.wait(30) == -signal.SIGKILL
    assert daemons.running() == {"c"}
    restored(daemons, stop)


def test_several_restores_at_once_start_everything_once(daemons: Daemons) -> None:
    daemons.start(*ALL)
    begin(daemons, kill=5).communicate(timeout=30)
    daemons.events_file.unlink()
    daemons.steer("b", "slow-start", "0.5")

    def restore(wait: bool) -> None:
        with StopToken() as stop:
            restore_services(place_in(daemons.folder), stop, wait=wait)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(restore, number % 2 == 0) for number in range(6)]:
            done.result()
    assert daemons.events() == ["start c", "start b", "start a"]
    assert daemons.running() == set(ALL)


def test_nothing_is_touched_while_the_run_lives(daemons: Daemons, stop: StopToken) -> None:
    daemons.start(*ALL)
    process = begin(daemons, job="sleep")
    until(lambda: "the job" in messages(daemons))
    assert restore_services(place_in(daemons.folder), stop, wait=True, even_if_tried=True) == []
    assert daemons.running() == set()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert daemons.running() == set(ALL)


def test_a_service_that_two_runs_need_stopped_is_started_by_the_last(daemons: Daemons) -> None:
    daemons.start("a", "b")
    first = begin(daemons, "first", "a,b", job="sleep")
    until(lambda: "the job" in messages(daemons))
    second = begin(daemons, "second", "a", job="sleep")
    until(lambda: "the job" in messages(daemons))
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=30)
    assert daemons.running() == {"b"}
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=30)
    assert daemons.running() == {"a", "b"}
    assert daemons.events() == ["stop a", "stop b", "start b", "start a"]


def test_a_service_of_a_killed_run_waits_for_another_that_needs_it_stopped(daemons: Daemons, stop: StopToken) -> None:
    daemons.start("a", "b")
    begin(daemons, "killed", "a,b", kill=4).communicate(timeout=30)
    second = begin(daemons, "second", "a", job="sleep")
    until(lambda: "the job" in messages(daemons))
    assert restore_services(place_in(daemons.folder), stop) == []
    assert daemons.running() == {"b"}
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=30)
    assert daemons.running() == {"a", "b"}


@pytest.mark.parametrize("how", ["fail-start", "hang-start", "dies"])
def test_a_service_that_does_not_start_is_recorded_and_tried_again(daemons: Daemons, stop: StopToken, how: str) -> None:
    daemons.start("a", "b")
    daemons.steer("b", how)
    told: list[Event] = []
    place = place_in(daemons.folder, told.append, limit_seconds=1.0)
    with services_stopped(place, "run", ["a", "b"], stop):
        pass
    assert daemons.running() >= {"a"}
    assert any(isinstance(event, Warned) and "service b was stopped for this job" in event.message for event in told)
    (down,) = services_down(place.folder)
    assert (down.name, down.run) == ("b", "run")
    assert down.error.startswith("start service b: ")
    assert down.tried is not None
    before = len(daemons.events())
    assert restore_services(place, stop) == [down]
    assert len(daemons.events()) == before
    daemons.release("b", how)
    if how == "hang-start":
        (daemons.folder / "b.busy").rmdir()
    assert restore_services(place, stop, even_if_tried=True) == []
    assert daemons.running() == {"a", "b"}


def test_it_is_tried_again_a_minute_later(daemons: Daemons, stop: StopToken) -> None:
    daemons.start("a")
    daemons.steer("a", "fail-start")
    place = place_in(daemons.folder)
    with services_stopped(place, "run", ["a"], stop):
        pass
    daemons.release("a", "fail-start")
    journal = place.folder / "run.json"
    value = json.loads(journal.read_text())
    # A minute ago, and a clock that was set back.
    for tried in ("2020-01-01T00:00:00+00:00", "2120-01-01T00:00:00+00:00"):
        daemons.power_off()
        journal.write_text(json.dumps({**value, "tried": tried}))
        assert restore_services(place, stop) == []
        assert daemons.running() == {"a"}


def test_a_service_that_does_not_stop_fails_the_job_and_the_others_run_again(daemons: Daemons, stop: StopToken) -> None:
    daemons.start(*ALL)
    daemons.steer("b", "fail-stop")
    with (
        pytest.raises(ServiceError, match=r"stop service b: exit status 5"),
        services_stopped(place_in(daemons.folder), "run", ALL, stop),
    ):
        raise AssertionError("the job must not run")
    assert daemons.running() == set(ALL)
    assert daemons.events() == ["stop a", "stop b", "start a"]


def test_a_service_whose_state_is_unknown_fails_the_job_before_anything_stops(
    daemons: Daemons, stop: StopToken
) -> None:
    daemons.start(*ALL)
    daemons.steer("c", "unknown")
    with (
        pytest.raises(ServiceError, match="look at service c"),
        services_stopped(place_in(daemons.folder), "run", ALL, stop),
    ):
        raise AssertionError("the job must not run")
    assert daemons.events() == []


def test_nothing_is_stopped_when_it_cannot_be_written_down(daemons: Daemons, stop: StopToken) -> None:
    daemons.start("a")
    (daemons.folder / "journals").write_text("a file where the folder should be")
    with (
        pytest.raises(ServiceError, match="stop services: "),
        services_stopped(place_in(daemons.folder), "run", ["a"], stop),
    ):
        raise AssertionError("the job must not run")
    assert daemons.events() == []


def test_a_cancel_while_a_service_stops_starts_it_again(daemons: Daemons, stop: StopToken) -> None:
    daemons.start("a")
    daemons.steer("a", "slow-stop", "30")
    threading.Timer(0.4, stop.stop, ["cancelled by Ada"]).start()
    began = time.monotonic()
    with pytest.raises(Cancelled, match="Ada"), services_stopped(place_in(daemons.folder), "run", ["a"], stop):
        raise AssertionError("the job must not run")
    assert time.monotonic() - began < 10
    assert daemons.running() == {"a"}
    assert services_down(daemons.folder / "journals") == []


class Ours:
    """Services whose process is the parent of this one.

    Args: manager - what the rest is left to.
    """

    def __init__(self, manager: ServiceManager) -> None:
        self.limit_seconds = manager.limit_seconds
        self.stop = manager.stop
        self.start = manager.start
        self.list = manager.list

    def look(self, name: str) -> Service:
        return Service(name, ServiceState.RUNNING, pid=os.getppid())


def test_a_job_that_runs_inside_of_a_service_may_not_stop_it(daemons: Daemons, stop: StopToken) -> None:
    place = place_in(daemons.folder)
    with (
        pytest.raises(UsageError, match="this job runs inside of it"),
        services_stopped(replace(place, manager=Ours(place.manager)), "run", ["a"], stop),
    ):
        raise AssertionError("the job must not run")


def test_pressing_ctrl_c_again_does_not_keep_services_down(daemons: Daemons) -> None:
    daemons.start("a")
    daemons.steer("a", "slow-start", "1")
    process = begin(daemons, names="a", job="fail")
    until(lambda: "starting services again" in messages(daemons))
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    process.communicate(timeout=30)
    assert daemons.running() == {"a"}


def test_a_service_can_be_given_up(daemons: Daemons, stop: StopToken) -> None:
    daemons.start("a", "b")
    daemons.steer("b", "fail-start")
    place = place_in(daemons.folder)
    with services_stopped(place, "run", ["a", "b"], stop):
        pass
    assert forget_service(place, "b", stop)
    assert not forget_service(place, "b", stop)
    assert services_down(place.folder) == []


def test_a_journal_that_cannot_be_read_is_told_and_keeps_nothing_else_down(daemons: Daemons, stop: StopToken) -> None:
    daemons.start(*ALL)
    begin(daemons, kill=5).communicate(timeout=30)
    (daemons.folder / "journals" / "broken.json").write_text("{")
    (down,) = restore_services(place_in(daemons.folder), stop)
    assert "read journal of services" in down.error
    assert daemons.running() == set(ALL)


def test_a_pipe_or_a_link_in_the_place_of_a_journal_holds_nobody_up(daemons: Daemons, stop: StopToken) -> None:
    daemons.start(*ALL)
    begin(daemons, kill=5).communicate(timeout=30)
    journals = daemons.folder / "journals"
    os.mkfifo(journals / "pipe.json")
    (journals / "link.json").symlink_to(journals / "run.json")
    down = restore_services(place_in(daemons.folder), stop)
    assert len([one for one in down if "read journal of services" in one.error]) == 2
    assert daemons.running() == set(ALL)


def test_looking_costs_nothing_where_nothing_is_owed(tmp_path: Path) -> None:
    assert services_down(tmp_path / "nowhere") == []
    assert not (tmp_path / "nowhere").exists()
