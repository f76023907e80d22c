"""Moments of a living server, its WAL copied into an archive, and restores to those moments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from datamanager.base.units import Lsn
from datamanager.engine.recovery.replay import Replay
from datamanager.engine.recovery.run import MomentRestored, RecoveryOptions, restore_to_moment
from datamanager.postgres.wal.history import TimelineHistory
from datamanager.postgres.wal.names import history_name, segment_name, segment_start
from datamanager.postgres.wal.records import Record, walk
from datamanager.repository.manifest import Manifest
from datamanager.repository.wal.archive import Line, WalArchive
from datamanager.repository.wal.container import WalInfo
from tests.engine.conftest import Heard, Works, account, outside, programs_of
from tests.servers import Server

SMALL = ("--data-checksums", "--wal-segsize=1")
SEGMENT = 1 << 20
_INFO = WalInfo("2026-11-23T10:00:00+00:00")


@dataclass(frozen=True)
class Need:
    """WAL of one line."""

    line: Line
    start: Lsn
    end: Lsn
    timeline: int


class Archive:
    """Takes the WAL of servers into the repository, as far as they have flushed it."""

    def __init__(self, archive: WalArchive) -> None:
        self.archive = archive

    @classmethod
    def of(cls, works: Works, server: Server) -> Archive:
        system = server.value("select system_identifier from pg_control_system()")
        return cls(WalArchive(works.repository, int(system)))

    def take(self, server: Server, begin: Lsn | None = None) -> Line:
        """Put all of the server's timeline from ``begin`` (else where the archive ends) up to what is flushed."""
        timeline, flushed = self.place_of(server)
        line = self.archive.line(timeline) or self.begun(server, timeline)
        begins = line.history.begins
        if begins and (parent := self.archive.line(line.history.switches[-1].timeline)):
            self._copy(server, parent, begins, begins)
        self._copy(server, line, segment_start(begins, SEGMENT) if begin is None else begin, flushed)
        return line

    def _copy(self, server: Server, line: Line, begin: Lsn, until: Lsn) -> None:
        reach = line.reach()
        at = reach[-1].end if reach else begin
        while at < until:
            start = segment_start(at, SEGMENT)
            end = min(until, Lsn(start + SEGMENT))
            data = (server.data_directory / "pg_wal" / segment_name(line.timeline, start, SEGMENT)).read_bytes()
            line.put(at, data[at - start : end - start], _INFO)
            at = end

    def begun(self, server: Server, timeline: int) -> Line:
        history = server.data_directory / "pg_wal" / history_name(timeline)
        text = history.read_bytes() if timeline > 1 else b""
        return self.archive.begin_line(timeline, SEGMENT, text, "tests", server.version)

    @staticmethod
    def place_of(server: Server) -> tuple[int, Lsn]:
        """Timeline, and how far its WAL is flushed."""
        ((name, flushed),) = server.sql(
            "select pg_walfile_name(pg_current_wal_lsn()), pg_current_wal_flush_lsn()::text"
        )
        return int(name[:8], 16), Lsn.parse(flushed)

    def replay(self, manifest: Manifest, timeline: int, until: int) -> Replay:
        """Up to the last record of a timeline's history that ends at ``until`` or before."""
        line = self.archive.line(timeline)
        assert line is not None
        start = segment_start(Lsn.parse(manifest.stop_lsn), SEGMENT)
        last = self.last_record(line.history, start, until)
        needs = tuple(self._needs(line.history, Lsn.parse(manifest.stop_lsn), last.end))
        return Replay(line.history, last.lsn, needs, SEGMENT, tuple(self.archive.lines()))

    def _needs(self, history: TimelineHistory, start: Lsn, end: Lsn) -> Iterator[Need]:
        for span in history.spans():
            begin, stop = max(span.begin, start), min(span.end or end, end)
            if begin < stop:
                line = self.archive.line(span.timeline)
                assert line is not None
                yield Need(line, begin, stop, span.timeline)

    def last_record(self, history: TimelineHistory, start: Lsn, until: int) -> Record:
        data = b"".join(one.line.read(one.start, one.end) for one in self._needs(history, start, Lsn(until)))
        return list(walk(data, start, SEGMENT, inside=True))[-1]


def restored_to(
    works: Works,
    manifest: Manifest,
    replay: Replay,
    name: str,
    version: str,
    heard: Heard | None = None,
    **options: object,
) -> MomentRestored:
    """Restore below the folder of ``works``, each tablespace beside it."""
    target = works.folder / name
    mapped = {one.location: Path(f"{target}.ts-{one.oid}") for one in outside(manifest)}
    wanted = RecoveryOptions(account(), programs_of(version, manifest.major), **options)  # type: ignore[arg-type]
    plan = works.plan(manifest, target, mapped)
    return restore_to_moment(works.reopened(), plan, replay, wanted, works.stop, heard or Heard())


@dataclass(frozen=True)
class SlowLine:
    """A line that takes its time for every read."""

    line: Line
    seconds: float

    @property
    def timeline(self) -> int:
        return self.line.timeline

    def read(self, start: int, end: int) -> bytes:
        time.sleep(self.seconds)
        return self.line.read(start, end)


def slowed(replay: Replay, seconds: float) -> Replay:
    """The same from a slow store."""
    needs: list[Need] = []
    for one in replay.needs:
        needs.append(Need(cast("Line", SlowLine(one.line, seconds)), one.start, one.end, one.timeline))
    return replace(replay, needs=tuple(needs))
