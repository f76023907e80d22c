"""A lock that one process at a time holds and that the system gives back when it ends, however it ends.

Source: flock(2); LockFile through msvcrt.locking.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from datamanager.base.pipeline import StopToken

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_LOOK_SECONDS = 0.1
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


@contextlib.contextmanager
def held(path: Path, stop: StopToken, *, limit_seconds: float | None = None) -> Iterator[bool]:
    """Hold the lock file ``path``, which is made when it is absent and never removed.

    Not reentrant, also between threads of one process.

    Args: limit_seconds - how long to wait for another holder; None is for ever, 0 not at all.
    Yields: whether it is held; False when another one has it still.
    Raises: OSError (its folder is missing, or not permitted), Cancelled (asked to stop while waiting).
    """
    deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
    # Reading is enough to lock, so that another account may hold it too.
    # No link: in another account's folder it would let root make a file anywhere.
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        while not (mine := _try_lock(descriptor)):
            if deadline is not None and time.monotonic() >= deadline:
                break
            if stop.wait(_LOOK_SECONDS):
                stop.check()
        yield mine
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def mark_in_use(descriptor: int) -> None:
    """Let ``is_in_use`` say so of this open file until it is closed, or the process ends however it ends."""
    # Windows removes no file that is open, and its locks would keep others from reading.
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def is_in_use(path: Path) -> bool:
    """Whether some process marked the file; False where it cannot be opened."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                return not _try_lock(descriptor)
            finally:
                os.close(descriptor)
    return False
