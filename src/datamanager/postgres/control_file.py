"""What a data directory says about itself: PG_VERSION, and pg_control as pg_controldata of the same major reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datamanager.base.errors import IntegrityError, NotFound, ServerMismatch
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.postgres.account import Account
from datamanager.postgres.programs import Programs, run_program

# The states of DBState in pg_control.h, as pg_controldata words them in English.
CLEAN_STATES = ("shut down", "shut down in recovery")


@dataclass(frozen=True)
class ControlFile:
    """``global/pg_control``. Sizes are bytes; ``checksum_version`` 0 means that pages have none.

    ``minimum_recovery_end`` is 0 when the cluster is consistent already. The ``max_*`` values are those that a standby
    of this cluster must at least have.
    """

    system_identifier: int
    catalog_version: int
    state: str
    checkpoint: Lsn
    redo: Lsn
    timeline: int
    previous_timeline: int
    minimum_recovery_end: Lsn
    minimum_recovery_timeline: int
    backup_start: Lsn
    backup_end_required: bool
    block_size: int
    segment_size: int
    wal_block_size: int
    wal_segment_size: int
    checksum_version: int
    wal_level: str
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int

    @property
    def is_clean(self) -> bool:
        """Whether the server was stopped properly."""
        return self.state in CLEAN_STATES


def read_major(data_directory: Path) -> int:
    """The major that PG_VERSION names.

    Raises: NotFound (no data directory), ServerMismatch (before 10, or unreadable).
    """
    try:
        text = (data_directory / "PG_VERSION").read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        hint = "Give the folder that holds PG_VERSION, base and global."
        raise NotFound(f"read data directory: {data_directory} has no PG_VERSION", hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ServerMismatch(f"read data directory: PG_VERSION of {data_directory} cannot be read ({error})") from error
    if not text.isdigit() or int(text) < 10:
        hint = "PostgreSQL 14 to 18 are supported; upgrade the cluster first."
        raise ServerMismatch(f"read data directory: {data_directory} is of PostgreSQL {text[:20]!r}", hint=hint)
    return int(text)


def read_control_file(
    data_directory: Path, programs: Programs, *, account: Account, stop: StopToken, on_executed: Callable[[str], None]
) -> ControlFile:
    """Read the control file of a stopped or a running cluster.

    Raises: NotFound; ServerMismatch (programs of another major); IntegrityError (missing, damaged); Cancelled.
    """
    major = read_major(data_directory)
    if major != programs.major:
        hint = f"Use the programs of PostgreSQL {major}."
        raise ServerMismatch(
            f"read control file: {data_directory} is of PostgreSQL {major}, the programs of {programs.version}",
            hint=hint,
        )
    done = run_program(
        programs, "pg_controldata", ["-D", data_directory], account=account, stop=stop, on_executed=on_executed
    )
    complaint = " ".join((done.errors or done.output).split())[:300]
    # A wrong CRC is only a warning to pg_controldata, with status 0, on either output.
    if done.status != 0 or "WARNING" in done.output or "warning:" in done.errors:
        raise IntegrityError(f"read control file: {complaint}", hint="Restore the cluster from a backup.")
    try:
        return parse_control_data(done.output)
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"read control file: pg_controldata says nothing usable on {error}") from error


def parse_control_data(text: str) -> ControlFile:
    """Read pg_controldata's English output, of 14 to 18. Raises: KeyError, ValueError."""
    values = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            values[name.strip()] = value.strip()
    block_size = int(values["Database block size"])
    return ControlFile(
        system_identifier=int(values["Database system identifier"]),
        catalog_version=int(values["Catalog version number"]),
        state=values["Database cluster state"],
        checkpoint=Lsn.parse(values["Latest checkpoint location"]),
        redo=Lsn.parse(values["Latest checkpoint's REDO location"]),
        timeline=int(values["Latest checkpoint's TimeLineID"]),
        previous_timeline=int(values["Latest checkpoint's PrevTimeLineID"]),
        minimum_recovery_end=Lsn.parse(values["Minimum recovery ending location"]),
        minimum_recovery_timeline=int(values["Min recovery ending loc's timeline"]),
        backup_start=Lsn.parse(values["Backup start location"]),
        backup_end_required=values["End-of-backup record required"] == "yes",
        block_size=block_size,
        segment_size=int(values["Blocks per segment of large relation"]) * block_size,
        wal_block_size=int(values["WAL block size"]),
        wal_segment_size=int(values["Bytes per WAL segment"]),
        checksum_version=int(values["Data page checksum version"]),
        wal_level=values["wal_level setting"],
        max_connections=int(values["max_connections setting"]),
        max_worker_processes=int(values["max_worker_processes setting"]),
        max_wal_senders=int(values["max_wal_senders setting"]),
        max_prepared_transactions=int(values["max_prepared_xacts setting"]),
        max_locks_per_transaction=int(values["max_locks_per_xact setting"]),
    )
