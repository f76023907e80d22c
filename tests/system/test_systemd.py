from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datamanager.base.errors import ServiceError
from datamanager.system.services import ServiceState
from datamanager.system.systemd import read_list, read_properties

SYSTEMD = Path("/lib/systemd/systemd")
_UNITS = {
    "a.service": "[Unit]\nDescription=A of the office\n[Service]\nExecStart=/bin/sleep 100000\n",
    "b.service": "[Unit]\nRequires=a.service\nAfter=a.service\n[Service]\nExecStart=/bin/sleep 100000\n",
    "idle.service": "[Service]\nExecStart=/bin/sleep 100000\n",
    "broken.service": "[Service]\nExecStart=/bin/false\n",
}
_INSIDE = """
mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/system /run/user/0; chmod 700 /run/user/0
export XDG_RUNTIME_DIR=/run/user/0
/lib/systemd/systemd --user >/dev/null 2>&1 &
exec "$@"
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real systemd did, in a namespace of its own."""
    if not SYSTEMD.exists() or shutil.which("systemctl") is None:
        pytest.skip("systemd is not installed")
    home = tmp_path_factory.mktemp("systemd")
    units = home / ".config" / "systemd" / "user"
    units.mkdir(parents=True)
    for name, text in _UNITS.items():
        (units / name).write_text(text)
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "/bin/bash", "-c", _INSIDE, "x"),
            *(sys.executable, "-m", "tests.system.in_systemd", str(home / "journals")),
        ],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.mounts
def test_a_unit_and_what_requires_it_are_stopped_and_run_again(seen: dict[str, Any]) -> None:
    running = {"a": "running", "b": "running", "idle": "stopped", "nothere": "absent"}
    assert seen["before"] == running
    assert seen["stopped"] == ["b.service", "a.service"]
    assert seen["during"] == {**running, "a": "stopped", "b": "stopped"}
    assert seen["after"] == running
    assert seen["another process"]
    assert seen["down"] == 0


@pytest.mark.mounts
def test_a_unit_is_known_by_its_whole_name_and_what_hangs_on_it(seen: dict[str, Any]) -> None:
    assert seen["a"] == ["a.service", "A of the office", ["b.service"]]
    assert seen["listed"]["a.service"] == "running"


@pytest.mark.mounts
def test_a_unit_that_dies_at_its_start_has_not_started(seen: dict[str, Any]) -> None:
    assert seen["broken"] == "start service broken: its start reported success, but it does not run"


@pytest.mark.mounts
def test_a_unit_that_is_not_there_is_named(seen: dict[str, Any]) -> None:
    assert seen["absent"] == "stop service nothere: there is no such service"


# Captured from systemctl of systemd 252.
_SHOWN = """MainPID=22
Id=a.service
RequiredBy=b.service multi-user.target
BoundBy=
ConsistsOf=
RequisiteOf=
TriggeredBy=a.socket
Description=A = B
LoadState=loaded
ActiveState=activating
Transient=no
"""


def test_properties_are_read_as_systemctl_prints_them() -> None:
    found = read_properties(_SHOWN)
    assert (found.name, found.state, found.title, found.pid) == ("a.service", ServiceState.STARTING, "A = B", 22)
    assert found.dependents == ("a.socket", "b.service")


@pytest.mark.parametrize("text", ["", "Id=a.service\nActiveState=\n", "Id=a.service\nActiveState=odd\n"])
def test_an_answer_without_a_state_is_an_error(text: str) -> None:
    with pytest.raises(ServiceError):
        read_properties(text)


def test_a_transient_unit_would_be_gone_for_good() -> None:
    assert read_properties(_SHOWN.replace("Transient=no", "Transient=yes")).obstacle


def test_the_list_leaves_out_units_that_are_only_named() -> None:
    text = (
        "cron.service      loaded    active   running Regular background program\n"
        "f.service         loaded    failed   failed  f.service\n"
        "ntp.service       not-found inactive dead    ntp.service\n"
    )
    assert [(one.name, one.state.value, one.title) for one in read_list(text)] == [
        ("cron.service", "running", "Regular background program"),
        ("f.service", "stopped", "f.service"),
    ]
