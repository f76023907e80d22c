"""The whole path for tests on real servers: a repository, backups of a server, restores, clones beside the original."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import Cancelled, DataManagerError
from datamanager.base.events import Event, PhaseStarted, Progress, Warned
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn, Secret
from datamanager.engine.backup.run import BackupResult, run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.engine.restore.export import export_backup
from datamanager.engine.restore.plan import RestoreOptions, RestorePlan, plan_restore
from datamanager.engine.restore.run import RestoreResult, apply_restore
from datamanager.postgres.account import Account, CurrentAccount, UnixAccount
from datamanager.postgres.base_backup import BaseBackupOptions, BaseBackupSource
from datamanager.postgres.clone import prepare_clone
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.facts import ServerFacts, collect_facts
from datamanager.postgres.local_server import LocalServer
from datamanager.postgres.monitor import BackupMonitor
from datamanager.postgres.programs import Programs, find_programs
from datamanager.postgres.source import BackupSource
from datamanager.postgres.wal_summaries import Summaries, read_summaries
from datamanager.repository.format import canonical_json, folders
from datamanager.repository.keys import SlotSecret
from datamanager.repository.manifest import Manifest, Tablespace
from datamanager.repository.repository import Repository
from datamanager.storage.base import Storage
from datamanager.storage.local import LocalStorage
from tests.servers import Server, binaries, free_port, make_folder, remove_folder, server_account
from tests.servers.processes import run_program

SECRET = SlotSecret.passphrase(Secret("a passphrase of the tests"))


def account() -> Account:
    """The account of the test servers, as the product knows it."""
    found = server_account()
    return CurrentAccount() if found is None else UnixAccount(found.name, found.uid, found.gid)


def owner() -> tuple[int, int] | None:
    """To whom restored files must belong so that a test server starts on them."""
    found = server_account()
    return None if found is None else (found.uid, found.gid)


def programs_of(version: str, major: int) -> Programs:
    """The programs of a version that the tests name."""
    return find_programs(major, binaries(version), account=account())


@dataclass
class Heard:
    """A listener that keeps what it was told. Thread-safe."""

    events: list[Event] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)

    @property
    def phases(self) -> list[str]:
        return [event.phase for event in self.events if isinstance(event, PhaseStarted)]

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warned)]

    @property
    def progress(self) -> list[Progress]:
        return [event for event in self.events if isinstance(event, Progress)]


@dataclass(frozen=True)
class Clone:
    """A clone at work beside the original; ``server`` reaches it."""

    server: LocalServer
    programs: Programs

    @property
    def dsn(self) -> str:
        return self.server.address.conninfo


class Works:
    """One repository and what is done with it, as ``app`` and the demo do it. One thread at a time but for ``back_up``.

    Args: folder - takes repository and restored directories; the servers' account may enter it.
    """

    def __init__(self, folder: Path, storage: Storage | None = None) -> None:
        self.folder = folder
        self.storage = storage or LocalStorage.create(folder / "repository", folders())
        self.repository = Repository.create(self.storage, [(SECRET, "tests")], SystemClock())
        self.stop = StopToken()

    def facts(self, server: Server) -> ServerFacts:
        key = self.repository.ring.fingerprint_key.reveal()
        return collect_facts(ServerAddress(server.dsn), self.stop, key, lambda text: None)

    def back_up(
        self,
        server: Server,
        *,
        dsn: str = "",
        heard: Heard | None = None,
        stop: StopToken | None = None,
        repository: Repository | None = None,
        on_slot: Callable[[str], None] = lambda slot: None,
        full: bool = False,
        pace: float = 0,
        around: Callable[[BackupSource], BackupSource] = lambda source: source,
        **options: object,
    ) -> BackupResult:
        """Take a backup under the eyes of the monitor.

        Args:
            dsn: how the server is reached when not through its socket.
            on_slot: told the slot's name once it exists.
            full: read everything.
            pace: seconds after which the next slice is audited; by default each increment audits one.
            around: puts a listener between source and engine.
            options: of BaseBackupOptions.
        """
        stopping, listener = stop or self.stop, heard or Heard()
        facts = self.facts(server)
        address = ServerAddress(dsn or server.dsn)
        danger: list[DataManagerError] = []

        def on_danger(error: DataManagerError) -> None:
            danger.append(error)
            stopping.stop(error.message)

        monitor = BackupMonitor(
            address,
            facts.data_directory or "",
            lambda phase: listener(PhaseStarted(phase)),
            lambda text: listener(Warned(text)),
            on_danger,
        )

        def begun(slot: str) -> None:
            monitor.watch(slot)
            on_slot(slot)

        protocol = BaseBackupOptions(**{"label": "engine test", **options})  # type: ignore[arg-type]
        source = BaseBackupSource(address, facts.major, protocol, SystemClock(), lambda text: None, begun)
        try:
            wanted = BackupOptions(cluster="tests", label=protocol.label, full=full, audit_pace_seconds=pace)
            into = repository or self.repository

            def ask(reach: tuple[int, Lsn] | None) -> Summaries:
                return read_summaries(address, stopping, lambda text: None, reach=reach)

            return run_backup(into, around(source), facts, wanted, stopping, listener, ask)
        except Cancelled:
            if danger:
                raise danger[0] from None
            raise
        finally:
            monitor.close()

    def reopened(self) -> Repository:
        """The repository as another process finds it."""
        return Repository.open(self.storage, SECRET, SystemClock())

    def plan(
        self, manifest: Manifest, target: Path, tablespaces: Mapping[str, Path] | None = None, **options: object
    ) -> RestorePlan:
        wanted = RestoreOptions(target, tablespaces or {}, owner=owner(), **options)  # type: ignore[arg-type]
        return plan_restore(self.reopened(), manifest, wanted)

    def restore(
        self, manifest: Manifest, name: str = "restored", tablespaces: Mapping[str, Path] | None = None
    ) -> Path:
        """Restore below ``folder``, each tablespace to a directory of its own beside, and return the data directory."""
        target = self.folder / name
        mapped = {one.location: self.folder / f"{name}.ts-{one.oid}" for one in outside(manifest)}
        plan = self.plan(manifest, target, mapped if tablespaces is None else tablespaces)
        apply_restore(self.reopened(), plan, self.stop, Heard())
        return target

    def export(self, manifest: Manifest, name: str = "exported") -> RestoreResult:
        wanted = RestoreOptions(self.folder / name, owner=owner())
        return export_backup(self.reopened(), manifest, wanted, self.stop, Heard())

    @contextlib.contextmanager
    def clone(self, data_directory: Path, manifest: Manifest, version: str) -> Iterator[Clone]:
        """A neutralized clone on a restored directory, stopped cleanly at the end."""
        programs = programs_of(version, manifest.major)
        side = make_folder("clone")
        try:
            options = prepare_clone(
                data_directory,
                side / "files",
                ServerFacts.from_json(canonical_json(manifest.server)),
                port=free_port(),
                socket_directory=side / "socket",
                account=account(),
                programs=programs,
                settings={"fsync": "off"},
            ).options
            server = LocalServer(
                data_directory,
                programs,
                account(),
                side / "socket",
                int(options["port"]),
                options,
                side / "server.log",
                on_executed=lambda text: None,
            )
            server.start(self.stop, limit_seconds=60)
            try:
                yield Clone(server, programs)
            finally:
                server.stop()
        finally:
            remove_folder(side)

    def close(self) -> None:
        self.stop.close()
        self.storage.close()


def outside(manifest: Manifest) -> list[Tablespace]:
    """The tablespaces that lie outside the data directory."""
    return [one for one in manifest.tablespaces if one.location.startswith("/")]


def pg(programs: Programs, name: str, *words: str | Path, dsn: str = "", timeout: float = 240) -> str:
    """Run one of PostgreSQL's programs under the servers' account; raises ProgramFailed with what it said."""
    variables = {}
    if dsn:
        parameters = ServerAddress(dsn).parameters()
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
        variables = {names[key]: value for key, value in parameters.items() if key in names}
    done = run_program([programs.path(name), *words], variables=variables, timeout=timeout)
    return done.stdout + done.stderr


def assert_nothing_left(server: Server, works: Works) -> None:
    """No slot, no walsender of ours on the server, no lease and no backup in the repository."""
    assert server.sql("select slot_name from pg_replication_slots") == []
    assert server.sql("select pid from pg_stat_replication") == []
    assert server.sql("select pid from pg_stat_progress_basebackup") == []
    assert works.repository.backup_ids() == []
    assert list(works.storage.list("leases/")) == []


@pytest.fixture
def works(open_folder: Path) -> Iterator[Works]:
    """A repository in a folder that the servers' account may enter."""
    made = Works(open_folder)
    yield made
    made.close()
