"""A production server with data outside of its directory, and a restored cluster to be put in its place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from datamanager.base.events import Listener, ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.plan import InPlaceOptions, InPlacePlan, plan_in_place
from datamanager.engine.in_place.prepare import FromBackup, Preparation
from datamanager.engine.in_place.run import known_histories
from datamanager.engine.in_place.undo import UndoOptions, UndoPlan, plan_undo
from datamanager.engine.recovery.replay import own_end
from datamanager.postgres.connection import ServerAddress
from datamanager.repository.manifest import Manifest
from tests.conftest import NewServer
from tests.engine.conftest import Works, account, outside, owner, programs_of
from tests.servers import Server, hand_over
from tests.storage.mounts import Volume, ext4

ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20


@dataclass
class Production:
    """A server, its backup, and what was written before and after the backup.

    The table ``rows`` lies in the data directory, ``one`` and ``two`` in tablespaces; each holds 1 at the backup and
    1, 2 afterwards.
    """

    server: Server
    works: Works
    manifest: Manifest
    golden: Path
    moments: list[str] = field(default_factory=list)

    @property
    def place(self) -> Path:
        return self.server.data_directory

    @property
    def address(self) -> ServerAddress:
        return ServerAddress(self.server.dsn)

    def rows(self) -> tuple[list[int], ...]:
        """What the three tables hold."""
        return tuple(
            [n for (n,) in self.server.sql(f"select n from {table} order by n")] for table in ("rows", "one", "two")
        )

    def options(self, **more: object) -> InPlaceOptions:
        values = {
            "data_directory": self.place,
            "system_identifier": int(self.manifest.system_identifier),
            "major": self.manifest.major,
            "source": f"backup {self.manifest.backup}",
            "needs": self.manifest.volumes,
            "tablespaces": {one.oid: one.location for one in outside(self.manifest)},
            "start_seconds": 60.0,
            **more,
        }
        return InPlaceOptions(**values)  # type: ignore[arg-type]

    def plan(self, **more: object) -> InPlacePlan:
        return plan_in_place(self.options(**more))

    def plan_undo(self, **more: object) -> UndoPlan:
        options = UndoOptions(self.place, start_seconds=60.0, **more)  # type: ignore[arg-type]
        return plan_undo(options, self.works.stop, address=self.address)

    def from_backup(
        self, plan: InPlacePlan | None = None, *, listener: Listener = ignore, **more: object
    ) -> FromBackup:
        """The default way to prepare."""
        values = {
            "owner": owner(),
            "within": frozenset() if plan is None else plan.within,
            "histories": {} if plan is None else known_histories(plan),
            **more,
        }
        programs = programs_of(self.server.version, self.server.major)
        how = Preparation(account(), programs, **values)  # type: ignore[arg-type]
        return FromBackup(
            self.works.reopened(), self.manifest, own_end(self.manifest, {}), how, self.works.stop, listener
        )

    def make_golden(self) -> None:
        """Prepare once; ``Copied`` makes more of it in no time."""
        oids = [str(one.oid) for one in outside(self.manifest)]
        wal = self.golden / "wal" if (self.place / "pg_wal").is_symlink() else None
        self.from_backup()(self.golden / "data", {oid: self.golden / oid for oid in oids}, wal)

    def copied(self) -> Copied:
        return Copied(self.golden)

    def child(self, action: str, moment: str = "", *, exchange: bool = True, may_end: bool = False) -> list[str]:
        """Run ``restore``, ``undo`` or ``finish`` in a process that is killed at a moment; what it said till then.

        Args: may_end - the moment may never come.
        """
        plan_options = self.options()
        order = {
            "action": action,
            "moment": moment,
            "exchange": exchange,
            "golden": str(self.golden),
            "data_directory": str(self.place),
            "system_identifier": plan_options.system_identifier,
            "major": plan_options.major,
            "tablespaces": {str(oid): location for oid, location in plan_options.tablespaces.items()},
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.engine.in_place.exchanger"],
            cwd=ROOT,
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        wanted = -signal.SIGKILL if moment else 0
        assert done.returncode in (wanted, 0 if may_end else wanted), (
            moment,
            done.returncode,
            done.stdout,
            done.stderr,
        )
        return done.stdout.splitlines()


@dataclass(frozen=True)
class Copied:
    """Prepares a cluster by copying one that was prepared before."""

    golden: Path

    def __call__(self, target: Path, tablespaces: Mapping[str, Path], pg_wal: Path | None) -> None:
        copy(self.golden / "data", target)
        for oid, path in tablespaces.items():
            copy(self.golden / oid, path)
            relink(target / "pg_tblspc" / oid, path)
        if pg_wal is not None:
            copy(self.golden / "wal", pg_wal)
            relink(target / "pg_wal", pg_wal)


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def relink(link: Path, target: Path) -> None:
    link.unlink()
    link.symlink_to(target)
    owned = owner()
    if owned is not None:
        os.chown(link, *owned, follow_symlinks=False)


@dataclass
class Scenery:
    """Makes production servers: ``mounted`` puts data directory and tablespace ``two`` on file systems of their own."""

    new_server: NewServer
    works: Works
    folder: Path

    def __call__(
        self,
        *,
        data: Volume | None = None,
        two: Volume | None = None,
        wal: Path | None = None,
        config: Mapping[str, str] | None = None,
    ) -> Production:
        server = self.new_server(start=False, config={"max_wal_size": "64MB", "min_wal_size": "32MB", **(config or {})})
        if data is not None:
            mounted(data.folder)
            for entry in server.data_directory.iterdir():
                shutil.move(entry, data.folder / entry.name)
            server.data_directory.rmdir()
            server.data_directory = data.folder
        if wal is not None:
            shutil.move(server.data_directory / "pg_wal", wal)
            (server.data_directory / "pg_wal").symlink_to(wal)
            hand_over(wal)
        hand_over(server.data_directory)
        server.start()
        server.tablespace("one")
        if two is None:
            server.tablespace("two")
        else:
            mounted(two.folder)
            server.sql(f"create tablespace two location '{two.folder}'")
        server.sql("create table rows as select 1 n")
        server.sql("create table one tablespace one as select 1 n")
        server.sql("create table two tablespace two as select 1 n")
        manifest = self.works.back_up(server).manifest
        for table in ("rows", "one", "two"):
            server.sql(f"insert into {table} values (2)")
        return Production(server, self.works, manifest, self.folder / "golden")


BEFORE: tuple[list[int], ...] = ([1], [1], [1])
AFTER: tuple[list[int], ...] = ([1, 2], [1, 2], [1, 2])


def mounted(folder: Path) -> None:
    """Make the root of a file system a directory of the servers' account."""
    hand_over(folder)
    folder.chmod(0o700)
    lost = folder / "lost+found"
    if lost.exists():
        os.chown(lost, 0, 0)


@pytest.fixture
def production(new_server: NewServer, works: Works, open_folder: Path) -> Callable[..., Production]:
    return Scenery(new_server, works, open_folder)


@pytest.fixture
def stop() -> Iterator[StopToken]:
    with StopToken() as token:
        yield token


@pytest.fixture
def volumes(open_folder: Path) -> Iterator[list[Volume]]:
    """Two file systems: a roomy one for a data directory, a small one for a tablespace."""
    with ext4(open_folder / "big", 700 * MIB) as big, ext4(open_folder / "small", 64 * MIB) as small:
        for volume in (big, small):
            volume.folder.parent.chmod(0o755)
        yield [big, small]


def moments(said: list[str]) -> list[str]:
    """A moment for each message of a child, by its first word and how many began so before."""
    seen: dict[str, int] = {}
    found = []
    for line in said:
        word = line.split()[0]
        found.append(f"{word} {seen.get(word, 0)}")
        seen[word] = seen.get(word, 0) + 1
    return found
