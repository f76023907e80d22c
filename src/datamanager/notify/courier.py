"""Attempts in threads of their own, so that nobody ever waits for a mail server: not the planner, not a cancel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from datamanager.notify.outbox import Report


@dataclass(slots=True)
class _Attempt:
    thread: threading.Thread
    deadline: float  # time.monotonic
    seconds: float
    late: bool = False


class Courier:
    """Carries one attempt a channel at a time. Thread-safe; made once, and lives as long as its process.

    An attempt that passes its time is reported as failed; its channel stays busy until the attempt has truly ended,
    and if that was well, it is reported once more. The threads do not keep the process alive.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._attempts: dict[str, _Attempt] = {}
        self._done: list[tuple[str, Report]] = []

    def is_free(self, name: str) -> bool:
        """Whether an attempt may begin: none is under way, and what came of the last one was taken."""
        with self._changed:
            return self._is_free(name)

    def _is_free(self, name: str) -> bool:
        return name not in self._attempts and all(one != name for one, _ in self._done)

    def begin(self, name: str, work: Callable[[], Report], seconds: float) -> None:
        """Start an attempt of at most ``seconds``. Does nothing unless the name is free."""
        with self._changed:
            if not self._is_free(name):
                return
            thread = threading.Thread(target=self._carry, args=(name, work), name=f"notify {name}", daemon=True)
            self._attempts[name] = _Attempt(thread, time.monotonic() + seconds, seconds)
            thread.start()

    def reports(self, wait_seconds: float = 0.0) -> list[tuple[str, Report]]:
        """What has ended since the last call.

        Args: wait_seconds - 0 returns at once; else it returns when every attempt has ended or passed its time.
        """
        until = time.monotonic() + wait_seconds
        with self._changed:
            while True:
                now = time.monotonic()
                waited_for = [one for one in self._attempts.values() if not one.late]
                self._give_up(now)
                if not waited_for or now >= until:
                    break
                self._changed.wait(max(0.0, min(until, *(one.deadline for one in waited_for)) - now) + 0.001)
            done, self._done = self._done, []
        return done

    def give_back(self, reports: list[tuple[str, Report]]) -> None:
        """Let the next call of ``reports`` return these first: whoever took them could not write them down."""
        with self._changed:
            self._done[:0] = reports

    def _give_up(self, now: float) -> None:
        for name, attempt in self._attempts.items():
            if not attempt.late and now >= attempt.deadline:
                attempt.late = True
                self._done.append((name, Report(trouble=f"no answer within {attempt.seconds:.0f} s")))

    def _carry(self, name: str, work: Callable[[], Report]) -> None:
        try:
            report = work()
        except Exception as error:  # noqa: BLE001 - a channel's library must never end more than its attempt
            # Its words may hold a secret.
            report = Report(trouble=f"unexpected {type(error).__name__}")
        with self._changed:
            attempt = self._attempts.pop(name)
            if not attempt.late or report.taken:
                self._done.append((name, report))
            self._changed.notify_all()
