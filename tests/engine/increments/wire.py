"""Between source and engine: what the server sends, and servers that send something wrong."""

from __future__ import annotations

from collections.abc import Callable

from datamanager.base.pipeline import StopToken
from datamanager.postgres.source import BackupSource, FileReceiver, SourceEnd, SourceStart

STUB = b"INCREMENTAL."


def is_stub(path: bytes) -> bool:
    """Whether a member holds only what changed in its file."""
    return path.rpartition(b"/")[2].startswith(STUB)


class Wire:
    """Notes the members of the stream as they come; passes everything on, changed where a test wants a fault.

    Usage: ``works.back_up(server, around=(wire := Wire()))``.
    Args: mangle_upload - makes the uploaded manifest another one; mangle - makes a member's first piece another one.
    """

    def __init__(
        self,
        *,
        mangle_upload: Callable[[bytes], bytes] = lambda upload: upload,
        mangle: Callable[[bytes, bytes], bytes] = lambda path, data: data,
    ) -> None:
        self.runs = 0
        self.uploads: list[bytes | None] = []
        self.members: list[tuple[bytes, int]] = []
        self._mangle_upload = mangle_upload
        self._mangle = mangle

    def __call__(self, source: BackupSource) -> BackupSource:
        self._source = source
        return self

    def run(self, receiver: FileReceiver, stop: StopToken, upload: bytes | None = None) -> SourceEnd:
        self.runs += 1
        self.uploads.append(upload)
        self.members = []
        given = None if upload is None else self._mangle_upload(upload)
        between = _Between(receiver, self.members, self._mangle if upload is not None else None)
        return self._source.run(between, stop, given)

    @property
    def stubs(self) -> set[bytes]:
        """Files of which only the changes came, by the name of the file."""
        return {path.replace(STUB, b"", 1) for path, _ in self.members if is_stub(path)}

    @property
    def whole(self) -> set[bytes]:
        """Files that came whole."""
        return {path for path, _ in self.members if not is_stub(path)}

    @property
    def sent_bytes(self) -> int:
        return sum(size for path, size in self.members if not path.startswith(b"pg_wal/"))


class _Between:
    """Counts members; the first piece of each goes through ``mangle``."""

    def __init__(
        self,
        receiver: FileReceiver,
        members: list[tuple[bytes, int]],
        mangle: Callable[[bytes, bytes], bytes] | None,
    ) -> None:
        self._receiver = receiver
        self._members = members
        self._mangle = mangle
        self._first = False

    def start(self, start: SourceStart) -> None:
        self._receiver.start(start)

    def begin_file(self, path: bytes, mode: int, size: int) -> None:
        self._members.append((path, size))
        self._first = True
        self._receiver.begin_file(path, mode, size)

    def write(self, data: memoryview) -> None:
        if self._first and self._mangle is not None:
            data = memoryview(self._mangle(self._members[-1][0], bytes(data)))
        self._first = False
        self._receiver.write(data)

    def end_file(self) -> None:
        self._receiver.end_file()

    def directory(self, path: bytes, mode: int) -> None:
        self._receiver.directory(path, mode)
