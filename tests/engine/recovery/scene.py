"""A server whose WAL and backups are put into an archive by hand, and recoveries by PostgreSQL itself."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datamanager.base.clock import SystemClock
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.recovery.plan import RecoveryPlan
from datamanager.engine.recovery.planner import plan_recovery
from datamanager.engine.recovery.segments import SegmentReader, segments_of
from datamanager.engine.recovery.targets import Target
from datamanager.postgres.wal.index import index_segment
from datamanager.postgres.wal.names import history_name
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line, WalArchive
from datamanager.repository.wal.container import WalInfo
from datamanager.storage.memory import MemoryStorage
from tests.postgres.wal.generated import SEGMENT_SIZE, segments
from tests.repository.parts import KEY_FILE
from tests.repository.test_manifest import MANIFEST
from tests.servers import Server, adopt, make_folder, remove_folder
from tests.servers.account import hand_over

CONFIG = {"autovacuum": "off", "wal_keep_size": "500MB", "track_commit_timestamp": "on", "max_wal_size": "1GB"}


@dataclass
class Scene:
    server: Server
    folder: Path
    archive: WalArchive
    manifests: list[Manifest] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)

    # -- the archive -----------------------------------------------------------------------------------------------

    def begin_line(self, timeline: int = 1, server: Server | None = None) -> Line:
        of = server or self.server
        history = b""
        if timeline > 1:
            history = (of.data_directory / "pg_wal" / history_name(timeline)).read_bytes()
        return self.archive.begin_line(timeline, SEGMENT_SIZE, history, "clinic", of.version)

    def store(
        self,
        line: Line,
        server: Server | None = None,
        *,
        end: Lsn | None = None,
        received: datetime | None = None,
        indexed: bool = True,
    ) -> Lsn:
        """Put what the server has flushed, up to ``end``; the last segment as a piece, which has no index."""
        of = server or self.server
        flushed = end or Lsn.parse(of.value("select pg_current_wal_flush_lsn()::text"))
        when = (received or datetime.now(UTC)).isoformat()
        for begin, data in segments(of, line.timeline).items():
            part = data[: max(0, flushed - begin)]
            if part:
                whole = len(part) == SEGMENT_SIZE and indexed
                line.put(begin, part, WalInfo(when, index_segment(part, begin, SEGMENT_SIZE) if whole else {}))
        return flushed

    def backup(self, server: Server | None = None, **changes: Any) -> Manifest:
        """Take a base backup with the server's own program; it carries its WAL."""
        of = server or self.server
        number = len(self.manifests)
        name = f"2026112{number}T120000Z-0011aabb"
        started = datetime.now(UTC)
        of.run("pg_basebackup", "-D", self.folder / name, "-X", "fetch", "-c", "fast")
        ((held,),) = [json.loads((self.folder / name / "backup_manifest").read_text())["WAL-Ranges"]]
        manifest = replace(
            MANIFEST,
            backup=name,
            sequence=number + 1,
            started=started.isoformat(),
            ended=datetime.now(UTC).isoformat(),
            wal_segment_size=SEGMENT_SIZE,
            timeline=held["Timeline"],
            start_lsn=held["Start-LSN"],
            stop_lsn=held["End-LSN"],
            server={"in_recovery": False},
            checksum_failures=[],
            **changes,
        )
        self.manifests.append(manifest)
        return manifest

    def plan(self, target: Target, **options: Any) -> RecoveryPlan:
        with contextlib.closing(StopToken()) as stop:
            return plan_recovery(self.archive.lines(), self.manifests, target, stop, **options)

    # -- recoveries ------------------------------------------------------------------------------------------------

    def recover(self, plan: RecoveryPlan, **settings: str) -> Server:
        """Let PostgreSQL carry a plan out; ``settings`` in the place of its target."""
        place = self.folder / f"recovered-{len(self.servers)}"
        shutil.copytree(self.folder / plan.backup.backup, place)
        wal = self.folder / f"wal-{len(self.servers)}"
        wal.mkdir()
        reader = SegmentReader(plan.needs, plan.segment_size, place / "pg_wal")
        for one in segments_of(plan.needs, plan.segment_size):
            (wal / one.name).write_bytes(reader.read(one))
        for line in self.archive.lines():
            if line.history.text:
                (wal / history_name(line.timeline)).write_bytes(line.history.text)
        hand_over(wal)
        (place / "recovery.signal").touch()
        aim = settings or {"recovery_target_lsn": str(plan.target), "recovery_target_inclusive": "on"}
        server = adopt(
            place,
            self.server.version,
            config={
                **aim,
                "restore_command": f"cp {wal}/%f %p",
                "recovery_target_timeline": str(plan.timeline),
                "recovery_target_action": "promote",
            },
        )
        self.servers.append(server)
        deadline = time.monotonic() + 30
        while server.value("select pg_is_in_recovery()") and time.monotonic() < deadline:
            time.sleep(0.02)
        return server


def rows(server: Server) -> list[int]:
    return [row[0] for row in server.sql("select n from rows order by n")]


def write_rows(server: Server, count: int, *, seconds: float = 0.003) -> None:
    """So many commits of a row each, one after another, with room in time between them."""
    server.script(
        f"""
        create table if not exists rows (n serial primary key, filler text);
        do $$ begin
            for i in 1..{count} loop
                insert into rows (filler) select string_agg(md5(i::text || j::text), '') from generate_series(1, 40) j;
                commit;
                perform pg_sleep({seconds});
            end loop;
        end $$;
        """
    )


def commit_times(server: Server) -> dict[int, datetime]:
    """When each row was committed, as the server remembers it."""
    return {
        row[0]: row[1].astimezone(UTC)
        for row in server.sql("select n, pg_xact_commit_timestamp(xmin) from rows order by n")
    }


def new_archive(system: int) -> WalArchive:
    clock = SystemClock()
    return WalArchive(Repository.create(MemoryStorage(clock), [(KEY_FILE, "test")], clock), system)


def make_scene(server: Server) -> tuple[Scene, Callable[[], None]]:
    """A scene, and what ends it."""
    folder = make_folder("recovery")
    system = int(server.value("select system_identifier from pg_control_system()"))
    scene = Scene(server, folder, new_archive(system))

    def end() -> None:
        for one in scene.servers:
            one.destroy()
        remove_folder(folder)

    return scene, end
