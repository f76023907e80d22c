"""Making a restored data directory into a clone that keeps to itself: nothing it was told in production holds.

A backup brings postgresql.auto.conf along, which beats every file: leftover recovery targets, a primary to follow, an
archive to write to. Subscriptions in it would connect to their publishers, preloaded libraries would start workers.
So a clone runs with configuration files of our own outside the data directory and with the decisive settings on the
command line, which beats auto.conf; that file is cleaned as well, since a restore may be started without us later.

Source: decisions 1 and 13; PostgreSQL documentation 20.1.2 (precedence), 26.4 (hot standby's minimum settings).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from datamanager.base.errors import TargetUnfit
from datamanager.base.files import sync_directory, write_durably
from datamanager.postgres.account import Account
from datamanager.postgres.control_file import read_major
from datamanager.postgres.programs import Programs

# Libraries that register a WAL resource manager: without them replay of their records is FATAL. Every other preloaded
# library is left out, for it may start workers (pg_cron) or reach other machines.
# Source: PostgreSQL wiki, CustomWALResourceManagers, and the extensions' own documentation.
KEPT_LIBRARIES = (
    "bluefin", "columnar", "hypersphere", "marlin", "orioledb", "pg_columnar", "pg_search", "pg_tde", "pg_textsearch",
    "pgroonga_wal_resource_manager",
)  # fmt: skip
# Lines of postgresql.auto.conf that made the source what it was, and includes, which could bring them back.
_REMOVED = re.compile(
    r"^\s*(recovery_\w+|primary_\w+|restore_command|archive_\w+|synchronous_standby_names|promote_trigger_file"
    r"|sync_replication_slots|synchronized_standby_slots|include|include_if_exists|include_dir)\s*(=|\s)",
    re.IGNORECASE,
)
# Who may enter the socket's folder is trusted. Windows has no such folder, so there every account of the machine is.
_HBA = "host all all 127.0.0.1/32 trust\n" if sys.platform == "win32" else "local all all trust\n"
_SIGNAL_FILES = ("standby.signal", "recovery.signal")
_AUTO_CONF = "postgresql.auto.conf"
# The server's own defaults, below which a standby's settings need not go.
_LOWEST = {
    "max_connections": 100,
    "max_worker_processes": 8,
    "max_wal_senders": 10,
    "max_prepared_transactions": 0,
    "max_locks_per_transaction": 64,
}


class ClusterLimits(Protocol):
    """What is recorded of the source cluster; ServerFacts and ControlFile have these."""

    @property
    def max_connections(self) -> int | None: ...
    @property
    def max_worker_processes(self) -> int | None: ...
    @property
    def max_wal_senders(self) -> int | None: ...
    @property
    def max_prepared_transactions(self) -> int | None: ...
    @property
    def max_locks_per_transaction(self) -> int | None: ...


@dataclass(frozen=True)
class CloneOptions:
    """How to start the clone: ``options`` go on the command line (LocalServer). ``warnings`` say what it lacks."""

    options: Mapping[str, str]
    removed_settings: tuple[str, ...] = ()
    dropped_libraries: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def prepare_clone(
    data_directory: Path,
    side_directory: Path,
    limits: ClusterLimits,
    *,
    port: int,
    socket_directory: Path,
    account: Account,
    programs: Programs,
    shared_preload_libraries: str = "",
    recovery: Mapping[str, str] | None = None,
    hot_standby: bool = False,
    settings: Mapping[str, str] | None = None,
) -> CloneOptions:
    """Neutralize a restored, stopped data directory and say how to start it.

    Args:
        side_directory: takes the generated files and the original of what is rewritten; outside the data directory.
        limits: the source's settings that replay needs at least; an unknown one gets the server's default.
        socket_directory: made with mode 0700, which is what keeps everybody else out: inside, all roles are trusted.
        shared_preload_libraries: the source's; reduced to those whose WAL records need them and that exist here.
        recovery: restore_command and recovery_target_* as planned; given, the clone does archive recovery.
        hot_standby: sessions are wanted during that recovery.
        settings: further ones, such as autovacuum = off; they cannot undo the isolation.

    Raises: TargetUnfit; NotFound, ServerMismatch (no such data directory); OSError. Idempotent.
    """
    strange = sorted(name for name in recovery or {} if not re.fullmatch(r"recovery_\w+|restore_command", name))
    if strange:
        raise ValueError(f"prepare clone: {strange[0]} is not a recovery setting")
    major = read_major(data_directory)
    if side_directory.resolve().is_relative_to(data_directory.resolve()):
        raise TargetUnfit(f"prepare clone: {side_directory} lies within the data directory")
    for folder in (side_directory, socket_directory):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        account.take([folder])
    removed = clean_auto_conf(data_directory, side_directory, account)
    for name in _SIGNAL_FILES:
        (data_directory / name).unlink(missing_ok=True)
    if recovery:
        _write(data_directory / "recovery.signal", "", account)
    sync_directory(data_directory)
    kept, dropped = reduce_libraries(shared_preload_libraries, programs)
    options = {
        **_settings_of_a_copy(major, port, socket_directory),
        **_limits(limits, senders=hot_standby and bool(recovery)),
        **(settings or {}),
        **_isolation(major, kept),
        **_for_in_place_tablespaces(data_directory),
        **_for_large_segments(data_directory),
        **({"hot_standby": "on" if hot_standby else "off"} if recovery else {}),
        **(recovery or {}),
        **_write_files(side_directory, account),
    }
    warnings = tuple(
        f"library {name} is not loaded in the clone: what needs it does not work there" for name in dropped
    )
    if sys.platform == "win32":
        warnings += ("every account of this machine can connect to the clone",)
    return CloneOptions(options, removed, dropped, warnings)


def reduce_libraries(shared_preload_libraries: str, programs: Programs) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split the source's preloaded libraries into those a clone loads and those it does not."""
    names = [name.strip().strip('"') for name in shared_preload_libraries.split(",")]
    kept: list[str] = []
    dropped: list[str] = []
    for name in filter(None, names):
        known = name.removeprefix("$libdir/").removesuffix(".so") in KEPT_LIBRARIES
        (kept if known and programs.has_library(name) else dropped).append(name)
    return tuple(kept), tuple(dropped)


def clean_auto_conf(data_directory: Path, side_directory: Path, account: Account) -> tuple[str, ...]:
    """Take the source's role out of postgresql.auto.conf, durably, and return the names of the settings removed.

    The first original stays in ``side_directory``, mode 0600, for it may hold a password.
    """
    path = data_directory / _AUTO_CONF
    try:
        original = path.read_bytes()
    except FileNotFoundError:
        return ()
    removed: list[str] = []
    kept: list[str] = []
    # Latin-1 maps every byte to one character and back, whatever the file's encoding is.
    for line in original.decode("latin-1").splitlines(keepends=True):
        match = _REMOVED.match(line)
        if match:
            removed.append(match[1].lower())
        else:
            kept.append(line)
    if not removed:
        return ()
    saved = side_directory / f"{_AUTO_CONF}.original"
    if not saved.exists():
        write_durably(saved, original, mode=0o600)
        account.take([saved])
    write_durably(path, "".join(kept).encode("latin-1"), mode=0o600)
    account.take([path])
    return tuple(removed)


def _limits(limits: ClusterLimits, *, senders: bool) -> dict[str, str]:
    """At least the source's; senders only where hot standby insists, as nobody may stream from a clone."""
    found = {name: max(getattr(limits, name) or 0, lowest) for name, lowest in _LOWEST.items()}
    if not senders:
        found["max_wal_senders"] = 0
    return {name: str(value) for name, value in found.items()}


def _settings_of_a_copy(major: int, port: int, socket_directory: Path) -> dict[str, str]:
    """What a copy may be given otherwise by the caller: small, local, silent."""
    folder = str(socket_directory).replace('"', '""')
    options = {
        "port": str(port),
        "unix_socket_directories": f'"{folder}"',
        "shared_buffers": "128MB",
        "huge_pages": "off",
        "jit": "off",
        "log_min_messages": "warning",
        "restart_after_crash": "off",
    }
    if major >= 18:
        # The source may have asked for io_uring, which not every machine and build has.
        options["io_method"] = "worker"
    return options


def _isolation(major: int, libraries: tuple[str, ...]) -> dict[str, str]:
    """What no caller and no file may change: the clone reaches nobody and nobody reaches it."""
    options = {
        "listen_addresses": "",
        "unix_socket_permissions": "0700",
        "archive_mode": "off",
        "archive_command": "",
        "archive_cleanup_command": "",
        "recovery_end_command": "",
        "primary_conninfo": "",
        "primary_slot_name": "",
        "restore_command": "",
        "synchronous_standby_names": "",
        "max_logical_replication_workers": "0",
        "shared_preload_libraries": ",".join(f'"{name}"' for name in libraries),
        "session_preload_libraries": "",
        "local_preload_libraries": "",
        "ssl": "off",
        "external_pid_file": "",
        "cluster_name": "datamanager-clone",
        "logging_collector": "off",
        "log_destination": "stderr",
        "bonjour": "off",
    }
    if major == 14:
        options["stats_temp_directory"] = "pg_stat_tmp"
    if major >= 15:
        options["archive_library"] = ""
    if major >= 17:
        options |= {"summarize_wal": "off", "sync_replication_slots": "off", "event_triggers": "off"}
    return options


def _for_in_place_tablespaces(data_directory: Path) -> dict[str, str]:
    """Recovery panics at a tablespace that is a folder of pg_tblspc unless this is on (15 and later have them)."""
    folder = data_directory / "pg_tblspc"
    inside = folder.is_dir() and any(one.is_dir() and not one.is_symlink() for one in folder.iterdir())
    return {"allow_in_place_tablespaces": "on"} if inside and sys.platform != "win32" else {}


def _for_large_segments(data_directory: Path) -> dict[str, str]:
    """The server insists on room for two segments; its default has it for those of 16 and 32 MiB."""
    segments = (data_directory / "pg_wal").glob("[0-9A-F]" * 24)
    mebibytes = max((one.stat().st_size for one in segments), default=0) >> 20
    if mebibytes <= 32:
        return {}
    return {"min_wal_size": f"{2 * mebibytes}MB", "max_wal_size": f"{max(1024, 4 * mebibytes)}MB"}


def _write_files(side_directory: Path, account: Account) -> dict[str, str]:
    """The configuration files of the clone's own, and the settings that name them."""
    texts = {
        "config_file": ("postgresql.conf", "# A clone made by DataManager: its settings are on the command line.\n"),
        "hba_file": ("pg_hba.conf", _HBA),
        "ident_file": ("pg_ident.conf", "# Nothing is mapped.\n"),
    }
    for name, text in texts.values():
        _write(side_directory / name, text, account)
    return {setting: str(side_directory / name) for setting, (name, _) in texts.items()}


def _write(path: Path, text: str, account: Account) -> None:
    write_durably(path, text.encode(), mode=0o600)
    account.take([path])
