"""Real services for tests: processes with a pid file, stopped, started and looked at by a script.

Files in the folder steer it: ``NAME.slow-start`` (seconds), ``NAME.fail-start``, ``NAME.hang-start``, ``NAME.dies``,
``NAME.fail-stop``, ``NAME.slow-stop``, ``NAME.kill-on-stop`` and ``NAME.kill-on-start`` (the number of a process that
is killed midway, when nothing but the command itself is left to go on).
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil

from datamanager.system.services import ServiceCommands

_SCRIPT = """#!/bin/sh
cd "$1" || exit 9
name=$2
pid=$(cat "$name.pid" 2>/dev/null)
alive() { [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null && ! grep -qs '^State:.Z' "/proc/$pid/status"; }
case $3 in
state)
  [ -e "$name.unknown" ] && exit 4
  alive && exit 0
  exit 3 ;;
stop)
  echo "stop $name" >> events
  mkdir "$name.busy" 2>/dev/null || echo "twice $name" >> events
  [ -e "$name.kill-on-stop" ] && kill -9 "$(cat "$name.kill-on-stop")" && rm "$name.kill-on-stop" && sleep 0.7
  [ -e "$name.slow-stop" ] && sleep "$(cat "$name.slow-stop")"
  if [ -e "$name.fail-stop" ]; then echo "I will not, password=hunter22"; rmdir "$name.busy"; exit 5; fi
  alive && kill "$pid" && while alive; do sleep 0.02; done
  rm -f "$name.pid"
  rmdir "$name.busy" ;;
start)
  echo "start $name" >> events
  mkdir "$name.busy" 2>/dev/null || echo "twice $name" >> events
  [ -e "$name.kill-on-start" ] && kill -9 "$(cat "$name.kill-on-start")" && rm "$name.kill-on-start" && sleep 0.7
  [ -e "$name.slow-start" ] && sleep "$(cat "$name.slow-start")"
  [ -e "$name.hang-start" ] && exec sleep 1000
  if [ -e "$name.fail-start" ]; then echo "port 8080 is taken"; rmdir "$name.busy"; exit 7; fi
  alive && echo "two of $name" >> events
  if [ -e "$name.dies" ]; then sleep 0.3 & else sleep 100000 & fi
  echo $! > "$name.new" && mv "$name.new" "$name.pid"
  rmdir "$name.busy" ;;
esac
"""


class Daemons:
    """Services below ``folder``; none is left when it is closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "control"
        if not self.script.exists():
            self.script.write_text(_SCRIPT)
            self.script.chmod(0o755)

    def words(self, name: str, action: str) -> tuple[str, ...]:
        return (str(self.script), str(self.folder), name, action)

    def commands(self, name: str, limit_seconds: float = 20.0) -> ServiceCommands:
        return ServiceCommands(
            self.words(name, "start"), self.words(name, "stop"), self.words(name, "state"), limit_seconds
        )

    def steer(self, name: str, how: str, text: str = "") -> None:
        (self.folder / f"{name}.{how}").write_text(text)

    def release(self, name: str, how: str) -> None:
        (self.folder / f"{name}.{how}").unlink()

    def start(self, *names: str) -> None:
        """As the machine itself would, and forget that it happened."""
        for name in names:
            assert os.spawnv(os.P_WAIT, str(self.script), [*self.words(name, "start")]) == 0
        self.events_file.unlink(missing_ok=True)

    @property
    def events_file(self) -> Path:
        return self.folder / "events"

    def events(self) -> list[str]:
        """What the script did, in order."""
        return self.events_file.read_text().splitlines() if self.events_file.exists() else []

    def process(self, name: str) -> psutil.Process | None:
        """The living process of a service."""
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int((self.folder / f"{name}.pid").read_text()))
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        return None

    def running(self) -> set[str]:
        names = {path.name.partition(".")[0] for path in self.folder.glob("*.pid")}
        return {name for name in names if self.process(name) is not None}

    def power_off(self) -> None:
        """End everything at once, as a machine does that loses its power; what a script held is gone with it."""
        deadline = time.monotonic() + 20
        while living := self._living():
            assert time.monotonic() < deadline, living
            for process in living:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            # A killed process lives on until the kernel gets to it.
            time.sleep(0.01)
        for path in self.folder.glob("*.busy"):
            path.rmdir()

    def _living(self) -> list[psutil.Process]:
        """Whatever works in the folder; a zombie has none any more."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.cwd() == str(self.folder):
                    found.append(process)
        return found
