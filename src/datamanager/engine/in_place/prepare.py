"""The default way to prepare a restored cluster: a backup, recovered to the backup's own end, on a new timeline.

1 restore    plan_restore and apply_restore, into the directories that the plan of the restore in place names
2 pg_wal     moved to where it lies outside
3 histories  every known timeline's, so that the new one gets a number that nobody has used
4 recover    as an isolated clone that archives nothing; it is promoted, looked at, and stopped
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from datamanager.base.errors import IntegrityError, ServerDidNotStart
from datamanager.base.events import Executed, Listener, PhaseStarted
from datamanager.base.files import sync_tree, write_durably
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.configuration import TAKEN
from datamanager.engine.in_place.kept import control_of_directory
from datamanager.engine.restore.plan import RestoreOptions, plan_restore
from datamanager.engine.restore.run import apply_restore
from datamanager.postgres.account import Account
from datamanager.postgres.clone import prepare_clone
from datamanager.postgres.connection import ServerAddress, connect, server_errors
from datamanager.postgres.control_file import STOPPED
from datamanager.postgres.facts_model import ServerFacts
from datamanager.postgres.local_server import LocalServer
from datamanager.postgres.programs import Programs
from datamanager.postgres.wal.names import history_name
from datamanager.repository.format import canonical_json
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository

# Nobody else is there to have the port: the clone listens on a socket in a folder of its own.
_PORT = 5432
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Preparation:
    """How a cluster is prepared, whatever it is prepared from.

    Args:
        owner: (uid, gid) of the files, for root.
        within: directories of the present cluster that the new one may lie in; see ``InPlacePlan.within``.
        histories: of every timeline known, by file name; see ``run.known_histories``.
        look: is given the running, promoted clone, reached as its superuser: to compare roles, to check.
        limit_seconds: how long recovery may take; None for as long as it takes.
    """

    account: Account
    programs: Programs
    owner: tuple[int, int] | None = None
    within: frozenset[Path] = frozenset()
    histories: Mapping[str, bytes] = field(default_factory=dict)
    threads: int = 2
    look: Callable[[ServerAddress], None] = lambda address: None
    limit_seconds: float | None = None


@dataclass(frozen=True)
class FromBackup:
    """Prepares a cluster from one backup, recovered to the backup's own end; see ``run.Prepare``."""

    repository: Repository
    manifest: Manifest
    how: Preparation
    stop: StopToken
    listener: Listener

    def __call__(self, target: Path, tablespaces: Mapping[str, Path], pg_wal: Path | None) -> None:
        options = RestoreOptions(target, tablespaces, self.how.owner, self.how.threads, within=self.how.within)
        apply_restore(self.repository, plan_restore(self.repository, self.manifest, options), self.stop, self.listener)
        if pg_wal is not None:
            move_wal(target, pg_wal, self.how.owner)
        self.recover(target)

    def recover(self, target: Path) -> None:
        """Bring a restored directory to the backup's end, promoted and stopped. Raises: as the call; OSError."""
        self.listener(PhaseStarted("recovering"))
        self._give_histories(target / "pg_wal")
        with _side_directory(self.how.account) as side:
            # All of its WAL came with the backup, so nothing is fetched: 1 says "not in the archive".
            recovery = {"restore_command": "exit 1", "recovery_target_timeline": "current"}
            if (target / "backup_label").exists():
                recovery |= {"recovery_target": "immediate", "recovery_target_action": "promote"}
            facts = ServerFacts.from_json(canonical_json(self.manifest.server))
            options = prepare_clone(
                target,
                side / "files",
                facts,
                port=_PORT,
                socket_directory=side / "socket",
                account=self.how.account,
                programs=self.how.programs,
                shared_preload_libraries=facts.shared_preload_libraries,
                recovery=recovery,
            ).options
            server = LocalServer(
                target,
                self.how.programs,
                self.how.account,
                side / "socket",
                _PORT,
                options,
                side / "server.log",
                user=facts.superuser,
                on_executed=lambda text: self.listener(Executed(text)),
            )
            self._run(server, target)

    def _give_histories(self, pg_wal: Path) -> None:
        known = self.how.histories
        newest = max((int(name[:8], 16) for name in known), default=1)
        for number in range(2, newest + 1):
            name = history_name(number)
            data = known.get(name, TAKEN)
            # The server looks for a free number behind the backup's; before it only what is known counts.
            if (data != TAKEN or number > self.manifest.timeline) and not (pg_wal / name).exists():
                write_durably(pg_wal / name, data, mode=0o600)
                self.how.account.take([pg_wal / name])

    def _run(self, server: LocalServer, target: Path) -> None:
        server.start(self.stop, limit_seconds=self.how.limit_seconds)
        try:
            self._wait_for_promotion(server.address)
            self.listener(PhaseStarted("checking"))
            self.how.look(server.address)
        finally:
            server.stop()
        control = control_of_directory(target)
        if control is None or control.state != STOPPED:
            raise IntegrityError(f"prepare cluster: {target} was not stopped cleanly")
        for name in ("backup_label.old", "postmaster.opts", "recovery.signal"):
            (target / name).unlink(missing_ok=True)
        sync_tree(target)

    def _wait_for_promotion(self, address: ServerAddress) -> None:
        """Raises: ServerDidNotStart, Cancelled."""
        deadline = None if self.how.limit_seconds is None else time.monotonic() + self.how.limit_seconds
        with connect(address, stop=self.stop) as connection, server_errors("look at clone"):
            while connection.execute("SELECT pg_is_in_recovery()").fetchone() != (False,):
                if deadline is not None and time.monotonic() > deadline:
                    raise ServerDidNotStart(f"recover backup: it takes more than {self.how.limit_seconds} seconds")
                if self.stop.wait(_LOOK_SECONDS):
                    self.stop.check()


def move_wal(target: Path, pg_wal: Path, owner: tuple[int, int] | None) -> None:
    """Move a stopped cluster's pg_wal to another volume and leave a link. Raises: OSError."""
    source = target / "pg_wal"
    pg_wal.mkdir(mode=0o700, parents=True)
    shutil.copytree(source, pg_wal, dirs_exist_ok=True)
    if owner is not None:
        for folder, names, files in os.walk(pg_wal):
            for name in (".", *names, *files):
                os.chown(Path(folder, name), *owner)
    pg_wal.chmod(source.stat().st_mode & 0o7777)
    sync_tree(pg_wal)
    shutil.rmtree(source)
    source.symlink_to(pg_wal, target_is_directory=True)
    if owner is not None:
        os.chown(source, *owner, follow_symlinks=False)
    sync_tree(target)


@contextmanager
def _side_directory(account: Account) -> Iterator[Path]:
    """A folder for the clone's socket, files and log: a short path that the account may enter; gone at the end."""
    side = Path(tempfile.mkdtemp(prefix="dm-"))
    try:
        account.take([side])
        yield side
    finally:
        shutil.rmtree(side, ignore_errors=True)
