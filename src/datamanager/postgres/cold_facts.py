"""The facts of a cluster that no server tells: pg_control, PG_VERSION, its last command line, its configuration.

postmaster.opts stays when a server stops; it names the program, whose minor version is thereby known, and the
configuration file, which on Debian lies elsewhere. Source: PostgreSQL src/backend/postmaster/postmaster.c
(CreateOptsFile).
"""

from __future__ import annotations

import contextlib
import platform
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datamanager.base.errors import ProgramMissing
from datamanager.postgres.account import Account
from datamanager.postgres.control_file import ControlFile
from datamanager.postgres.facts_model import ServerFacts
from datamanager.postgres.programs import find_programs

_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_OPTION = re.compile(r"(?:--)?([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class LastStart:
    """How the server was started last: the folder of its programs, and the settings of its command line."""

    bin_directory: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


def read_last_start(data_directory: Path) -> LastStart:
    """Read postmaster.opts; nothing known where it is missing or unreadable."""
    try:
        words = shlex.split((data_directory / "postmaster.opts").read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError):
        return LastStart()
    settings: dict[str, str] = {}
    for word, before in zip(words[1:], words, strict=False):
        match = _OPTION.fullmatch(word)
        if match is not None and (before == "-c" or word.startswith("--")):
            settings[match[1].replace("-", "_").lower()] = match[2]
        elif before == "-D":
            settings.setdefault("data_directory", word)
    program = Path(words[0]) if words else Path()
    return LastStart(program.parent if program.is_absolute() else None, settings)


def find_config_file(data_directory: Path, last: LastStart, recorded: str | None) -> str | None:
    """Where postgresql.conf lies: as started last, else in the data directory, else as a backup recorded it.

    None where there is none.
    """
    folder = last.settings.get("data_directory")
    candidates = [last.settings.get("config_file"), str(data_directory / "postgresql.conf")]
    candidates += [str(Path(folder) / "postgresql.conf") if folder else None, recorded]
    for one in candidates:
        with contextlib.suppress(OSError):
            if one and Path(one).is_file():
                return one
    return None


def cold_facts(
    data_directory: Path,
    major: int,
    control: ControlFile,
    *,
    last: LastStart,
    install_path: Path | None,
    account: Account,
    config_file: str | None,
    settings: Mapping[str, str],
) -> ServerFacts:
    """Describe a cluster that does not run.

    Args:
        install_path: the programs to ask for the minor version before any others.
        settings: what its configuration files say, as far as they were read.

    Returns: facts without databases, roles and tablespaces; ``warnings`` says so.
    """
    version = _version(major, install_path or last.bin_directory, account)
    known = {**settings, **last.settings}
    return ServerFacts(
        version=version,
        version_number=_number(version, major),
        major=major,
        system_identifier=control.system_identifier,
        version_text=f"PostgreSQL {version}",
        operating_system=platform.system().lower(),
        architecture=_MACHINES.get(platform.machine().lower(), platform.machine().lower()),
        in_recovery=(data_directory / "standby.signal").exists(),
        timeline=control.timeline,
        block_size=control.block_size,
        wal_block_size=control.wal_block_size,
        segment_size=control.segment_size,
        wal_segment_size=control.wal_segment_size,
        data_checksums=bool(control.checksum_version),
        wal_level=control.wal_level,
        archive_mode=known.get("archive_mode", ""),
        shared_preload_libraries=known.get("shared_preload_libraries", ""),
        max_connections=control.max_connections,
        max_worker_processes=control.max_worker_processes,
        max_wal_senders=control.max_wal_senders,
        max_prepared_transactions=control.max_prepared_transactions,
        max_locks_per_transaction=control.max_locks_per_transaction,
        data_directory=str(data_directory),
        config_file=config_file,
        hba_file=known.get("hba_file"),
        ident_file=known.get("ident_file"),
        warnings=("the server did not run, so databases, roles and extensions are not described",),
    )


def _version(major: int, programs_of: Path | None, account: Account) -> str:
    """The version that the cluster's own programs have, else that of any of this major, else the major alone."""
    for place in dict.fromkeys((programs_of, None)):
        with contextlib.suppress(ProgramMissing):
            return find_programs(major, place, account=account).version
    return str(major)


def _number(version: str, major: int) -> int:
    """As server_version_num: 150019; an unknown minor counts as 0."""
    match = re.match(r"\d+\.(\d+)", version)
    return major * 10000 + (int(match[1]) if match else 0)
