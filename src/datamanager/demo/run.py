"""The demo: a sample clinic is backed up under load, changed, backed up again, and both backups come back.

Everything is real: a PostgreSQL server, an encrypted repository in a folder, the engine's own backup and restore. Every
comparison is made on a server that runs on what was restored.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from datamanager.base.clock import SystemClock
from datamanager.base.events import Event, Executed, Listener, PhaseStarted
from datamanager.base.pipeline import StopToken
from datamanager.base.units import MIB, Lsn, Secret
from datamanager.demo.clinic import change_clinic, create_clinic
from datamanager.demo.compare import TableDigest, check_commit_run, table_digests
from datamanager.demo.embedded import MAJOR, PORT, demo_account, embedded_programs, new_cluster
from datamanager.demo.writer import CommitWriter
from datamanager.engine.backup.run import BackupResult, run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.engine.restore.plan import RestoreOptions, plan_restore
from datamanager.engine.restore.run import RestoreResult, apply_restore
from datamanager.postgres.account import Account, UnixAccount
from datamanager.postgres.base_backup import BaseBackupOptions, BaseBackupSource
from datamanager.postgres.clone import prepare_clone
from datamanager.postgres.connection import connect
from datamanager.postgres.facts import collect_facts
from datamanager.postgres.facts_model import ServerFacts
from datamanager.postgres.local_server import LocalServer
from datamanager.postgres.programs import Programs, run_program
from datamanager.postgres.wal_summaries import Summaries, read_summaries
from datamanager.repository.format import canonical_json, folders
from datamanager.repository.keys import SlotSecret
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from datamanager.storage.local import LocalStorage

_WRITERS_TABLE = "public.commit_log"
_THREADS = 2


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the caller decides.

    Args:
        size_bytes: how large the sample clinic shall be, 16 MiB or more.
        keep: leave the workspace for inspection.
        parent: where the workspace is made; None for the system's temporary folder.
    """

    size_bytes: int = 300 * MIB
    seed: int = 1
    keep: bool = False
    parent: Path | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison, in words."""

    what: str
    ok: bool


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What happened. ``workspace`` is None once it was removed."""

    backups: list[BackupResult]
    restores: list[RestoreResult]
    checks: list[Check]
    commits: int
    workspace: Path | None
    seconds: float
    size_bytes: int

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


@dataclass(slots=True)
class _Demo:
    options: DemoOptions
    workspace: Path
    account: Account
    programs: Programs
    stop: StopToken
    listener: Listener
    secret: SlotSecret
    checks: list[Check] = field(default_factory=list)
    backups: list[BackupResult] = field(default_factory=list)
    restores: list[RestoreResult] = field(default_factory=list)

    def phase(self, name: str) -> None:
        self.listener(PhaseStarted(name))
        self.stop.check()

    def executed(self, text: str) -> None:
        self.listener(Executed(text))

    def check(self, what: str, ok: bool) -> None:
        self.checks.append(Check(what, ok))


def run_demo(options: DemoOptions, stop: StopToken, listener: Listener) -> DemoReport:
    """Run it all and clean up, whatever happens.

    Raises: ProgramMissing, ServerDidNotStart, Cancelled, and whatever a backup or restore raises.
    """
    clock = SystemClock()
    began = clock.elapsed()
    account = demo_account()
    workspace = Path(tempfile.mkdtemp(prefix="datamanager-demo-", dir=options.parent))
    workspace.chmod(0o711)  # the server's account must pass; every folder inside is private
    try:
        programs = embedded_programs(account, workspace)
        secret = SlotSecret.passphrase(Secret(secrets.token_hex(16)))
        demo = _Demo(options, workspace, account, programs, stop, listener, secret)
        writer = _back_up_twice(demo)
        for number, (result, digests) in enumerate(zip(demo.backups, writer.digests, strict=True), start=1):
            _restore_and_compare(demo, number, result.manifest, digests, writer.commits)
    finally:
        if not options.keep:
            shutil.rmtree(workspace)
    seconds = clock.elapsed() - began
    kept = workspace if options.keep else None
    size = demo.backups[0].manifest.total_bytes
    return DemoReport(demo.backups, demo.restores, demo.checks, len(writer.commits), kept, seconds, size)


@dataclass(frozen=True, slots=True)
class _Written:
    commits: list[tuple[int, Lsn]]
    digests: list[dict[str, TableDigest]]


def _back_up_twice(demo: _Demo) -> _Written:
    demo.phase("starting the embedded server")
    server = new_cluster(
        demo.workspace / "clinic",
        demo.programs,
        demo.account,
        demo.workspace / "socket",
        demo.stop,
        demo.executed,
    )
    server.start(demo.stop)
    try:
        with connect(server.address, stop=demo.stop) as connection:
            create_clinic(connection, demo.options.size_bytes, demo.options.seed, demo.listener, demo.stop)
            storage = LocalStorage.create(demo.workspace / "repository", folders())
            repository = Repository.create(storage, [(demo.secret, "demo")], SystemClock())
            digests = []
            with CommitWriter(server.address.conninfo) as writer:
                for number in (1, 2):
                    if number == 2:
                        demo.phase("changing and deleting rows")
                        change_clinic(connection, demo.options.seed)
                    digests.append(table_digests(connection, exclude=[_WRITERS_TABLE]))
                    demo.phase(f"backup {number} of 2, while a writer keeps committing")
                    demo.backups.append(_back_up(demo, server, repository, number))
            demo.check(f"the writer committed {len(writer.commits)} times and never failed", not writer.failures)
            return _Written(writer.commits, digests)
    finally:
        server.stop()


def _back_up(demo: _Demo, server: LocalServer, repository: Repository, number: int) -> BackupResult:
    key = repository.ring.fingerprint_key.reveal()
    facts = collect_facts(server.address, demo.stop, key, demo.executed)
    source = BaseBackupSource(
        server.address,
        MAJOR,
        BaseBackupOptions(label=f"demo {number}"),
        SystemClock(),
        demo.executed,
        lambda slot: None,
    )
    options = BackupOptions(cluster="clinic", label=f"demo {number}", threads=_THREADS)

    def summaries(reach: tuple[int, Lsn] | None) -> Summaries:
        return read_summaries(server.address, demo.stop, demo.executed, reach=reach)

    return run_backup(repository, source, facts, options, demo.stop, _without_phases(demo.listener), summaries)


def _without_phases(listener: Listener) -> Callable[[Event], None]:
    """The demo names its own phases; those of its parts would hide them."""
    return lambda event: None if isinstance(event, PhaseStarted) else listener(event)


def _restore_and_compare(
    demo: _Demo,
    number: int,
    manifest: Manifest,
    digests: dict[str, TableDigest],
    commits: list[tuple[int, Lsn]],
) -> None:
    demo.phase(f"restore {number} of 2")
    target = demo.workspace / f"restored-{number}"
    storage = LocalStorage(demo.workspace / "repository")
    repository = Repository.open(storage, demo.secret, SystemClock(), lambda text: demo.check(text, False))
    owner = (demo.account.user_id, demo.account.group_id) if isinstance(demo.account, UnixAccount) else None
    plan = plan_restore(repository, manifest, RestoreOptions(target, owner=owner, threads=_THREADS))
    demo.restores.append(apply_restore(repository, plan, demo.stop, _without_phases(demo.listener)))
    demo.phase(f"comparing restore {number} of 2")
    verified = run_program(
        demo.programs, "pg_verifybackup", [target], account=demo.account, stop=demo.stop, on_executed=demo.executed
    )
    demo.check(f"restore {number}: pg_verifybackup accepts the directory", verified.status == 0)
    _compare(demo, number, target, manifest, digests, commits)


def _compare(
    demo: _Demo,
    number: int,
    target: Path,
    manifest: Manifest,
    digests: dict[str, TableDigest],
    commits: list[tuple[int, Lsn]],
) -> None:
    """Start an isolated server on what was restored and hold its rows against those of the original."""
    socket_directory = demo.workspace / f"socket-{number}"
    clone = prepare_clone(
        target,
        demo.workspace / f"clone-{number}",
        _limits(manifest),
        port=PORT,
        socket_directory=socket_directory,
        account=demo.account,
        programs=demo.programs,
    )
    log = socket_directory / "server.log"
    server = LocalServer(
        target, demo.programs, demo.account, socket_directory, PORT, clone.options, log, on_executed=demo.executed
    )
    server.start(demo.stop)
    try:
        with connect(server.address, stop=demo.stop) as connection:
            found = table_digests(connection, exclude=[_WRITERS_TABLE])
            equal = sum(found.get(table) == digest for table, digest in digests.items())
            demo.check(
                f"restore {number}: {equal} of {len(digests)} tables equal by count and content",
                found == digests,
            )
            run = check_commit_run(connection, commits, manifest.stop, _WRITERS_TABLE)
            demo.check(
                f"restore {number}: commits 1 to {run.highest} unbroken, with all {run.required} "
                f"noted up to the backup's end {manifest.stop_lsn}",
                run.ok,
            )
    finally:
        server.stop()


def _limits(manifest: Manifest) -> ServerFacts:
    return ServerFacts.from_json(canonical_json(manifest.server))
