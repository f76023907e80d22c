"""The spool of a recovery: WAL on its way from the repository to the server, a few segments at a time.

A thread brings the segments in their order, whole and under the names that the server asks for, at most ``window`` of
them ahead; the restore_command (script.py) takes them away. One that is asked for out of order is brought next. Another
thread is the heart: while it beats somebody brings, and what stops beating is a fault, never the end of WAL. All
histories of timelines lie there from the beginning, for from them the server learns which numbers are taken.
Source: decisions 3, 12 and 16; xlogrecovery.c, XLogFileReadAnyTLI (the newest timeline's name is asked for first).
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from datamanager.base.errors import DataManagerError, TargetTooSmall, TargetUnfit
from datamanager.base.pipeline import StopToken
from datamanager.base.units import MIB, Lsn
from datamanager.engine.recovery.script import FAILED, HEART, PATIENCE, PLAN, PLAN_END, SETTLED, WANT, write_script
from datamanager.postgres.account import Account
from datamanager.postgres.wal.names import HISTORY_FILE, SEGMENT

MOST_AHEAD = 8
MOST_AHEAD_BYTES = 256 * MIB
_LOOK_SECONDS = 0.02
_BEAT_SECONDS = 1.0
_HALF = ".half"  # of a file on its way into the spool
RECORD = "paused.json"  # of a recovery that waits (pause.py)
_OURS = {PLAN, WANT, f"{WANT}.new", HEART, FAILED, SETTLED, "restore", "restore.py", RECORD}


@dataclass(frozen=True, slots=True)
class Segment:
    """One file that the server asks for. Bytes of it beyond ``end`` are zeros; ``start`` is where it begins."""

    name: str
    timeline: int
    start: Lsn
    end: Lsn


def window_of(segment_size: int) -> int:
    """How many segments of this size may lie in the spool, at least two."""
    return max(2, min(MOST_AHEAD, MOST_AHEAD_BYTES // segment_size))


class Spool:
    """A folder of WAL in motion; the threads live within its ``with`` block.

    Args:
        folder: new, or what another recovery left; becomes ``account``'s, for the server reads and empties it.
        segments: in the order in which recovery takes them.
        fetch: the bytes of a segment, ``segment_size`` of them; called from one thread.
        histories: by file name.
        on_progress: told after each segment how many were brought so far.
        patience: of the restore_command (``write_script``).
    """

    def __init__(
        self,
        folder: Path,
        account: Account,
        segments: Sequence[Segment],
        segment_size: int,
        fetch: Callable[[Segment], bytes],
        histories: Mapping[str, bytes],
        on_progress: Callable[[int], None],
        *,
        patience: int = PATIENCE,
    ) -> None:
        self.folder = folder
        self._account = account
        self._segments = list(segments)
        self._places = {one.name: number for number, one in enumerate(self._segments)}
        self._segment_size = segment_size
        self._fetch = fetch
        self._histories = dict(histories)
        self._on_progress = on_progress
        self._patience = patience
        self._window = window_of(segment_size)
        self._stop = StopToken()
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        try:
            self._make()
        except OSError as error:
            self._stop.close()
            raise _unfit(self.folder, error) from error
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._beat, self._bring)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads; a server that still asks is told so, unless the spool is settled."""
        self._stop.stop("recovery ended")
        for thread in self._threads:
            thread.join()
        if not (self.folder / SETTLED).exists():
            self._say_failed("the recovery was ended")
        self._stop.close()

    @property
    def script(self) -> Path:
        """The program of the restore_command."""
        return next(one for one in (self.folder / "restore.py", self.folder / "restore") if one.exists())

    def check(self) -> None:
        """Raises: what kept a segment from being brought."""
        if self._failure is not None:
            raise self._failure

    def settle(self, first: Lsn) -> None:
        """Leave the segments from the one that holds ``first`` on, and end: from now on nobody needs to bring anything.

        Raises: as ``check``, TargetUnfit, TargetTooSmall.
        """
        self._stop.stop("recovery is paused")
        for thread in self._threads:
            thread.join()
        self.check()
        try:
            for one in self._segments:
                if first < one.start + self._segment_size and not (self.folder / one.name).exists():
                    self._write(one.name, self._fetch(one))
            self._write(SETTLED, b"")
        except OSError as error:
            raise _unfit(self.folder, error) from error

    def _make(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._account.take([self.folder])
        empty_spool(self.folder)
        planned = [(one.name, self._segment_size) for one in self._segments]
        planned += [(name, len(data)) for name, data in self._histories.items()]
        for name, data in self._histories.items():
            self._write(name, data)
        self._account.take([write_script(self.folder, patience=self._patience)])
        self._write(HEART, b"0\n")
        self._write(PLAN, "".join(f"{name} {size}\n" for name, size in planned).encode() + f"{PLAN_END}\n".encode())

    def _write(self, name: str, data: bytes) -> None:
        """Under its name only once it is whole; a power cut ends the recovery anyway, so nothing is synced."""
        half = self.folder / f"{name}{_HALF}"
        half.write_bytes(data)
        self._account.take([half])
        half.replace(self.folder / name)

    def _beat(self) -> None:
        beats = 0
        while not self._stop.wait(_BEAT_SECONDS):
            beats += 1
            # Only a full disk or the folder's end can be in the way: the heart stands still then, which is noticed.
            with contextlib.suppress(OSError):
                self._write(HEART, f"{beats}\n".encode())

    def _bring(self) -> None:
        try:
            self._keep_full()
        except BaseException as error:  # noqa: BLE001 - every end of this thread must stop the recovery
            self._failure = _unfit(self.folder, error) if isinstance(error, OSError) else error
            said = self._failure.message if isinstance(self._failure, DataManagerError) else repr(error)
            self._say_failed(said)

    def _say_failed(self, why: str) -> None:
        with contextlib.suppress(OSError):
            self._write(FAILED, f"{why}\n".encode("utf-8", "replace"))

    def _keep_full(self) -> None:
        following, farthest = 0, 0
        while not self._stop.stopping:
            wanted = self._asked()
            if wanted is not None:
                self._drop_around(wanted)
                following = wanted
            ready = self._ready()
            while following < len(self._segments) and self._segments[following].name in ready:
                following += 1
            if following == len(self._segments) or len(ready) >= self._window:
                self._stop.wait(_LOOK_SECONDS)
                continue
            segment = self._segments[following]
            self._write(segment.name, self._fetch(segment))
            following += 1
            farthest = max(farthest, following)
            self._on_progress(farthest)

    def _asked(self) -> int | None:
        """The place of the segment that is waited for."""
        try:
            name = (self.folder / WANT).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        (self.folder / WANT).unlink(missing_ok=True)
        return None if (self.folder / name).exists() else self._places.get(name)

    def _ready(self) -> set[str]:
        return {one.name for one in self.folder.iterdir() if SEGMENT.match(one.name)}

    def _drop_around(self, wanted: int) -> None:
        """Make room: recovery has gone to another place than where it was expected."""
        near = {one.name for one in self._segments[wanted : wanted + self._window]}
        for name in self._ready() - near:
            (self.folder / name).unlink(missing_ok=True)


def empty_spool(folder: Path) -> None:
    """Remove the WAL and all that served it; other files, such as a log, stay. Raises: OSError."""
    if folder.is_dir():
        for one in folder.iterdir():
            if one.is_file() and _is_ours(one.name):
                one.unlink(missing_ok=True)


def _is_ours(name: str) -> bool:
    plain = name.removesuffix(_HALF)
    return plain in _OURS or bool(SEGMENT.match(plain) or HISTORY_FILE.match(plain))


def _unfit(folder: Path, error: OSError) -> DataManagerError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TargetTooSmall(f"recover: no room left for WAL in {folder}")
    return TargetUnfit(
        f"recover: {error.filename or folder}: {(error.strerror or 'cannot be written').lower()}",
        hint="Delete the unfinished directory and give one beside which this account can write.",
    )
