"""Writing at places in many files, and reading there, a few of them open at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence

_OPEN_FILES = 32
_HAS_PWRITE = hasattr(os, "pwrite")
_HAS_PWRITEV = hasattr(os, "pwritev")
_HAS_PREADV = hasattr(os, "preadv")


class FileWriter:
    """Writes into files that exist. One a thread; closes them at the end of its ``with`` block.

    Args: paths - of the files, by number; reading - whether they are read too.
    """

    def __init__(self, paths: Sequence[str], *, reading: bool = False) -> None:
        self._paths = paths
        self._flags = os.O_RDWR if reading else os.O_WRONLY
        self._open: OrderedDict[int, int] = OrderedDict()
        self._file, self._descriptor = -1, -1

    def write(self, file: int, offset: int, piece: memoryview) -> None:
        """Raises: OSError."""
        if file != self._file:
            self._switch(file)
        done = os.pwrite(self._descriptor, piece, offset) if _HAS_PWRITE else 0
        if done < len(piece):
            write_all(self._descriptor, piece[done:], offset + done)

    def write_joined(self, file: int, offset: int, pieces: list[memoryview]) -> None:
        """Write pieces that follow each other in the file. Raises: OSError."""
        if file != self._file:
            self._switch(file)
        if _HAS_PWRITEV:
            done = os.pwritev(self._descriptor, pieces, offset)
            if done == sum(len(piece) for piece in pieces):
                return
            pieces, offset = [memoryview(b"".join(pieces))[done:]], offset + done
        for piece in pieces:
            write_all(self._descriptor, piece, offset)
            offset += len(piece)

    def read_into(self, file: int, offset: int, view: memoryview) -> bool:
        """Fill ``view`` with what the file holds from ``offset`` on; False when it ends before. Raises: OSError."""
        if file != self._file:
            self._switch(file)
        return read_into(self._descriptor, view, offset)

    def _switch(self, file: int) -> None:
        descriptor = self._open.get(file)
        if descriptor is None:
            flags = self._flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            descriptor = self._open[file] = os.open(self._paths[file], flags)
            if len(self._open) > _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(file)
        self._file, self._descriptor = file, descriptor

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def read_into(descriptor: int, view: memoryview, offset: int) -> bool:
    """Fill ``view`` from ``offset`` of an open file on; False when it ends before. Raises: OSError."""
    while view:
        if _HAS_PREADV:
            done = os.preadv(descriptor, [view], offset)
        else:  # Windows; the descriptor belongs to one thread
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(view))
            done = len(data)
            view[:done] = data
        if done == 0:
            return False
        view, offset = view[done:], offset + done
    return True


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` from ``offset`` of an open file on. Raises: OSError."""
    while data:
        if _HAS_PWRITE:
            done = os.pwrite(descriptor, data, offset)
        else:  # Windows; the descriptor belongs to one thread
            os.lseek(descriptor, offset, os.SEEK_SET)
            done = os.write(descriptor, data)
        data, offset = data[done:], offset + done
