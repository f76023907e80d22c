"""A run of its own process that stops services around a job, and can be killed at any step (see its arguments).

    FOLDER RUN NAMES KILL [JOB]

KILL: the number of the message at which it kills itself with SIGKILL, 0 for never. Every message that anybody is told
stands between two steps: before the first stop, between stops, before the job, before the starts, between them.
JOB: ``sleep`` waits for a signal, ``fail`` raises. Its messages are appended to ``messages`` in the folder.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from datamanager.base.clock import SystemClock
from datamanager.base.events import Event, Executed, PhaseStarted, Warned
from datamanager.base.pipeline import StopToken
from datamanager.jobs.services_around import Place, services_stopped
from datamanager.system.services import DescribedServices, Services
from tests.system.daemons import Daemons

NAMES = ("a", "b", "c", "idle")


def place_in(folder: Path, listener: object = None, limit_seconds: float = 20.0) -> Place:
    """Journals and services of a test's folder."""
    daemons = Daemons(folder)
    described = {name: daemons.commands(name, limit_seconds) for name in NAMES}
    told = listener if callable(listener) else (lambda _: None)
    journals = folder / "journals"
    return Place(journals, Services(DescribedServices(described, journals)), SystemClock(), told)


def main(folder: Path, run: str, names: str, kill: int, job: str) -> None:
    count = 0

    def message(text: str) -> None:
        nonlocal count
        count += 1
        with (folder / "messages").open("a") as file:
            file.write(f"{text}\n")
        if count == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def listener(event: Event) -> None:
        match event:
            case PhaseStarted(phase):
                message(phase)
            case Executed(text):
                message(text.partition("\n")[0].partition(" after ")[0])
            case Warned(text):
                message(f"warning: {text}")

    (folder / "run.number").write_text(f"{os.getpid()}\n")
    with StopToken() as stop:
        signal.signal(signal.SIGTERM, lambda *_: stop.stop("cancelled by Ada"))
        with services_stopped(place_in(folder, listener), run, names.split(","), stop):
            message("the job")
            if job == "sleep":
                stop.wait(60)
                stop.check()
            if job == "fail":
                raise RuntimeError("the job failed")
            message("the job is done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] if len(sys.argv) > 5 else "")
