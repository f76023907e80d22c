"""The cold source: the data directory of a server that is stopped, or that does not start any more.

    look      no server runs; pg_control says how the server ended and where replay begins
    push      tablespaces, then the data directory in order of names, ``global/pg_control`` last
    check     every page of a cluster with checksums, as BASE_BACKUP does; a damaged one flags the backup
    look      again: pg_control is the same and no server has taken the directory meanwhile

No backup_label is made: a cold copy starts by pg_control, as the original would. After a clean stop nothing is
replayed; else the copy is what the disk held, and crash recovery runs when it is restored and started.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from crc32c import crc32c

from datamanager.base.clock import Clock
from datamanager.base.errors import IncrementRefused, ServerUnfit, StreamBroken
from datamanager.base.pipeline import StopToken
from datamanager.base.units import MIB, Lsn
from datamanager.postgres.control_file import (
    STOPPED,
    ControlFile,
    parse_control_bytes,
    read_control_bytes,
    read_major,
)
from datamanager.postgres.data_directory import CONTROL_PATH, DataDirectory, Member, reading_error
from datamanager.postgres.page import relation_segment, wrong_blocks
from datamanager.postgres.replay_hazards import ReplayHazards, replay_hazards
from datamanager.postgres.server_manifest import WalRange, build_manifest
from datamanager.postgres.source import FileReceiver, SourceEnd, SourceStart, SourceTablespace
from datamanager.postgres.stopped_server import pid_file, require_stopped
from datamanager.postgres.wal_position import end_of_record

_READ_BYTES = MIB  # whole pages of every size; a call each costs nothing beside the work on them
_OLDEST_WITH_IDENTIFIER = 17  # server manifests of version 2
_ENTRY = struct.Struct("<HQI")  # path length, size, CRC-32C
_MOST_NOTED = 100


class ColdSource:
    """Reads one data directory. One thread.

    Args: max_rate - bytes a second at most, None for no limit.
    Raises: NotFound, ServerMismatch (no data directory, or one of another kind of machine), IntegrityError (its control
        file is damaged), RightMissing, ServerUnfit (it cannot be read), Busy (a server runs on it).
    """

    def __init__(self, data_directory: Path, clock: Clock, *, max_rate: int | None = None) -> None:
        self.data_directory = data_directory
        self._clock = clock
        self._max_rate = max_rate
        require_stopped(data_directory)
        self._check_origin()
        self.major = read_major(data_directory)
        self._control_bytes = self._read_control()
        self.control: ControlFile = parse_control_bytes(self._control_bytes)
        self._pid_file = pid_file(data_directory)
        folder = f"PG_{self.major}_{self.control.catalog_version}".encode()
        self._directory = DataDirectory(os.fsencode(data_directory), folder)
        self._noted: dict[str, None] = {}
        self._damaged: list[str] = []
        self._entries = bytearray()
        self._buffer = bytearray(_READ_BYTES)
        self._done = 0
        self._began = 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the owner should know of this copy, said before anything is read."""
        control = self.control
        found = []
        if not control.is_clean:
            found.append(
                f"the server was not stopped cleanly (pg_control says: {control.state}): this copy is what the disk"
                " held, and crash recovery runs when it is restored and started"
            )
        if (self.data_directory / "backup_label").exists():
            found.append("the data directory holds a backup_label: it was restored and never started since")
        if self._end() is None:
            found.append(f"pg_wal does not hold the checkpoint at {control.checkpoint}: a server needs it to start")
        return (*found, *self._hazards.warnings)

    def run(self, receiver: FileReceiver, stop: StopToken, upload: bytes | None = None) -> SourceEnd:
        """Raises: StreamBroken, when a server took the directory meanwhile; ServerUnfit, RightMissing, Cancelled."""
        if upload is not None:
            raise IncrementRefused("read data directory: it does not tell what changed since the last backup")
        control = self.control
        self._entries, self._damaged, self._done = bytearray(), [], 0
        self._refuse_new_tablespaces()
        spaces = self._directory.tablespaces(self._note)
        self._began = self._clock.elapsed()
        receiver.start(self._start(spaces, stop))
        for member in self._members(spaces):
            stop.check()
            if member.size is None:
                receiver.directory(member.path, member.mode)
            else:
                self._push(member, member.size, receiver, stop)
        self._push_control(receiver)
        self._check_untouched()
        end = self._end()
        ranges = [] if end is None else [WalRange(control.timeline, control.redo, end)]
        identifier = control.system_identifier if self.major >= _OLDEST_WITH_IDENTIFIER else None
        return SourceEnd(
            lsn=max(end or control.checkpoint, control.minimum_recovery_end),
            timeline=control.timeline,
            manifest=build_manifest(self._listed(), system_identifier=identifier, wal=ranges),
            checksum_failure=bool(self._damaged),
            notices=tuple(self._damaged[:_MOST_NOTED]),
            warnings=(*self.warnings, *self._kept_notes()),
        )

    def _check_origin(self) -> None:
        for name, what in (("unfinished-restore", "an unfinished restore"), ("tablespace_map", "a backup")):
            if (self.data_directory / name).exists():
                raise ServerUnfit(
                    f"read data directory: {self.data_directory} holds {what} that was never started",
                    hint="Finish it and start it once, or back up the original.",
                )

    def _read_control(self) -> bytes:
        try:
            return read_control_bytes(self.data_directory)
        except OSError as error:
            raise reading_error(os.fsencode(self.data_directory / "global" / "pg_control"), error) from error

    def _start(self, spaces: list[tuple[SourceTablespace, bytes]], stop: StopToken) -> SourceStart:
        """A first walk adds up sizes; nothing is kept of it."""
        sized, total = [], 0
        for space, place in spaces:
            stop.check()
            size = sum(one.size or 0 for one in self._directory.of_tablespace(space.oid, place, self._note))
            sized.append(replace(space, size=size))
            total += size
        total += sum(one.size or 0 for one in self._directory.of_base(self._note))
        return SourceStart(self.control.redo, self.control.timeline, tuple(sized), total or None)

    def _members(self, spaces: list[tuple[SourceTablespace, bytes]]) -> Iterator[Member]:
        for space, place in spaces:
            yield from self._directory.of_tablespace(space.oid, place, self._note)
        yield from self._directory.of_base(self._note)

    def _push(self, member: Member, size: int, receiver: FileReceiver, stop: StopToken) -> None:
        receiver.begin_file(member.path, member.mode, size)
        crc, done = 0, 0
        segment = relation_segment(member.path) if self.control.checksum_version else None
        view = memoryview(self._buffer)
        try:
            with open(member.place, "rb", buffering=0) as file:
                while done < size:
                    piece = _fill(file, view[: min(_READ_BYTES, size - done)])
                    if not piece:
                        raise StreamBroken(f"read data directory: {os.fsdecode(member.place)} became shorter meanwhile")
                    crc = crc32c(piece, crc)
                    if segment is not None:
                        self._check_pages(member.path, segment, done, piece)
                    receiver.write(piece)
                    done += len(piece)
                    self._pace(len(piece), stop)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise StreamBroken(f"read data directory: {os.fsdecode(member.place)} vanished meanwhile") from error
            raise reading_error(member.place, error) from error
        receiver.end_file()
        self._list(member.path, size, crc)

    def _check_pages(self, path: bytes, segment: int, offset: int, piece: memoryview) -> None:
        control = self.control
        first = (segment * control.segment_size + offset) // control.block_size
        wrong = wrong_blocks(bytes(piece), control.block_size, first, control.redo)
        if wrong:
            self._damaged.append(f"page checksums are wrong in {path.decode(errors='replace')} from block {wrong[0]}")

    def _push_control(self, receiver: FileReceiver) -> None:
        place = self.data_directory / "global" / "pg_control"
        try:
            mode = place.stat().st_mode & 0o777
        except OSError as error:
            raise StreamBroken(f"read data directory: {place} vanished meanwhile") from error
        receiver.begin_file(CONTROL_PATH, mode, len(self._control_bytes))
        receiver.write(memoryview(self._control_bytes))
        receiver.end_file()
        self._list(CONTROL_PATH, len(self._control_bytes), crc32c(self._control_bytes))

    def _check_untouched(self) -> None:
        """Raises: StreamBroken, when a server was at work in the directory since the first look."""
        if self._read_control() != self._control_bytes or pid_file(self.data_directory) != self._pid_file:
            raise StreamBroken(
                f"read data directory: a server was started on {self.data_directory} while it was copied",
                hint="Nothing was published; stop the server and keep it stopped, or back it up without --cold.",
            )
        require_stopped(self.data_directory)

    @functools.cached_property
    def _hazards(self) -> ReplayHazards:
        """What replay would meet. Raises: RightMissing, ServerUnfit."""
        if self.control.state == STOPPED:
            return ReplayHazards()  # nothing is replayed
        try:
            return replay_hazards(self.data_directory / "pg_wal", self.control.redo)
        except OSError as error:
            raise reading_error(os.fsencode(self.data_directory / "pg_wal"), error) from error

    def _refuse_new_tablespaces(self) -> None:
        """Replay of CREATE TABLESPACE would lead a restored copy into the original's files (decision 1)."""
        created = self._hazards.tablespaces
        if created:
            raise ServerUnfit(
                f"read data directory: the WAL to be replayed creates a tablespace in {created[0].location}, and a"
                " restored copy would write there",
                hint="Start the server, stop it cleanly and run the backup again.",
            )

    def _pace(self, size: int, stop: StopToken) -> None:
        """Wait until so many bytes are due. Raises: Cancelled."""
        self._done += size
        if self._max_rate:
            ahead = self._began + self._done / self._max_rate - self._clock.elapsed()
            if ahead > 0 and stop.wait(ahead):
                stop.check()

    def _end(self) -> Lsn | None:
        """Where the record of the last checkpoint ends, None when pg_wal does not hold it."""
        return end_of_record(self.data_directory / "pg_wal", self.control)

    def _list(self, path: bytes, size: int, crc: int) -> None:
        self._entries += _ENTRY.pack(len(path), size, crc) + path

    def _listed(self) -> Iterator[tuple[bytes, int, int | None]]:
        """What the manifest lists: everything but WAL, as servers do."""
        position, view = 0, memoryview(self._entries)
        while position < len(view):
            length, size, crc = _ENTRY.unpack_from(view, position)
            begin = position + _ENTRY.size
            position = begin + length
            path = bytes(view[begin:position])
            if not path.startswith(b"pg_wal/"):
                yield path, size, crc

    def _note(self, text: str) -> None:
        self._noted[text] = None

    def _kept_notes(self) -> list[str]:
        """The first hundred; how many more there are is said."""
        notes = list(self._noted)
        more = len(notes) - _MOST_NOTED
        return notes[:_MOST_NOTED] + ([f"{more} links and other files more were left out"] if more > 0 else [])


def _fill(file: BinaryIO, view: memoryview) -> memoryview:
    """Read until ``view`` is full or the file ends: whole pages, whatever the system gives at a time."""
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]  # a raw file
        if not count:
            break
        done += count
    return view[:done]
