"""Named moments at which a process is killed, for the victim: at a storage call, a phase, or a call of the system.

A moment is a text, ``KIND MATCH COUNT``, such as ``put manifests/ 1``:

    put get list delete stat   before the storage method is called with a key that begins with MATCH
    stored                     after a put of such a key has returned
    phase                      when the phase MATCH (with ``_`` for blanks) begins
    progress                   at a progress report; MATCH is ``any``
    slot                       when the backup's replication slot was made; MATCH is ``any``
    audit:NAME                 at Python's audit event NAME whose arguments, as text, hold MATCH
    sync                       inside a put, when every byte of the temporary file of a key below MATCH is written and
                               none is synced

COUNT is the how-manieth of those, from 1.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any


@dataclass(frozen=True, slots=True)
class Moment:
    """One named moment."""

    kind: str
    match: str
    count: int

    @classmethod
    def parse(cls, text: str) -> Moment:
        kind, match, count = text.split(" ")
        return cls(kind, match, int(count))


class Trap:
    """Kills its own process at a moment; without one it never springs. Thread-safe."""

    def __init__(self, text: str) -> None:
        self._moment = Moment.parse(text) if text else None
        self._seen = 0
        self._lock = threading.Lock()
        if self._moment is not None and self._moment.kind == "sync":
            threading.setprofile(self._profile)
            sys.setprofile(self._profile)
        if self._moment is not None and self._moment.kind.startswith("audit:"):
            sys.addaudithook(self._audit)

    def reached(self, kind: str, text: str) -> None:
        """Something of this kind is about to happen (or, for ``stored``, has)."""
        wanted = self._moment
        if wanted is None or kind != wanted.kind or not (wanted.match == "any" or text.startswith(wanted.match)):
            return
        self._count()

    def _count(self) -> None:
        with self._lock:
            self._seen += 1
            if self._moment is not None and self._seen == self._moment.count:
                os.kill(os.getpid(), signal.SIGKILL)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        wanted = self._moment
        if wanted is None or event != wanted.kind.removeprefix("audit:"):
            return
        if wanted.match == "any" or wanted.match in " ".join(str(one) for one in arguments):
            self._count()

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "c_call" or argument is not os.fdatasync or self._moment is None:
            return
        descriptor = frame.f_locals.get("descriptor")
        if f"/{self._moment.match}" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            self._count()
