"""What every writing of a directory tells: how far it is, and what the file system refused."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator
from pathlib import Path

from datamanager.base.errors import TargetTooSmall, TargetUnfit
from datamanager.base.events import Listener, Progress


class ByteCounter:
    """Adds up what threads write, and tells it. ``total`` is None where it cannot be known."""

    def __init__(self, total: int | None, listener: Listener) -> None:
        self._total = total
        self._listener = listener
        self._done = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            self._listener(Progress(self._done, self._total))


@contextlib.contextmanager
def target_errors(target: Path) -> Iterator[None]:
    """What the file system refuses, in the words of a restore. Raises: TargetTooSmall, TargetUnfit."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TargetTooSmall(
                f"restore backup: no room left for {error.filename or target}",
                hint="Delete the unfinished directory, make room or give a bigger volume, and run the restore again.",
            ) from error
        raise TargetUnfit(
            f"restore backup: {error.filename or target}: {(error.strerror or 'cannot be written').lower()}",
            hint="Delete the unfinished directory and give one that this account can write.",
        ) from error
