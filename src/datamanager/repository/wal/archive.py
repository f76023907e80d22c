"""One server's WAL in one repository.

A *line* is one timeline as one server wrote it. Two lines of one timeline contradict each other somewhere: a machine
was put back to an older state and went on. What of a segment is not whole yet lies there as pieces; whatever holds
more bytes supersedes what it covers. Nothing is overwritten. Source: ``docs/format.md``, WAL and decision 14.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from datamanager.base.errors import IntegrityError, ObjectExists, ObjectMissing, WalContradicts, WalMissing
from datamanager.base.units import Lsn
from datamanager.postgres.wal.history import TimelineHistory
from datamanager.postgres.wal.names import is_segment_size, segment_start
from datamanager.repository.format import WAL_FOLDER, Kind, canonical_json
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository
from datamanager.repository.wal.container import Directory, WalInfo, read_bytes, read_directory, seal_stretch
from datamanager.repository.wal.names import (
    MAX_STRETCH_BYTES,
    Range,
    StoredWal,
    line_timeline,
    log_folder,
    merged,
    stretch_key,
    stretch_range,
    system_folder,
)
from datamanager.storage.base import Buffer, KeepsFolders

_ABANDONED = "abandoned"
_LINES = "lines"  # the folder of records, apart from the WAL, so that finding a line lists little
_TWINS = "-a", "-b"


@dataclass(frozen=True, slots=True)
class LineRecord:
    """What a line is.

    Args: cluster - its name in the configuration when the line began; version - of the server; created - RFC 3339;
        history - of its timeline.
    """

    system: int
    timeline: int
    segment_size: int
    cluster: str
    version: str
    created: str
    history: TimelineHistory

    def to_json(self) -> bytes:
        return canonical_json(
            {
                "cluster": self.cluster,
                "created": self.created,
                "history": self.history.text.decode("latin-1"),
                "segment_size": self.segment_size,
                "system": str(self.system),
                "timeline": self.timeline,
                "version": self.version,
            }
        )

    @classmethod
    def from_json(cls, data: bytes, name: str) -> LineRecord:
        """Raises: IntegrityError."""
        try:
            value = json.loads(data)
            timeline = int(value["timeline"])
            record = cls(
                int(value["system"]),
                timeline,
                int(value["segment_size"]),
                str(value["cluster"]),
                str(value["version"]),
                str(value["created"]),
                TimelineHistory.parse(timeline, str(value["history"]).encode("latin-1")),
            )
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise IntegrityError(f"read {name}: malformed") from error
        if not is_segment_size(record.segment_size):
            raise IntegrityError(f"read {name}: impossible size of segments")
        return record


class Line:
    """The WAL of one timeline, by position. Thread-safe for reading; one thread puts."""

    def __init__(self, repository: Repository, identity: str, record: LineRecord) -> None:
        self._repository = repository
        self._storage = repository.storage
        self._folder = f"{system_folder(record.system)}{identity}/"
        self._lock = threading.Lock()
        self._directory: tuple[str, Directory] | None = None
        self.id = identity
        self.record = record

    @property
    def timeline(self) -> int:
        return self.record.timeline

    @property
    def segment_size(self) -> int:
        return self.record.segment_size

    @property
    def history(self) -> TimelineHistory:
        return self.record.history

    def stored(self) -> list[StoredWal]:
        """Every object of the line, by start; of two that begin together the shorter first. Raises: StoreError."""
        return self._listed(self._folder)

    def reach(self) -> list[Range]:
        """What is covered without a hole, ascending. Raises: StoreError."""
        return merged([Range(one.start, one.end) for one in self.stored()])

    def put(self, start: int, data: Buffer, info: WalInfo | Callable[[], WalInfo]) -> StoredWal:
        """Seal bytes of one segment; durable on return. Bytes that are there already are compared, not trusted.

        Args: info - of them, or what finds it out; called while they are compressed, for each object that they take.
        Returns: the object that holds them, the last one where a segment takes several.
        Raises: WalContradicts, nothing stored; StoreError, IntegrityError (what is there cannot be read).
        """
        view = memoryview(data)
        if not len(view) or segment_start(start, self.segment_size) != segment_start(
            start + len(view) - 1, self.segment_size
        ):
            raise ValueError(f"{len(view)} bytes at {Lsn(start)} are not of one segment")
        found = self._listed(log_folder(self._folder, start))
        self._compare(found, start, view)
        stored: StoredWal | None = None
        while len(view):
            begins = start % MAX_STRETCH_BYTES
            part = view[: MAX_STRETCH_BYTES - begins]
            stored = self._put_stretch(start, part, info)
            start, view = start + len(part), view[len(part) :]
        self._storage.barrier()
        if stored is None:
            raise ValueError("nothing to store")
        return stored

    def read(self, start: int, end: int) -> bytes:
        """Bytes from ``start`` up to ``end``, from whichever objects hold them.

        Raises: WalMissing, naming the first byte that is absent; IntegrityError, StoreError.
        """
        parts: list[bytes] = []
        objects = self._around(start, end)
        at, looked_again = start, False
        while at < end:
            holding = [one for one in objects if one.start <= at < one.end]
            try:
                part = self._first_readable(holding, at, end)
            except ObjectMissing:
                # What it was superseded by has come since the listing.
                if looked_again:
                    raise
                objects, looked_again = self._around(at, end), True
                continue
            parts.append(part)
            at, looked_again = at + len(part), False
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def info(self, stored: StoredWal) -> WalInfo:
        """What is known of a stretch; only its end is read. Raises: IntegrityError, ObjectMissing, StoreError."""
        return self._open(stored).info

    def check(self, stored: StoredWal) -> WalInfo:
        """Read and authenticate every byte of one object. Raises: IntegrityError, ObjectMissing, StoreError."""
        held = Range(stored.start, stored.end)
        directory = read_directory(self._storage, self._repository.ring, stored.key, stored.size, held)
        for _ in read_bytes(self._storage, directory, stored.key, held):
            pass
        return directory.info

    def drop_covered(self, within: Range | None = None) -> int:
        """Delete what a longer object covers whole, once that one has been read; returns how many. Raises: StoreError.

        Args: within - look only there; nothing longer than a log.
        """
        objects = self.stored() if within is None else self._listed(log_folder(self._folder, within.start))
        gone = 0
        best: StoredWal | None = None
        sound: bool | None = None
        for one in sorted(objects, key=lambda one: (one.start, -one.end)):
            if best is None or one.end > best.end:
                best, sound = one, None
                continue
            # The pieces may be all that is left of a segment that was damaged.
            sound = self.is_sound(best) if sound is None else sound
            if sound:
                self.delete([one])
                gone += 1
        return gone

    def drop_damaged(self, within: Range) -> int:
        """Delete the objects in a range that cannot be authenticated, by somebody who has their bytes.

        Returns: how many. Raises: StoreError.
        """
        listed = self._listed(log_folder(self._folder, within.start))
        inside = [one for one in listed if within.start <= one.start and one.end <= within.end]
        damaged = [one for one in inside if not self.is_sound(one)]
        self.delete(damaged)
        return len(damaged)

    def is_sound(self, stored: StoredWal) -> bool:
        """Whether every byte of an object can be read and authenticated. Raises: StoreError, other than of one file."""
        try:
            self.check(stored)
        except UNREADABLE:
            return False
        return True

    def delete(self, stored: Iterable[StoredWal]) -> None:
        """Raises: StoreError."""
        for one in stored:
            self._storage.delete(one.key)

    def _listed(self, folder: str) -> list[StoredWal]:
        found: list[StoredWal] = []
        for one in self._storage.list(folder):
            held = stretch_range(self._folder, one.key)
            if held is not None:
                found.append(StoredWal(held.start, held.end, one.key, one.size, one.mtime))
        return sorted(found)

    def _around(self, start: int, end: int) -> list[StoredWal]:
        found: list[StoredWal] = []
        for log in range(start >> 32, (max(start, end - 1) >> 32) + 1):
            found += self._listed(log_folder(self._folder, log << 32))
        return found

    def _compare(self, found: list[StoredWal], start: int, view: memoryview) -> None:
        """Raises: WalContradicts, IntegrityError, StoreError."""
        end = start + len(view)
        for one in found:
            begins, ends = max(start, one.start), min(end, one.end)
            if begins >= ends:
                continue
            try:
                there = self._read_from(one, begins, ends)
            except ObjectMissing:
                continue  # superseded since it was listed
            if there != view[begins - start : ends - start]:
                raise WalContradicts(
                    f"archive WAL: timeline {self.timeline} has other bytes in the archive near {Lsn(begins)}"
                )

    def _put_stretch(self, start: int, data: memoryview, info: WalInfo | Callable[[], WalInfo]) -> StoredWal:
        key = stretch_key(self._folder, start, len(data))
        parts = seal_stretch(self._repository.ring, key, start, data, info)
        try:
            self._storage.put(key, parts)
        except ObjectExists:
            self._compare(self._listed(log_folder(self._folder, start)), start, data)
        return StoredWal(
            Lsn(start),
            Lsn(start + len(data)),
            key,
            sum(len(part) for part in parts),
            self._repository.clock.now().timestamp(),
        )

    def _first_readable(self, holding: list[StoredWal], at: int, end: int) -> bytes:
        """What the longest object that can be read holds from ``at`` on."""
        failure: Exception | None = None
        for one in sorted(holding, key=lambda one: -one.end):
            try:
                return self._read_from(one, at, min(end, one.end))
            except UNREADABLE as error:
                failure = failure or error
        raise failure or WalMissing(f"read WAL: timeline {self.timeline} is not in the archive at {Lsn(at)}", at)

    def _read_from(self, stored: StoredWal, start: int, end: int) -> bytes:
        wanted = Range(Lsn(start), Lsn(end))
        try:
            return b"".join(read_bytes(self._storage, self._open(stored), stored.key, wanted))
        except IntegrityError:
            # A damaged object may have been replaced, by another process, since its directory was read.
            with self._lock:
                self._directory = None
            return b"".join(read_bytes(self._storage, self._open(stored), stored.key, wanted))

    def _open(self, stored: StoredWal) -> Directory:
        with self._lock:
            if self._directory is not None and self._directory[0] == stored.key:
                return self._directory[1]
        held = Range(stored.start, stored.end)
        directory = read_directory(self._storage, self._repository.ring, stored.key, stored.size, held)
        with self._lock:
            self._directory = stored.key, directory
        return directory


class WalArchive:
    """Every line of one system identifier."""

    def __init__(self, repository: Repository, system: int) -> None:
        self._repository = repository
        self._folder = system_folder(system)
        self.system = system

    def lines(self) -> list[Line]:
        """By timeline, then by age. One whose record cannot be read is reported and left out. Raises: StoreError."""
        folder = self._logical("")
        listed = (one.key.removeprefix(folder) for one in self._repository.storage.list(folder))
        names = {name.removesuffix(twin) for name in listed for twin in _TWINS if name.endswith(twin)}
        found: list[Line] = []
        for name in names:
            if line_timeline(name) is None:
                continue
            try:
                found.append(self._line(name))
            except UNREADABLE as error:
                self._repository.objects.report(f"{error.message}; the WAL of line {name} cannot be used")
        return sorted(found, key=lambda line: (line.timeline, line.record.created, line.id))

    def line(self, timeline: int) -> Line | None:
        """The newest line of a timeline. Raises: StoreError."""
        found = [one for one in self.lines() if one.timeline == timeline]
        return found[-1] if found else None

    def begin_line(self, timeline: int, segment_size: int, history: bytes, cluster: str, version: str) -> Line:
        """A new line, durable on return. Raises: IntegrityError (not a history), StoreError."""
        storage = self._repository.storage
        if isinstance(storage, KeepsFolders):
            storage.ensure_folders([WAL_FOLDER])
        created = self._repository.clock.now().isoformat()
        parsed = TimelineHistory.parse(timeline, history)
        record = LineRecord(self.system, timeline, segment_size, cluster, version, created, parsed)
        name = f"{timeline:08x}-{secrets.token_hex(4)}"
        self._repository.objects.put_small(Kind.LINE, self._logical(name), self._keys(name), record.to_json())
        storage.barrier()
        return Line(self._repository, name, record)

    def abandoned(self) -> set[str]:
        """Lines by id and timelines by number that nobody goes on with by himself: undone. Raises: StoreError."""
        folder = f"{self._folder}{_ABANDONED}/"
        return {one.key.removeprefix(folder) for one in self._repository.storage.list(folder)}

    def abandon(self, line: Line | int) -> None:
        """Say that recovery is not to choose a line by itself. Idempotent, durable. Raises: StoreError.

        Args: line - or the number of a timeline: then no line of it, and no backup, with or without an archive.
        """
        key = self._abandoned_key(line)
        time = self._repository.clock.now().isoformat()
        storage = self._repository.storage
        if isinstance(storage, KeepsFolders):
            storage.ensure_folders([WAL_FOLDER])
        with contextlib.suppress(ObjectExists):
            self._repository.objects.put_small(Kind.LINE, key, [key], canonical_json({"time": time}))
        self._repository.storage.barrier()

    def take_up(self, line: Line | int) -> None:
        """Take that back. Idempotent, durable. Raises: StoreError."""
        self._repository.storage.delete(self._abandoned_key(line))
        self._repository.storage.barrier()

    def drop_record(self, line: Line) -> None:
        """Forget a line, once nothing of its WAL is left. Raises: StoreError."""
        for key in (*self._keys(line.id), f"{self._folder}{_ABANDONED}/{line.id}"):
            self._repository.storage.delete(key)

    def _abandoned_key(self, line: Line | int) -> str:
        return f"{self._folder}{_ABANDONED}/{line if isinstance(line, int) else line.id}"

    def _logical(self, name: str) -> str:
        return f"{self._folder}{_LINES}/{name}"

    def _keys(self, name: str) -> list[str]:
        return [self._logical(name) + twin for twin in _TWINS]

    def _line(self, name: str) -> Line:
        plain, _ = self._repository.objects.get_small(Kind.LINE, self._logical(name), self._keys(name))
        record = LineRecord.from_json(plain, self._logical(name))
        if record.system != self.system or record.timeline != line_timeline(name):
            raise IntegrityError(f"read {self._logical(name)}: holds another line")
        return Line(self._repository, name, record)


def systems(repository: Repository) -> list[int]:
    """The system identifiers that have an archive here. Raises: StoreError."""
    names = {one.key.split("/")[1] for one in repository.storage.list(f"{WAL_FOLDER}/")}
    return sorted(int(name, 16) for name in names if len(name) == 16 and set(name) <= set("0123456789abcdef"))
