"""sc.exe is stood in for by a script that answers as sc.exe does; nothing here has run on Windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.base.errors import ServiceError
from datamanager.base.pipeline import StopToken
from datamanager.system.services import Runner, ServiceState, start_service, stop_service
from datamanager.system.windows_services import WindowsServices, read_services

_QUERYEX = """
SERVICE_NAME: Exchange HL7
DISPLAY_NAME: Exchange: HL7 side
        TYPE               : 10  WIN32_OWN_PROCESS
        STATE              : 4  RUNNING
                                (STOPPABLE, NOT_PAUSABLE, ACCEPTS_SHUTDOWN)
        WIN32_EXIT_CODE    : 0  (0x0)
        SERVICE_EXIT_CODE  : 0  (0x0)
        CHECKPOINT         : 0x0
        WAIT_HINT          : 0x0
        PID                : 1100
        FLAGS              :
"""
_DEPENDING = """[SC] EnumDependentServices: entriesread = 2

SERVICE_NAME: NcaSvc
DISPLAY_NAME: Network Connectivity Assistant
        TYPE               : 20  WIN32_SHARE_PROCESS
        STATE              : 1  STOPPED
        WIN32_EXIT_CODE    : 2  (0x0)
        SERVICE_EXIT_CODE  : 3  (0x0)
        CHECKPOINT         : 0x1A
        WAIT_HINT          : 0x5

SERVICE_NAME: iphlpsvc
DISPLAY_NAME: IP Helper
        TYPE               : 20  WIN32_SHARE_PROCESS
        STATE              : 4  RUNNING
                                (STOPPABLE, NOT_PAUSABLE, IGNORES_SHUTDOWN)
        WIN32_EXIT_CODE    : 6  (0x0)
        SERVICE_EXIT_CODE  : 7  (0x0)
        CHECKPOINT         : 0x8
        WAIT_HINT          : 0x9
"""


def test_one_service_is_read_with_its_state_and_process() -> None:
    (one,) = read_services(_QUERYEX.replace("\n", "\r\n"))
    assert (one.name, one.title, one.state, one.pid) == (
        "Exchange HL7", "Exchange: HL7 side", ServiceState.RUNNING, 1100
    )  # fmt: skip


@pytest.mark.parametrize("heading", ["[SC] EnumDependentServices: entriesread = 2", "Enum: entriesRead = 2"])
def test_dependents_are_read_whatever_the_heading(heading: str) -> None:
    text = _DEPENDING.replace("[SC] EnumDependentServices: entriesread = 2", heading)
    assert [(one.name, one.state) for one in read_services(text)] == [
        ("NcaSvc", ServiceState.STOPPED),
        ("iphlpsvc", ServiceState.RUNNING),
    ]


def test_labels_in_another_language_do_not_matter() -> None:
    text = _QUERYEX.replace("SERVICE_NAME", "DIENSTNAME").replace("STATE  ", "STATUS ")
    assert [(one.name, one.state) for one in read_services(text)] == [("Exchange HL7", ServiceState.RUNNING)]


_STAND_IN = """#!/bin/sh
# Asynchronous as the real one: a request only begins the change, and a look or two later it is done.
dir="$(dirname "$0")"
state() {
  old=$(cat "$dir/state")
  case $old in 2) echo 4 > "$dir/state";; 3) echo 1 > "$dir/state";; esac
  echo "$old"
}
word() { case $1 in 1) echo STOPPED;; 2) echo START_PENDING;; 3) echo STOP_PENDING;; 4) echo RUNNING;; esac; }
case $1 in
queryex)
  [ "$2" = Exchange ] || { echo "[SC] EnumQueryServicesStatus:OpenService FEHLER 1060:"; exit 36; }
  now=$(state)
  printf 'SERVICE_NAME: Exchange\\n        TYPE               : 10  WIN32_OWN_PROCESS\\n'
  printf '        STATE              : %s  %s\\n        PID                : 77\\n' "$now" "$(word "$now")" ;;
enumdepend) echo "[SC] EnumDependentServices: entriesread = 0" ;;
stop) [ -e "$dir/depended" ] && exit 27; echo 3 > "$dir/state" ;;
start) [ "$(cat "$dir/state")" = 1 ] && echo 2 > "$dir/state" ;;
esac
"""


@pytest.fixture
def windows(tmp_path: Path) -> WindowsServices:
    program = tmp_path / "sc"
    program.write_text(_STAND_IN)
    program.chmod(0o755)
    (tmp_path / "state").write_text("4")
    return WindowsServices(str(program))


@pytest.fixture
def runner() -> Iterator[Runner]:
    with StopToken() as stop:
        yield Runner(stop, lambda _: None)


def test_a_stop_and_a_start_wait_until_it_is_so(windows: WindowsServices, runner: Runner) -> None:
    stop_service(windows, "Exchange", runner)
    assert windows.look("Exchange").state is ServiceState.STOPPED
    start_service(windows, "Exchange", runner)
    assert windows.look("Exchange").state is ServiceState.RUNNING


def test_a_service_that_is_not_there_is_told_by_the_number_of_the_error(windows: WindowsServices) -> None:
    assert windows.look("Nothing").state is ServiceState.ABSENT


def test_a_stop_that_is_refused_is_an_error(windows: WindowsServices, runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "depended").touch()
    with pytest.raises(ServiceError, match="stop service Exchange: exit status 27"):
        stop_service(windows, "Exchange", runner)
