"""Whether a pg_dump archive in directory or tar format is whole: pg_restore itself does not notice everything.

It takes a data file that was cut off between two rows for the end of the table (seen with 15 and 18), and waits for
ever at a tar that was cut off. A custom archive needs no such look: its blocks have lengths and an end.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from datamanager.base.errors import IntegrityError
from datamanager.base.pipeline import StopToken
from datamanager.engine.foreign.recognise import ForeignFile
from datamanager.engine.foreign.streams import COPY_AGAIN, Readable, cut_off, damage_named, opened_plain
from datamanager.engine.foreign.tar import TarReader
from datamanager.engine.foreign.toc import Contents, Entry

_SUFFIXES = ("", ".gz", ".lz4", ".zst")
_READ_BYTES = 1 << 20
# How pg_dump ends the rows of a table, as COPY and as INSERT.
_END_OF_ROWS = re.compile(rb"(\A|\n)\\\.\n\n\n\Z")
_END_OF_INSERTS = b"\n\n"
_TAIL_BYTES = 16
_LARGE_OBJECT = re.compile(r"(\d+) (blob_\d+\.dat)\Z")


def check_whole(foreign: ForeignFile, stop: StopToken, read: Callable[[int], None]) -> int:
    """Read what pg_restore would not check.

    Returns: the decompressed size of the data in bytes, 0 where it is not known.
    Raises: IntegrityError, for data that are missing or cut off; Cancelled; ProgramMissing (lz4).
    """
    contents = foreign.contents
    if contents is None or contents.form == "custom":
        return 0
    if contents.form == "tar":
        return _check_tar(foreign.path, contents, stop, read)
    return sum(_check_entry(foreign.path, one, stop, read) for one in contents.entries if one.has_data and one.file)


def _check_tar(path: Path, contents: Contents, stop: StopToken, read: Callable[[int], None]) -> int:
    wanted = {name: one for one in contents.entries if one.has_data for name in _tar_names(one)}
    total = 0
    with opened_plain(path, stop, read) as plain:
        reader = TarReader(plain, path)
        for member in reader.members():
            total += member.size
            entry = wanted.pop(member.path, None)
            if entry is None:
                continue
            if entry.kind.startswith("BLOB"):
                wanted = {name: one for name, one in wanted.items() if one is not entry}
            _drained(reader, entry, path)
    if wanted:
        raise cut_off(path, f"the data of {_name(next(iter(wanted.values())))} are not in it")
    return total


def _tar_names(entry: Entry) -> tuple[str, ...]:
    """What the data of an entry may be called in a tar; its list of large objects is not called what it says."""
    if entry.kind.startswith("BLOB"):
        return (f"blobs_{entry.number}.toc", "blobs.toc")
    return (entry.file,) if entry.file else ()


def _check_entry(folder: Path, entry: Entry, stop: StopToken, read: Callable[[int], None]) -> int:
    path = _present(folder, entry.file, _name(entry))
    if entry.kind.startswith("BLOB"):
        return _check_large_objects(folder, path, stop, read)
    if path.suffix == ".lz4" and shutil.which("lz4") is None:
        return path.stat().st_size  # pg_restore may read it though we cannot
    with opened_plain(path, stop, read) as plain:
        return _drained(plain, entry, path)


def _check_large_objects(folder: Path, path: Path, stop: StopToken, read: Callable[[int], None]) -> int:
    total = 0
    text = path.read_text(encoding="ascii", errors="replace")
    if text and not text.endswith("\n"):
        raise cut_off(path, "the list of large objects has no end")
    for line in text.splitlines():
        found = _LARGE_OBJECT.match(line)
        if found is None:
            raise IntegrityError(f"read {path}: a malformed list of large objects", hint=COPY_AGAIN)
        one = _present(folder, found[2], f"large object {found[1]}")
        if one.suffix != ".lz4" or shutil.which("lz4"):
            with opened_plain(one, stop, read) as plain:
                while data := plain.read(_READ_BYTES):
                    total += len(data)
    return total


def _drained(file: Readable, entry: Entry, path: Path) -> int:
    """Read data to their end. Returns: their size. Raises: IntegrityError, unless they end as pg_dump ends them."""
    tail, total = b"", 0
    with damage_named(path):
        while data := file.read(_READ_BYTES):
            total += len(data)
            tail = (tail + data)[-_TAIL_BYTES:] if len(data) < _TAIL_BYTES else data[-_TAIL_BYTES:]
    if entry.kind != "TABLE DATA":
        return total
    ended = _END_OF_ROWS.search(tail) if entry.copy else tail.endswith(_END_OF_INSERTS)
    if not ended:
        raise cut_off(path, f"the rows of {_name(entry)} have no end")
    return total


def _present(folder: Path, name: str, what: str) -> Path:
    for suffix in _SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise IntegrityError(f"read {folder}: the data of {what} ({name}) are missing", hint=COPY_AGAIN)


def _name(entry: Entry) -> str:
    return f"{entry.schema}.{entry.tag}" if entry.schema else entry.tag
