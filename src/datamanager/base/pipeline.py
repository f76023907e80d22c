"""Stopping and running together: StopToken, and a group of threads joined by bounded queues.

Every queue is bounded, so a slow consumer slows its producer. The first error anywhere stops every thread of the
group and is the one that is raised.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from datamanager.base.errors import Cancelled

T = TypeVar("T")

# A blocked queue looks at its stop token this often: 10 looks a second cost nothing and end a wait soon enough.
_LOOK_SECONDS = 0.1


# Enough that whoever wakes up runs at once, little enough that a busy machine does not starve the backup.
_NICENESS = 5


def yield_to_others() -> None:
    """Let this thread, which computes, give way to those that wait for data, ours and the database server's.

    Without it a full backup on two cores is 6 % slower: reader and server wake 30,000 times a GB and each time wait for
    a compressing thread's time slice. Does nothing where threads have no priority of their own.
    Source: setpriority(2): on Linux it acts on one thread.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class StopToken:
    """Asks long work to end. Thread-safe; owns one socket pair until closed.

    ``stop`` may be called from a signal handler: a plain flag and one byte, no lock that the interrupted code may hold.
    ``fileno()`` becomes readable when stopping is asked for, so that a poll on a connection can include it.
    """

    def __init__(self) -> None:
        self._stopping = False
        self._reason = ""
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)

    def stop(self, reason: str) -> None:
        """Ask for the end; the first reason stays."""
        if not self._stopping:
            self._reason = reason
            self._stopping = True
            with contextlib.suppress(OSError):
                self._writer.send(b"x")  # never read: every waiter sees it

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def reason(self) -> str:
        return self._reason

    def check(self) -> None:
        """Raises: Cancelled, once stopping was asked for."""
        if self._stopping:
            raise Cancelled(self._reason)

    def wait(self, seconds: float) -> bool:
        """Sleep up to ``seconds``; True as soon as stopping was asked for."""
        if not self._stopping:
            with selectors.DefaultSelector() as selector:
                selector.register(self._reader, selectors.EVENT_READ)
                selector.select(seconds)
        return self._stopping

    def fileno(self) -> int:
        return self._reader.fileno()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _End:
    """Marks the end of a queue's items."""


class Channel(Generic[T]):
    """A bounded queue between threads of one TaskGroup: closing ends the iteration, a stop raises Cancelled."""

    def __init__(self, group: TaskGroup, size: int) -> None:
        self._group = group
        self._queue: queue.Queue[T | _End] = queue.Queue(maxsize=size)

    def put(self, item: T) -> None:
        """Blocks while the queue is full. Raises: Cancelled when the group stops."""
        self._put(item)

    def close(self) -> None:
        """No more items will come."""
        self._put(_End())

    def _put(self, item: T | _End) -> None:
        while True:
            self._group.check()
            try:
                self._queue.put(item, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return

    def __iter__(self) -> Iterator[T]:
        while True:
            self._group.check()
            try:
                item = self._queue.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, _End):
                # Left for the other consumers of the same channel.
                self._queue.put_nowait(item)
                return
            yield item


class TaskGroup:
    """Threads that succeed or fail together; leaving the ``with`` block joins them all.

    Raises on exit: the first error of any thread, or Cancelled when the outer token was set.
    """

    def __init__(self, stop: StopToken) -> None:
        self._outer = stop
        self._failed = threading.Event()
        self._first: BaseException | None = None
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def check(self) -> None:
        """Raises: Cancelled, when the group failed or the outer token was set."""
        self._outer.check()
        if self._failed.is_set():
            raise Cancelled("another part of the job failed")

    def channel(self, size: int) -> Channel[T]:
        """A queue of at most ``size`` items whose waits end when the group stops."""
        return Channel(self, size)

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work`` in a thread of the group."""
        thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to whoever joins the group
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._first is None:
                self._first = error
        self._failed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._fail(error)
        for thread in self._threads:
            thread.join()
        if self._first is not None and self._first is not error:
            raise self._first
