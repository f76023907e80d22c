"""A recovery that waits at its moment to be looked at: read-only, on its socket, not promoted yet.

All WAL of the plan is replayed by then; the end of recovery reads the last record once more, so the spool is settled
with the segments that hold it and needs nobody. What is to come is written down beside the directory, so that another
command, days later and without the repository, can finish or drop it. Source: PostgreSQL documentation 20.5.6, 9.27.4.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from datamanager.base.errors import DataManagerError, NotFound, ServerDidNotStart, ServerError, TargetUnfit
from datamanager.base.files import write_durably
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.recovery.spool import RECORD, empty_spool
from datamanager.engine.recovery.workplace import Recovered, Workplace, folder_of
from datamanager.engine.restore.plan import UNFINISHED_MARK
from datamanager.postgres.account import Account
from datamanager.postgres.connection import ServerAddress, cancelled_by, connect
from datamanager.postgres.local_server import LocalServer, relevant_lines
from datamanager.postgres.programs import Programs

_LOOK_SECONDS = 0.2
_STOP_SECONDS = 300.0
_LOG_TAIL_BYTES = 64 * 1024
_STATE = (
    "SELECT CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() ELSE 'promoted' END, "
    "pg_last_wal_replay_lsn()"
)
_PROMOTE = "SELECT pg_promote(true, 3600)"

Connection = psycopg.Connection[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Paused:
    """A server that waits at its moment.

    Args: links - tablespaces outside ``target``; timeline, reached - what was replayed, and where its last record
        begins; databases - that may admit a session, the likeliest first.
    """

    target: str
    links: tuple[str, ...]
    socket: str
    port: int
    user: str
    databases: tuple[str, ...]
    cluster: str
    backup: str
    major: int
    timeline: int
    reached: str
    server: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Raises: OSError."""
        write_durably(folder / RECORD, json.dumps(asdict(self)).encode(), mode=0o600)

    @classmethod
    def read(cls, target: Path) -> Paused:
        """Raises: NotFound, when no recovery of ``target`` waits."""
        try:
            value = json.loads((folder_of(target) / RECORD).read_bytes())
            found = cls(**{**value, "links": tuple(value["links"]), "databases": tuple(value["databases"])})
        except (OSError, ValueError, TypeError, KeyError):
            found = None
        if found is None or found.target != str(target) or not (target / UNFINISHED_MARK).exists():
            raise NotFound(
                f"find restore: none waits in {target}", hint="Give the directory of a `datamanager restore --pause`."
            )
        return found

    @property
    def conninfo(self) -> str:
        """How the account that owns the files opens a session."""
        host = "127.0.0.1" if sys.platform == "win32" else self.socket
        return make_conninfo("", host=host, port=self.port, user=self.user, dbname=self.databases[0])

    @property
    def workplace(self) -> Workplace:
        target = Path(self.target)
        return Workplace(target, tuple(Path(one) for one in self.links), folder_of(target), Path(self.socket))

    def local_server(self, programs: Programs, account: Account, on_executed: Callable[[str], None]) -> LocalServer:
        place = self.workplace
        return LocalServer(
            place.target, programs, account, place.socket, self.port, {}, place.log, user=self.user,
            on_executed=on_executed,
        )  # fmt: skip


def wait_until_paused(
    server: LocalServer, databases: tuple[str, ...], target: Lsn, stop: StopToken, check: Callable[[], None]
) -> bool:
    """Wait until replay has passed ``target`` and is paused. Returns: False when the server has been promoted instead.

    Args: check - raises what keeps WAL from coming.
    Raises: ServerDidNotStart, with the server's last words; ServerError, Cancelled.
    """
    try:
        with _session(server.address, databases, stop) as session:
            while True:
                ((state, replayed),) = session.execute(_STATE).fetchall()
                if state == "promoted":
                    return False
                if state == "paused" and replayed is not None and Lsn.parse(str(replayed)) > target:
                    return True
                check()
                stop.wait(_LOOK_SECONDS)
                stop.check()
    except (psycopg.Error, ServerError) as error:
        check()
        stop.check()
        if server.is_running and isinstance(error, DataManagerError):
            raise
        raise ServerDidNotStart(
            f"recover: {_last_words(server) or 'the server went away'}", hint=f"The whole log is {server.log_file}."
        ) from error


def finish_paused(
    paused: Paused, programs: Programs, account: Account, stop: StopToken, on_executed: Callable[[str], None]
) -> Recovered:
    """Promote, stop cleanly, check, and make the directory one that anybody can start.

    Raises: TargetUnfit (its server does not run any more); ServerError, IntegrityError, Cancelled.
    """
    server = paused.local_server(programs, account, on_executed)
    if not server.is_running:
        raise TargetUnfit(
            f"finish restore: the server on {paused.target} does not run any more",
            hint=f"Run `datamanager restore drop {paused.target}`, and restore again.",
        )
    with _session(server.address, paused.databases, stop) as session, cancelled_by(stop, session):
        if _in_recovery(session):
            try:
                session.execute(_PROMOTE)
            except psycopg.Error as error:
                stop.check()
                raise ServerError(f"promote server: {_last_words(server) or error}") from error
    server.stop("fast", limit_seconds=_STOP_SECONDS)
    place = paused.workplace
    recovered = place.complete(paused.timeline, Lsn.parse(paused.reached))
    _remove_folder(place)
    return recovered


def drop_paused(paused: Paused, programs: Programs, account: Account, on_executed: Callable[[str], None]) -> None:
    """End the server and delete the directory, its tablespaces and what served the recovery. Raises: TargetUnfit."""
    place = paused.workplace
    paused.local_server(programs, account, on_executed).stop("immediate", limit_seconds=10)
    for root in (*place.links, place.target):
        if (root / UNFINISHED_MARK).exists():
            _delete(root)
    _remove_folder(place)


def _remove_folder(place: Workplace) -> None:
    with contextlib.suppress(OSError):
        empty_spool(place.folder)
    place.remove_side(log=True)


def _delete(root: Path) -> None:
    """Everything in it and, unless something is mounted there, the directory; its mark goes last."""
    try:
        for one in root.iterdir():
            if one.name in (UNFINISHED_MARK, "lost+found"):
                continue
            if one.is_dir() and not one.is_symlink():
                shutil.rmtree(one)
            else:
                one.unlink()
        (root / UNFINISHED_MARK).unlink()
    except OSError as error:
        raise TargetUnfit(
            f"drop restore: {error.filename or root}: {(error.strerror or 'cannot be deleted').lower()}",
            hint="Run the command as the account that made the restore.",
        ) from error
    with contextlib.suppress(OSError):
        root.rmdir()


@contextlib.contextmanager
def _session(address: ServerAddress, databases: tuple[str, ...], stop: StopToken) -> Iterator[Connection]:
    """To the first database that admits one. Raises: ServerError, Cancelled."""
    quiet = ServerAddress(make_conninfo(address.conninfo, options="-c statement_timeout=0 -c search_path=pg_catalog"))
    refusals: list[DataManagerError] = []
    for name in databases:
        try:
            session = connect(quiet, stop=stop, database=name, application_name="datamanager restore")
        except (NotFound, ServerError) as error:
            refusals.append(error)
            continue
        try:
            yield session
        finally:
            session.close()
        return
    raise refusals[0]


def _in_recovery(session: Connection) -> bool:
    return bool(session.execute("SELECT pg_is_in_recovery()").fetchall()[0][0])


def _last_words(server: LocalServer) -> str:
    try:
        with server.log_file.open("rb") as file:
            file.seek(max(0, server.log_file.stat().st_size - _LOG_TAIL_BYTES))
            return relevant_lines(file.read().decode("utf-8", "replace"))
    except OSError:
        return ""
