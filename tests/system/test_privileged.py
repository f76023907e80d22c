"""The socket of the supervisor: who hangs or goes away holds up nobody, and no two commands meet at one service."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.base.pipeline import StopToken
from datamanager.system.privileged import PrivilegedServer, PrivilegedServices
from datamanager.system.services import DescribedServices, Runner, ServiceState, start_service
from tests.system.daemons import Daemons

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the supervisor listens on Linux alone")


@pytest.fixture
def server(daemons: Daemons, tmp_path: Path) -> Iterator[PrivilegedServer]:
    described = DescribedServices({"a": daemons.commands("a", 20.0)}, tmp_path / "output")
    one = PrivilegedServer(
        tmp_path / "socket",
        group_id=os.getgid(),
        allowed_users=(os.getuid(),),
        find=lambda name: described,
        executed=lambda text: None,
    )
    yield one
    one.close()


def ask(server: PrivilegedServer, verb: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(server.path))
    connection.sendall(json.dumps({"verb": verb, "name": "a"}).encode() + b"\n")
    return connection


def test_a_killed_callers_command_has_ended_before_the_service_is_looked_at(
    server: PrivilegedServer, daemons: Daemons
) -> None:
    """Else a stop that a killed job had begun takes a service down that was just found to run."""
    daemons.start("a")
    (daemons.folder / "control").write_text(
        (daemons.folder / "control").read_text().replace("stop)\n", "stop)\n  trap '' TERM; sleep 1.5\n")
    )
    caller = ask(server, "service-stop")
    time.sleep(0.3)
    caller.close()
    services = PrivilegedServices(server.path, ["a"])
    with StopToken() as stop:
        start_service(services, "a", Runner(stop, lambda text: None))
    time.sleep(2.5)
    assert services.look("a").state is ServiceState.RUNNING
    assert not [line for line in daemons.events() if line.startswith(("two", "twice"))]


def test_callers_that_say_nothing_go_after_seconds_and_hold_up_nobody(
    server: PrivilegedServer, daemons: Daemons
) -> None:
    daemons.start("a")
    silent = []
    for _ in range(8):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(server.path))
        silent.append(connection)
    began = time.monotonic()
    services = PrivilegedServices(server.path, ["a"])
    while True:
        try:
            for connection in silent:
                connection.send(b"x")  # a byte now and then
        except OSError:
            break
        assert time.monotonic() - began < 9
        time.sleep(0.5)
    assert services.look("a").state is ServiceState.RUNNING
    for connection in silent:
        connection.close()
