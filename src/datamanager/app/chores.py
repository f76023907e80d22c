"""What the planner does beside planning, each in a thread of its own, so that nothing slow stops the planning."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

from datamanager.base.errors import Cancelled, DataManagerError
from datamanager.base.pipeline import StopToken


class Chore:
    """Does ``work`` again and again until stopped.

    Args:
        name: of the thread, and for people.
        every_seconds: from the end of one time to the beginning of the next.
        limit_seconds: longer than this and something hangs.
        work: may raise; that is said, and it is done again next time.
        say: told what went wrong.
    """

    def __init__(
        self,
        name: str,
        every_seconds: float,
        limit_seconds: float,
        work: Callable[[], None],
        stop: StopToken,
        say: Callable[[str], None],
    ) -> None:
        self.name = name
        self._every = every_seconds
        self._limit = limit_seconds
        self._work = work
        self._stop = stop
        self._say = say
        self._began: float | None = None
        self._soon = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def hangs(self) -> bool:
        began = self._began
        return began is not None and time.monotonic() - began > self._limit

    def soon(self) -> None:
        """Let it be done without waiting any longer."""
        self._soon.set()

    def join(self, seconds: float) -> None:
        self._soon.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.stopping:
            self._began = time.monotonic()
            try:
                self._work()
            except Cancelled:
                pass
            except DataManagerError as error:
                self._say(f"{self.name}: {error.message}.")
            except Exception:  # noqa: BLE001 - one chore that fails must not end the planning
                self._say(f"{self.name}: unexpected error\n{traceback.format_exc()}")
            self._began = None
            self._soon.wait(self._every)
            self._soon.clear()
