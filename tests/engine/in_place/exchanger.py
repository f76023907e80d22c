"""A process that restores in place, undoes, or finishes, and kills itself at a moment; its order is JSON on stdin.

``moment``: a text and how many messages that begin with it come before, as ``exchange 0``; empty for never. Every
message is told before what it says is done. All of them are printed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from datamanager.base.events import Event, Executed, PhaseStarted
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.plan import InPlaceOptions, plan_in_place
from datamanager.engine.in_place.recovery import finish_or_undo
from datamanager.engine.in_place.run import run_in_place
from datamanager.engine.in_place.undo import UndoOptions, plan_undo, run_undo
from datamanager.system.exchange import exchange
from tests.engine.in_place.conftest import Copied


def main(order: dict[str, Any]) -> None:
    wanted, _, count = order["moment"].rpartition(" ")
    left = int(count) if wanted else -1

    def listener(event: Event) -> None:
        nonlocal left
        text = {PhaseStarted: "phase: {0.phase}", Executed: "{0.text}"}.get(type(event), "").format(event)
        if not text:
            return
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
        if wanted and text.startswith(wanted):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    place = Path(order["data_directory"])
    swapped = exchange if order["exchange"] else lambda one, other: False
    with StopToken() as stop:
        match order["action"]:
            case "restore":
                spaces = {int(oid): location for oid, location in order["tablespaces"].items()}
                options = InPlaceOptions(
                    place, order["system_identifier"], order["major"], "backup", {}, spaces, start_seconds=60
                )
                run_in_place(plan_in_place(options), Copied(Path(order["golden"])), stop, listener, swapped=swapped)
            case "undo":
                run_undo(plan_undo(UndoOptions(place, start_seconds=60), stop), stop, listener, swapped=swapped)
            case "finish":
                finish_or_undo(place, listener, swapped=swapped)


if __name__ == "__main__":
    main(json.load(sys.stdin))
