"""One file of a server's ``pg_wal`` into the archive: what ``archive_command`` runs for each segment.

PostgreSQL calls again until it succeeds, also for a file that was stored before a crash: the same bytes are a success,
other bytes never are. It removes or reuses the file after a success, so everything is durable before that.
This module is loaded once a segment, so nothing is imported that takes long.
Source: PostgreSQL documentation 25.3.1 (setting up WAL archiving); field notes 4.7, 4.12; decision 16.
"""

from __future__ import annotations

import collections
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datamanager.base.clock import Clock
from datamanager.base.errors import FormatUnsupported, IntegrityError, NotFound, UsageError, WalForeign
from datamanager.base.units import Lsn
from datamanager.engine.wal.lines import line_of
from datamanager.postgres.wal.history import TimelineHistory
from datamanager.postgres.wal.index import index_segment
from datamanager.postgres.wal.names import HISTORY_FILE, SEGMENT, history_name, is_segment_size, segment_place
from datamanager.postgres.wal.pages import PAGE_BYTES, PageReader
from datamanager.postgres.wal.records import walk
from datamanager.repository.wal.container import WalInfo
from datamanager.repository.wal.names import Range

if TYPE_CHECKING:
    from datamanager.repository.wal.archive import Line, WalArchive

_BACKUP_FILE = re.compile(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup\Z")
_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of a file. ``stored_bytes`` of it are in the archive, 0 for a file that needs no keeping."""

    name: str
    line: str = ""
    stored_bytes: int = 0


def push_segment(archive: WalArchive, path: Path, cluster: str, clock: Clock) -> Pushed:
    """Store one file of ``pg_wal``: a segment, a ``.partial`` one, a ``.history``; a ``.backup`` is not needed.

    Args: path - as PostgreSQL names it (``%p``), in ``pg_wal``; cluster - stands in a line that begins with this file.
    Raises: WalForeign (of another server, or not what its name says), WalContradicts (the archive holds other bytes),
        NotFound (no such file; nor the history of its timeline), UsageError (no file of WAL), StoreError.
    Idempotent; durable on return.
    """
    name = path.name
    if _BACKUP_FILE.match(name):
        return Pushed(name)
    if HISTORY_FILE.match(name):
        return _push_history(archive, path, cluster)
    if SEGMENT.match(name.removesuffix(_PARTIAL)):
        return _push_segment(archive, path, cluster, clock)
    raise UsageError(f"push WAL {name}: not the name of a segment, a history or a backup label")


def _push_segment(archive: WalArchive, path: Path, cluster: str, clock: Clock) -> Pushed:
    received = clock.now().isoformat()
    data = _content(path)
    size = len(data)
    if not is_segment_size(size):
        raise WalForeign(f"push WAL {path.name}: a segment cannot have {size} bytes")
    try:
        timeline, start = segment_place(path.name.removesuffix(_PARTIAL), size)
    except ValueError as error:
        raise WalForeign(f"push WAL {path.name}: no segment of {size} bytes has that name") from error
    _check_first_page(archive, path, data, timeline, start)
    whole = not path.name.endswith(_PARTIAL)
    if not whole:
        data = data[: _last_record_end(archive, data, timeline, start) - start]
        if not data:
            return Pushed(path.name)
    line = _line(archive, path, timeline, size, cluster)
    held = Range(start, Lsn(start + len(data)))
    info = functools.cache(lambda: WalInfo(received, index_segment(data, start, size)))
    try:
        line.put(start, data, info)
    except (IntegrityError, FormatUnsupported):
        # What a power cut left damaged would make every further attempt fail; its bytes are here.
        if not line.drop_damaged(held):
            raise
        line.put(start, data, info)
    if whole:
        line.drop_covered(held)
    return Pushed(path.name, line.id, len(data))


def _last_record_end(archive: WalArchive, data: bytes, timeline: int, start: Lsn) -> Lsn:
    """Where the last valid record ends; what follows it is of the segment's former use, if anything."""
    records = walk(data, start, len(data), timeline=timeline, system=archive.system)
    collections.deque(records, maxlen=0)
    return records.end


def _push_history(archive: WalArchive, path: Path, cluster: str) -> Pushed:
    timeline, text = int(path.name[:8], 16), _content(path)
    _check_server(archive, path)
    history = TimelineHistory.parse(timeline, text)
    lines = archive.lines()
    size = _segment_size(path, lines)
    line = line_of(lines, history, size) or archive.begin_line(timeline, size, text, cluster, _version(path))
    return Pushed(path.name, line.id, len(text))


def _check_first_page(archive: WalArchive, path: Path, data: bytes, timeline: int, start: int) -> None:
    """Raises: WalForeign."""
    pages = PageReader(start, len(data), timeline=timeline, system=archive.system)
    pages.feed(data[:PAGE_BYTES])
    pages.take()
    if pages.fault:
        raise WalForeign(f"push WAL {path.name}: {pages.fault}")


def _check_server(archive: WalArchive, path: Path) -> None:
    """A history names no server, but the data directory around it does. Raises: WalForeign."""
    try:
        with open(path.parent.parent / "global" / "pg_control", "rb") as file:
            system = int.from_bytes(file.read(8), "little")
    except OSError:
        return
    if system != archive.system:
        raise WalForeign(f"push WAL {path.name}: it is of another server, {system}")


def _line(archive: WalArchive, path: Path, timeline: int, size: int, cluster: str) -> Line:
    """The line that a segment belongs to, by the history beside it. Raises: NotFound, IntegrityError, StoreError."""
    lines = archive.lines()
    text = b""
    if timeline > 1:
        try:
            text = (path.parent / history_name(timeline)).read_bytes()
        except OSError as error:
            known = [one for one in lines if one.timeline == timeline and one.segment_size == size]
            if known:
                return known[-1]
            raise NotFound(
                f"push WAL {path.name}: the history of timeline {timeline} is neither beside it nor in the archive",
                hint=f"Push {history_name(timeline)} first.",
            ) from error
    history = TimelineHistory.parse(timeline, text)
    return line_of(lines, history, size) or archive.begin_line(timeline, size, text, cluster, _version(path))


def _segment_size(path: Path, lines: list[Line]) -> int:
    """Of the server that the file belongs to. Raises: NotFound."""
    for beside in path.parent.iterdir():
        if SEGMENT.match(beside.name) and is_segment_size(size := beside.stat().st_size):
            return size
    if lines:
        return lines[-1].segment_size
    raise NotFound(f"push WAL {path.name}: no segment is beside it", hint="Push it from the server's own pg_wal.")


def _version(path: Path) -> str:
    """The major version of the data directory around it; empty when that cannot be read."""
    try:
        return (path.parent.parent / "PG_VERSION").read_text().strip()
    except OSError:
        return ""


def _content(path: Path) -> bytes:
    """Raises: NotFound, UsageError."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"push WAL {path.name}: there is no such file") from error
    except OSError as error:
        raise UsageError(f"push WAL {path.name}: {error.strerror}") from error
