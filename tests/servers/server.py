"""A real PostgreSQL server in a temporary folder, started and stopped by a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.servers.account import can_enter, hand_over, make_folder, process_options, remove_folder
from tests.servers.binaries import binaries, major_of
from tests.servers.leftovers import sign
from tests.servers.load import LONGEST_SECONDS, Load
from tests.servers.processes import ProgramFailed, environment, free_port, is_alive, run_program

# Small and fast. fsync off is for servers that live as long as a test; one that must survive a power cut turns it on.
DEFAULT_CONFIG: Mapping[str, str] = {
    "fsync": "off",
    "shared_buffers": "32MB",
    "max_connections": "40",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "wal_level": "replica",
    "log_min_messages": "warning",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

START_SECONDS = 60


class Server:
    """One server: its data directory, its programs, its port. Made by ``create`` and ``adopt``; ended by ``destroy``.

    Not thread-safe, except ``sql`` and ``connect``. ``dsn`` goes through the Unix socket (loopback on Windows), where
    every role is trusted until ``hba_first`` says otherwise; ``tcp_dsn`` through 127.0.0.1.
    """

    superuser = "postgres"

    def __init__(
        self, version: int | str, data_directory: Path, folder: Path, *, start_config: Mapping[str, str] | None = None
    ) -> None:
        """Describe a server; nothing is started. ``folder`` is its own: socket, log, tablespaces."""
        self.version = str(version)
        self.major = major_of(version)
        self.bin = binaries(version)
        self.data_directory = data_directory
        self.folder = folder
        self.port = free_port()
        self.start_config = dict(start_config or {})
        self.log_file = folder / "server.log"
        sign(folder)

    # -- connections ---------------------------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """The folder of the Unix socket; on Windows the address."""
        return "127.0.0.1" if sys.platform == "win32" else str(self.folder)

    def make_dsn(self, *, database: str = "postgres", user: str = "", host: str = "", password: str = "") -> str:
        """Return a connection string; empty values mean the superuser, the socket, no password."""
        words = {"host": host or self.host, "port": str(self.port), "user": user or self.superuser, "dbname": database}
        if password:
            words["password"] = password
        return psycopg.conninfo.make_conninfo("", **words)

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that lead libpq's programs to this server as its superuser."""
        return {"PGHOST": self.host, "PGPORT": str(self.port), "PGUSER": self.superuser, "PGDATABASE": "postgres"}

    @property
    def dsn(self) -> str:
        """The superuser's connection string through the socket."""
        return self.make_dsn()

    @property
    def tcp_dsn(self) -> str:
        """The superuser's connection string through 127.0.0.1."""
        return self.make_dsn(host="127.0.0.1")

    def connect(
        self, *, database: str = "postgres", user: str = "", autocommit: bool = True
    ) -> psycopg.Connection[Any]:
        """Open a connection; the caller closes it."""
        return psycopg.connect(self.make_dsn(database=database, user=user), autocommit=autocommit)

    def sql(self, query: str, *parameters: object, database: str = "postgres", user: str = "") -> list[tuple[Any, ...]]:
        """Run one statement in its own transaction and return its rows; no rows when it returns none."""
        with self.connect(database=database, user=user) as connection:
            cursor = connection.execute(query, parameters or None)
            return cursor.fetchall() if cursor.description is not None else []

    def value(self, query: str, *parameters: object, database: str = "postgres", user: str = "") -> Any:
        """Run one statement and return the first column of its first row."""
        return self.sql(query, *parameters, database=database, user=user)[0][0]

    def slots_left(self, seconds: float = 10) -> list[str]:
        """Replication slots; a temporary one goes a moment after its session, so that is waited for."""
        deadline = time.monotonic() + seconds
        while (found := self.sql("select slot_name::text from pg_replication_slots")) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [name for (name,) in found]

    def script(self, text: str, *, database: str = "postgres") -> str:
        """Run a psql script (several statements, ``\\copy``) that stops at its first error, and return its output.

        Raises: ProgramFailed.
        """
        words = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"]
        return self.run("psql", *words, input=text).stdout

    def run(
        self, program: str, *arguments: str | Path, input: str | None = None, timeout: float = 300, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of this version, connected to this server by its environment, under the servers' account.

        Raises: ProgramFailed when it ends with an error and ``check`` is set.
        """
        command = [self.bin / program, *arguments]
        return run_program(command, variables=self.variables, input=input, timeout=timeout, check=check)

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def postmaster_pid(self) -> int | None:
        """The process id of the running server, or None."""
        try:
            pid = int((self.data_directory / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None
        return pid if pid > 0 and is_alive(pid) else None

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        return self.postmaster_pid is not None

    @property
    def log(self) -> str:
        """What the server has written to its log since it was made."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def start(self, *, timeout: float = START_SECONDS, wait: bool = True) -> Server:
        """Start the server and, unless ``wait`` is off, wait until it takes connections.

        Raises: ProgramFailed, with the end of the server's log, when it does not come up in ``timeout`` seconds.
        """
        self._wait_for_reaping()
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "" if sys.platform == "win32" else str(self.folder),
            **self.start_config,
        }
        options = " ".join(f'-c "{name}={value}"' for name, value in settings.items())
        done = self._control(
            "start", "-o", options, "-l", self.log_file, "-t", f"{timeout:.0f}", "-w" if wait else "-W"
        )
        if done.returncode != 0:
            raise ProgramFailed(
                f"start server {self.version} in {self.data_directory}:\n{done.stdout}{self.log[-4000:]}"
            )
        return self

    def stop(self, mode: str = "fast", *, timeout: float = START_SECONDS) -> None:
        """Stop the server in ``mode`` (smart, fast, immediate); one that is not running is no error.

        Raises: ProgramFailed when it is still there after ``timeout`` seconds.
        """
        if not self.running:
            return
        done = self._control("stop", "-m", mode, "-t", f"{timeout:.0f}", "-w")
        if done.returncode != 0 and self.running:
            raise ProgramFailed(
                f"stop server {self.version} in {self.data_directory}:\n{done.stdout}{self.log[-4000:]}"
            )

    def restart(self, mode: str = "fast") -> None:
        """Stop and start."""
        self.stop(mode)
        self.start()

    def reload(self) -> None:
        """Make the server read its configuration files again."""
        self.sql("select pg_reload_conf()")

    def kill9(self) -> None:
        """End every process of the server at once, as a power cut does (what the kernel has cached stays)."""
        pid = self.postmaster_pid
        if pid is None:
            return
        try:
            postmaster = psutil.Process(pid)
            processes = [postmaster, *postmaster.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        deadline = time.monotonic() + 10
        while any(is_alive(process.pid) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.005)

    def destroy(self) -> None:
        """End the server the quick way and remove its folder; safe to call twice."""
        self._quit()
        self.kill9()
        remove_folder(self.folder)

    def _quit(self) -> None:
        """An immediate shutdown: a killed server would leave its shared memory segment to the machine for ever."""
        pid = self.postmaster_pid
        if pid is None or not hasattr(signal, "SIGQUIT"):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGQUIT)
        deadline = time.monotonic() + 5
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.005)

    def _wait_for_reaping(self) -> None:
        """Wait until a killed postmaster is gone for good: while its number exists, PostgreSQL refuses to start."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.data_directory / "postmaster.pid").read_text().split("\n", 1)[0])
            deadline = time.monotonic() + 15
            while psutil.pid_exists(pid) and not is_alive(pid) and time.monotonic() < deadline:
                time.sleep(0.01)

    def _control(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run pg_ctl on this server, its output in a file: the server keeps a pipe open for as long as it lives."""
        output = self.folder / "pg_ctl.out"
        command = [str(self.bin / "pg_ctl"), arguments[0], "-D", str(self.data_directory), *map(str, arguments[1:])]
        with open(output, "w") as file:
            done = subprocess.run(
                command,
                env=environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
                **process_options(),
            )
        return subprocess.CompletedProcess(done.args, done.returncode, output.read_text(errors="replace"), "")

    # -- what tests change ---------------------------------------------------------------------------------------------

    def configure(self, **settings: str) -> None:
        """Append settings to ``postgresql.conf`` and, where the server runs, reload (some need ``restart``)."""
        with open(self.data_directory / "postgresql.conf", "a") as file:
            for name, value in settings.items():
                file.write(f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n")
        if self.running:
            self.reload()

    def hba_first(self, *lines: str) -> None:
        """Put lines, such as "host replication carol 127.0.0.1/32 reject", before all of ``pg_hba.conf`` and reload."""
        path = self.data_directory / "pg_hba.conf"
        path.write_text("\n".join([*lines, path.read_text()]))
        if self.running:
            self.reload()

    def password_only(self, role: str, *, method: str = "scram-sha-256") -> None:
        """Make ``role`` need its password everywhere, for databases and for replication."""
        self.hba_first(
            f'local all,replication "{role}" {method}',
            f'host all,replication "{role}" 127.0.0.1/32 {method}',
            f'host all,replication "{role}" ::1/128 {method}',
        )

    def tablespace(self, name: str) -> Path:
        """Make a folder and a tablespace in it, and return the folder; it goes when the server is destroyed."""
        place = self.folder / f"tablespace-{name}"
        place.mkdir(mode=0o700)
        hand_over(place)
        self.sql(f"create tablespace \"{name}\" location '{place}'")
        return place

    @contextlib.contextmanager
    def load(
        self,
        *,
        clients: int = 2,
        rate: float | None = None,
        database: str = "postgres",
        scale: int = 1,
        script: str | None = None,
        extra: Sequence[str] = (),
    ) -> Iterator[Load]:
        """Keep pgbench writing while the body runs; afterwards the Load tells transactions and failures.

        Args: rate - transactions a second, unlimited when None; scale - of the tables (100,000 rows each), made when
        the database has none; script - own pgbench script in place of the built-in one; extra - more words for pgbench.
        """
        if script is None and self.value("select to_regclass('pgbench_accounts') is null", database=database):
            self.run("pgbench", "-i", "-q", "-s", str(scale), database)
        words = ["-n", "-c", str(clients), "-j", "1", "-T", str(LONGEST_SECONDS), *extra]
        words += ["-R", str(rate)] if rate is not None else []
        folder = make_folder("load")
        try:
            if script is not None:
                (folder / "script.sql").write_text(script)
                words += ["-f", str(folder / "script.sql")]
            load = Load([str(self.bin / "pgbench"), *words, database], environment(**self.variables), folder)
            try:
                yield load
            finally:
                load.stop()
        finally:
            remove_folder(folder)


def create(
    version: int | str = 18,
    *,
    config: Mapping[str, str] | None = None,
    initdb_args: Sequence[str] = ("--data-checksums",),
    start: bool = True,
) -> Server:
    """Make a new server: initdb with page checksums, ``config`` over DEFAULT_CONFIG in postgresql.conf, started.

    The encoding is UTF8, the locale C.
    Args: initdb_args - replaces ``--data-checksums``; ``--no-data-checksums`` is understood for every version though
    only 18 has it.
    Raises: BinariesMissing; ProgramFailed, with nothing left behind.
    """
    folder = make_folder("pg")
    try:
        server = Server(version, folder / "data", folder)
        words = [word for word in initdb_args if word != "--no-data-checksums" or server.major >= 18]
        words += ["-D", str(server.data_directory), "-U", Server.superuser, "-A", "trust", "--no-sync"]
        run_program([server.bin / "initdb", "-E", "UTF8", "--locale=C", *words])
        server.configure(**{**DEFAULT_CONFIG, **(config or {})})
        return server.start() if start else server
    except BaseException:
        remove_folder(folder)
        raise


def adopt(
    data_directory: Path,
    version: int | str,
    *,
    config: Mapping[str, str] | None = None,
    own: bool = True,
    start: bool = True,
) -> Server:
    """Start the server of a restored data directory on a port and socket of its own, whatever its configuration says.

    Args: config - further settings that win over the directory's files; own - give the directory and the tablespaces
    linked from it to the servers' account first (off where a test asserts the owner).
    Raises: BinariesMissing; ProgramFailed. ``destroy`` ends the server and leaves the directory to the test.
    """
    if own:
        hand_over(data_directory)
        for link in (data_directory / "pg_tblspc").glob("*"):
            hand_over(link.resolve())
        data_directory.chmod(0o700)
    if not can_enter(data_directory.parent):
        raise ProgramFailed(
            f"adopt {data_directory}: the servers' account cannot enter its parent; use fixture open_folder"
        )
    folder = make_folder("pg")
    server = Server(version, data_directory, folder, start_config={"fsync": "off", **(config or {})})
    try:
        return server.start() if start else server
    except BaseException:
        server.destroy()
        raise


def copy_data_directory(server: Server, target: Path) -> None:
    """Copy the files of a stopped server, links kept, for tests that need the directory twice."""
    shutil.copytree(server.data_directory, target, symlinks=True)
    hand_over(target)
