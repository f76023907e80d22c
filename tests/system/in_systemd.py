"""Run inside a namespace where a systemd of its own is up (see test_systemd.py); writes what it found as JSON."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

from datamanager.base.clock import SystemClock
from datamanager.base.errors import DataManagerError
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.jobs.services_around import Place, services_down, services_stopped
from datamanager.system.services import Runner, ServiceManager, start_service
from datamanager.system.systemd import SystemdServices


def states(manager: ServiceManager) -> dict[str, str]:
    return {name: manager.look(name).state.value for name in ("a", "b", "idle", "nothere")}


def main(folder: Path) -> dict[str, object]:
    manager = SystemdServices(user=True)
    found: dict[str, object] = {}
    with StopToken() as stop:
        for _ in range(100):
            with contextlib.suppress(DataManagerError):
                start_service(manager, "b", Runner(stop, lambda _: None))
                break
            time.sleep(0.1)
        found["before"] = states(manager)
        found["a"] = [manager.look("a").name, manager.look("a").title, list(manager.look("a").dependents)]
        pid = manager.look("a").pid
        place = Place(folder, manager, SystemClock(), ignore)
        with services_stopped(place, "run", ["a", "idle"], stop) as stopped:
            found["stopped"] = list(stopped)
            found["during"] = states(manager)
        found["after"] = states(manager)
        found["another process"] = manager.look("a").pid not in (pid, None)
        found["down"] = len(services_down(folder))
        try:
            start_service(manager, "broken", Runner(stop, lambda _: None))
        except DataManagerError as error:
            found["broken"] = error.message
        try:
            with services_stopped(place, "other", ["nothere"], stop):
                pass
        except DataManagerError as error:
            found["absent"] = error.message
        found["listed"] = {one.name: one.state.value for one in manager.list() if one.name[0] in "ab"}
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
