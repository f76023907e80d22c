"""Running psql and pg_restore against a server: the password in a file of their own, never in what others can see."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from psycopg.conninfo import make_conninfo

from datamanager.base.errors import ConfigurationError, ProgramMissing
from datamanager.base.pipeline import StopToken
from datamanager.postgres.connection import KEEPALIVES, ServerAddress
from datamanager.postgres.programs import Programs, end_process

_LOOK_SECONDS = 0.1
# What a program said first names the cause; of more than that the end is kept.
_SAID_BYTES = 64 * 1024
_SECRET = ("sslpassword", "oauth_client_secret")


@dataclass(frozen=True)
class ClientResult:
    """How a program ended, and the end of what it wrote to standard error."""

    status: int
    said: str


@dataclass(frozen=True)
class Session:
    """How a program reaches the server: a connection string without a secret, and variables."""

    conninfo: str
    variables: Mapping[str, str]


@contextlib.contextmanager
def client_session(address: ServerAddress, database: str) -> Iterator[Session]:
    """Make what a client program needs to connect to one database; the password's file goes at the end.

    Raises: ConfigurationError, for a secret that only an argument could carry.
    """
    parameters = {**KEEPALIVES, **address.parameters(), "dbname": database}
    password = parameters.pop("password", None)
    if address.password is not None:
        password = address.password.reveal().decode("utf-8", "surrogateescape")
    if any(parameters.get(name) for name in _SECRET):
        raise ConfigurationError(
            "run PostgreSQL's programs: the connection string holds a secret that they take only as an argument",
            hint="Use a service file or a key without a passphrase.",
        )
    with tempfile.TemporaryDirectory(prefix="datamanager-") as folder:
        variables: dict[str, str] = {}
        if password:
            file = Path(folder) / "pgpass"
            escaped = password.replace("\\", "\\\\").replace(":", "\\:")
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", errors="surrogateescape") as out:
                out.write(f"*:*:*:*:{escaped}\n")
            variables["PGPASSFILE"] = str(file)
        yield Session(make_conninfo("", **parameters), variables)


def run_client(
    programs: Programs,
    name: str,
    arguments: list[str],
    session: Session,
    *,
    stop: StopToken,
    on_executed: Callable[[str], None],
    feed: Iterable[bytes] | None = None,
    read: Callable[[int], None] | None = None,
) -> ClientResult:
    """Run a program to its end as this account, in English.

    Args:
        feed: what it gets on standard input. When making it fails, the program is ended before it could take the
            end of its input for the end of the script.
        read: told from time to time how many bytes the program has read, where the system tells.

    Raises: Cancelled, and what ``feed`` raises, after the program was ended; ProgramMissing. Any status is returned.
    """
    command = [str(programs.path(name)), *arguments]
    on_executed(shlex.join([name, *arguments]))
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                command,
                env=_environment(session.variables),
                stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                encoding="utf-8",
                start_new_session=sys.platform != "win32",
            )
        except OSError as error:
            raise ProgramMissing(f"run program {name}: {error.strerror or error}") from error
        feeder = None if feed is None else _Feeder(process, feed)
        try:
            _wait(process, feeder, stop, read)
        finally:
            end_process(process)
            if feeder is not None:
                feeder.end()
        size = said.seek(0, os.SEEK_END)
        said.seek(max(0, size - _SAID_BYTES))
        return ClientResult(process.returncode, said.read().decode("utf-8", "replace"))


def _wait(
    process: subprocess.Popen[str], feeder: _Feeder | None, stop: StopToken, read: Callable[[int], None] | None
) -> None:
    while process.poll() is None:
        if feeder is not None and feeder.failed is not None:
            raise feeder.failed
        if read is not None and (done := _bytes_read(process.pid)):
            read(done)
        if stop.wait(_LOOK_SECONDS):
            stop.check()
    if feeder is not None and feeder.failed is not None:
        raise feeder.failed


def _bytes_read(pid: int) -> int:
    with contextlib.suppress(psutil.Error, OSError, AttributeError):
        counters = psutil.Process(pid).io_counters()
        return int(getattr(counters, "read_chars", counters.read_bytes))
    return 0


class _Feeder:
    """Writes to a program's standard input in a thread; closes it only after the last piece."""

    def __init__(self, process: subprocess.Popen[str], feed: Iterable[bytes]) -> None:
        self.failed: BaseException | None = None
        self._process = process
        self._feed = feed
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """After the program has ended."""
        self._thread.join()

    def _run(self) -> None:
        pipe = self._process.stdin
        if not isinstance(pipe, io.TextIOWrapper):
            return
        try:
            for piece in self._feed:
                pipe.buffer.write(piece)
            pipe.close()
        except (BrokenPipeError, ValueError):
            pass  # it ended first, and says why
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self.failed = error
            self._process.wait()  # a closed pipe would look like the end of the script
        finally:
            with contextlib.suppress(OSError, ValueError):
                pipe.close()


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Ours, with libpq's own, on which the connection string may rely; messages in English."""
    dropped = ("PGDATABASE", "PGAPPNAME", "PGPASSWORD" if "PGPASSFILE" in variables else "", "LANGUAGE", "PSQLRC")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"LC_ALL": "C", "PGAPPNAME": "datamanager"} | dict(variables)
