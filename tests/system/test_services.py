from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from datamanager.base.errors import Cancelled, NotFound, ServiceError, UsageError
from datamanager.base.pipeline import StopToken
from datamanager.system.services import (
    SETTLED_SECONDS,
    DescribedServices,
    Runner,
    Services,
    ServiceState,
    check_settled,
    start_service,
    stop_service,
)
from tests.system.daemons import Daemons


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def runner(told: list[str]) -> Iterator[Runner]:
    with StopToken() as stop:
        yield Runner(stop, told.append)


def services(daemons: Daemons, limit_seconds: float = 20.0) -> Services:
    described = {name: daemons.commands(name, limit_seconds) for name in ("a", "b")}
    return Services(DescribedServices(described, daemons.folder / "output"))


def test_a_service_is_stopped_and_started_and_seen_in_each_state(
    daemons: Daemons, runner: Runner, told: list[str]
) -> None:
    daemons.start("a")
    manager = services(daemons)
    before = daemons.process("a")
    assert manager.look("a").state is ServiceState.RUNNING
    stop_service(manager, "a", runner)
    assert manager.look("a").state is ServiceState.STOPPED
    assert daemons.process("a") is None
    start_service(manager, "a", runner)
    assert daemons.process("a") not in (None, before)
    assert [line.split(" after ")[0] for line in told] == ["stop service a: done", "start service a: done"]


def test_stopping_and_starting_twice_acts_once(daemons: Daemons, runner: Runner) -> None:
    manager = services(daemons)
    stop_service(manager, "a", runner)
    for _ in range(2):
        start_service(manager, "a", runner)
    for _ in range(2):
        stop_service(manager, "a", runner)
    assert daemons.events() == ["start a", "stop a"]


def test_a_stop_that_fails_says_why_without_secrets(daemons: Daemons, runner: Runner) -> None:
    daemons.start("a")
    daemons.steer("a", "fail-stop")
    with pytest.raises(ServiceError, match=r"stop service a: exit status 5 \(I will not, password=\*\*\*\)"):
        stop_service(services(daemons), "a", runner)
    assert daemons.running() == {"a"}


def test_a_start_that_fails_says_why(daemons: Daemons, runner: Runner) -> None:
    daemons.steer("a", "fail-start")
    with pytest.raises(ServiceError, match=r"start service a: exit status 7 \(port 8080 is taken\)") as caught:
        start_service(services(daemons), "a", runner)
    assert "datamanager services restore" in caught.value.hint


def test_a_start_that_hangs_is_ended_at_its_limit(daemons: Daemons, runner: Runner) -> None:
    daemons.steer("a", "hang-start")
    began = time.monotonic()
    with pytest.raises(ServiceError, match=r"it did not end within 0\.5 seconds"):
        start_service(services(daemons, 0.5), "a", runner)
    assert time.monotonic() - began < 8


def test_a_service_that_dies_right_after_its_start_has_not_started(daemons: Daemons, runner: Runner) -> None:
    daemons.steer("a", "dies")
    manager = services(daemons)
    assert start_service(manager, "a", runner)
    time.sleep(SETTLED_SECONDS)
    with pytest.raises(ServiceError, match="it ended again right after its start"):
        check_settled(manager, "a")


def test_a_state_command_that_does_not_know_is_an_error(daemons: Daemons) -> None:
    daemons.steer("a", "unknown")
    with pytest.raises(ServiceError, match="exit status 4"):
        services(daemons).look("a")


def test_a_stop_is_ended_when_the_job_is_cancelled(daemons: Daemons, runner: Runner) -> None:
    daemons.start("a")
    runner.stop.stop("cancelled by Ada")
    with pytest.raises(Cancelled):
        stop_service(services(daemons), "a", runner)


def test_a_service_nobody_described_and_no_system_knows_is_not_found(daemons: Daemons) -> None:
    with pytest.raises(NotFound, match="find service cron") as caught:
        services(daemons).look("cron")
    assert "datamanager services add" in caught.value.hint


@pytest.mark.parametrize("name", ["--version", "\\\\server", "", "a/b", "a\nb"])
def test_what_cannot_be_a_name_never_reaches_a_command(daemons: Daemons, name: str) -> None:
    with pytest.raises(UsageError):
        services(daemons).look(name)


def test_what_a_service_says_later_goes_to_its_file(daemons: Daemons, runner: Runner) -> None:
    daemons.steer("a", "fail-start")
    with pytest.raises(ServiceError):
        start_service(services(daemons), "a", runner)
    assert "port 8080 is taken" in (daemons.folder / "output" / "a.output").read_text()
