"""Looking into the WAL of a backup while it passes: a backup whose replay would do harm is not kept."""

from __future__ import annotations

from datamanager.base.errors import StreamBroken
from datamanager.base.units import Lsn
from datamanager.postgres.replay_hazards import HazardScanner
from datamanager.postgres.source import FileReceiver, SourceStart

_WAL = b"pg_wal/"
_LABEL = b"backup_label"
_AGAIN = "Run the backup again; it reuses what is already stored."


class WalWatch(FileReceiver):
    """Passes everything on to ``inner``. One thread; ``check`` comes after the last file."""

    def __init__(self, inner: FileReceiver) -> None:
        self._inner = inner
        self._scanner = HazardScanner(Lsn(0))
        self._looking = False
        self._of_running_server = False
        self._write = inner.write

    def start(self, start: SourceStart) -> None:
        self._scanner = HazardScanner(start.lsn)
        self._inner.start(start)

    def directory(self, path: bytes, mode: int) -> None:
        self._inner.directory(path, mode)

    def begin_file(self, path: bytes, mode: int, size: int) -> None:
        self._of_running_server |= path == _LABEL
        self._looking = path.startswith(_WAL)
        if self._looking:
            self._scanner.begin(path[len(_WAL) :].decode(errors="replace"))
        self._inner.begin_file(path, mode, size)

    def write(self, data: memoryview) -> None:
        if self._looking:
            self._scanner.feed(data)
        self._write(data)

    def end_file(self) -> None:
        if self._looking:
            self._scanner.end()
        self._inner.end_file()

    def check(self) -> None:
        """Raises: StreamBroken, when a tablespace was created, or a database copied whose source was removed, while the
        backup ran (decision 1). A copy of a directory at rest holds what the disk held; there only tablespaces count.
        """
        found = self._scanner.finish()
        if found.tablespaces:
            raise StreamBroken(
                f"back up cluster: a tablespace was created in {found.tablespaces[0].location} while the backup ran; "
                "replaying that would touch the live one",
                hint=_AGAIN,
            )
        if found.databases and self._of_running_server:
            raise StreamBroken(
                f"back up cluster: a database was copied and its source removed while the backup ran "
                f"({found.databases[0]}); replaying that would leave it without files",
                hint=_AGAIN,
            )
