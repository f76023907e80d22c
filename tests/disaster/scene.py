"""Real backups for disasters to happen to: a server with content, a repository, and what must hold afterwards."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from datamanager.base.clock import SystemClock
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.backup.run import BackupResult, run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.engine.restore.plan import RestoreOptions, plan_restore
from datamanager.engine.restore.run import RestoreResult, apply_restore
from datamanager.engine.verify.run import VerifyOptions, VerifyResult, verify_repository
from datamanager.postgres.base_backup import BaseBackupOptions, BaseBackupSource
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.facts import collect_facts
from datamanager.repository.format import folders
from datamanager.repository.keys import SlotSecret
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from datamanager.storage.base import Storage
from datamanager.storage.local import LocalStorage
from tests.servers import Server, free_port, hand_over

CHECKOUT = Path(__file__).resolve().parents[2]

# Rows of 8,000 bytes that do not compress, so that packs fill up as with a big database.
_FILL = """
create table {name} (id int primary key, body bytea not null);
alter table {name} alter body set storage external;
insert into {name}
select i, (select decode(string_agg(md5(random()::text || i || j), ''), 'hex') from generate_series(1, 500) j)
  from generate_series(1, {rows}) i;
"""


def fill(server: Server, name: str, megabytes: int) -> None:
    """Make a table of about that size whose content is random."""
    server.script(_FILL.format(name=name, rows=megabytes * 125))


def content_of(connection: psycopg.Connection[Any]) -> dict[str, tuple[Any, ...]]:
    """Number of rows and a digest of the content, of every table of a user."""
    tables = connection.execute(
        "select format('%I.%I', schemaname, tablename) from pg_tables"
        " where schemaname not in ('pg_catalog', 'information_schema') order by 1"
    ).fetchall()
    found = {}
    for (name,) in tables:
        query = f"select count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) from {name} t"
        found[str(name)] = tuple(connection.execute(query.encode()).fetchall()[0])
    return found


@dataclass
class Office:
    """One repository folder with its key, and the server whose backups go there.

    Args: root - the folder of the repository; key_file - what opens it.
    """

    server: Server
    root: Path
    key_file: Path
    expected: dict[str, dict[str, tuple[Any, ...]]] = field(default_factory=dict)  # content by backup

    @classmethod
    def make(cls, server: Server, folder: Path) -> Office:
        """A new repository in ``folder``."""
        secret = SlotSecret.new_key_file()
        office = cls(server, folder / "repository", folder / "key")
        office.key_file.write_bytes(secret.key_file())
        storage = LocalStorage.create(office.root, folders())
        Repository.create(storage, [(secret, "test")], SystemClock())
        return office

    def copy(self, folder: Path) -> Office:
        """The same repository once more, for one test to spoil."""
        shutil.copytree(self.root, folder / "repository")
        return Office(self.server, folder / "repository", self.key_file, dict(self.expected))

    def repository(self, storage: Storage | None = None) -> Repository:
        """The repository as a new process opens it; a damaged first copy raises."""
        secret = SlotSecret.from_key_file(self.key_file.read_bytes())
        return Repository.open(storage or LocalStorage(self.root), secret, SystemClock())

    def back_up(self, storage: Storage | None = None, label: str = "test") -> BackupResult:
        """Take a backup in this process, and remember what the tables hold."""
        repository = self.repository(storage)
        address = ServerAddress(self.server.dsn)
        with StopToken() as stop:
            facts = collect_facts(address, stop, repository.ring.fingerprint_key.reveal(), lambda text: None)
            source = BaseBackupSource(
                address,
                facts.major,
                BaseBackupOptions(label),
                SystemClock(),
                lambda text: None,
                lambda slot: None,
            )
            result = run_backup(repository, source, facts, BackupOptions("office", label), stop, ignore)
        with self.server.connect() as connection:
            self.expected[result.manifest.backup] = content_of(connection)
        return result

    def restore(self, manifest: Manifest, target: Path, tablespaces: Mapping[str, Path] | None = None) -> RestoreResult:
        """Restore a backup in this process."""
        repository = self.repository()
        with StopToken() as stop:
            plan = plan_restore(repository, manifest, RestoreOptions(target, tablespaces or {}))
            return apply_restore(repository, plan, stop, ignore)

    def verify(self) -> VerifyResult:
        """Read every byte of the repository, as another process."""
        with StopToken() as stop:
            return verify_repository(self.repository(), VerifyOptions(), stop, ignore)

    def kill(self, moment: str, **order: Any) -> None:
        """Run a victim that is killed at ``moment``; a test whose moment never comes fails.

        Args: order - ``backup``, ``target`` and ``tablespaces`` for a restore; nothing for a backup.
        """
        done = run_victim(self, moment, **order)
        assert done.returncode == -signal.SIGKILL, f"{moment} never came: {done.stdout}{done.stderr}"


def run_victim(office: Office, moment: str, **order: Any) -> subprocess.CompletedProcess[str]:
    """Run the victim to its end; see ``tests.disaster.victim``."""
    process = start_victim(office, moment, **order)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_victim(office: Office, moment: str = "", **order: Any) -> subprocess.Popen[str]:
    """Begin a victim; without a moment it runs to its end unless it is killed."""
    words = {
        "work": "restore" if order else "backup",
        "moment": moment,
        "repository": str(office.root),
        "key_file": str(office.key_file),
        "dsn": office.server.dsn,
        "tablespaces": {},
        **order,
    }
    with tempfile.TemporaryFile("w+") as given:
        json.dump(words, given, default=str)
        given.seek(0)
        return subprocess.Popen(
            [sys.executable, "-m", "tests.disaster.victim"],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=CHECKOUT,
            text=True,
        )


def temporaries(root: Path) -> list[Path]:
    """Every file below ``root`` whose name no object has."""
    return [path for path in root.rglob("*") if path.is_file() and (path.name.startswith(".") or ".tmp" in path.name)]


def objects_below(root: Path) -> set[str]:
    """Every file below ``root``, relative."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def assert_server_is_free(server: Server, seconds: float = 10) -> None:
    """Nothing of a backup is left on the server: no slot, no stream, no backup mode. It notices within seconds."""
    left: list[tuple[Any, ...]] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = server.sql("select slot_name from pg_replication_slots")
        left += server.sql("select pid from pg_stat_replication")
        left += server.sql("select pid from pg_stat_progress_basebackup")
        if not left:
            break
        time.sleep(0.05)
    assert left == []
    assert server.running


def assert_cannot_start(server: Server, target: Path) -> None:
    """PostgreSQL itself refuses to start in that directory, because the control file is missing or more than that."""
    if target.exists():
        hand_over(target)
    log = server.folder / "refused.log"
    log.unlink(missing_ok=True)
    options = f"-p {free_port()} -k {server.folder} -c listen_addresses="
    done = server.run("pg_ctl", "start", "-D", target, "-w", "-t", "20", "-l", log, "-o", options, check=False)
    said = done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    assert done.returncode != 0, f"a half-restored directory started: {said}"
    reasons = [
        "is not a database cluster directory",
        "does not exist",
        "could not find the database system",
        'global/pg_control" for reading: No such file',
    ]
    assert any(reason in said for reason in reasons), said
    assert not (target / "postmaster.pid").exists()
