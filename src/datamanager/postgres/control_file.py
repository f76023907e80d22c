"""What a data directory says about itself: PG_VERSION, and pg_control, read as it lies or through pg_controldata.

The file has one layout from 14 to 17 and one more byte in 18; they are read here, where no program of that major is
needed. Source: PostgreSQL src/include/catalog/pg_control.h; src/bin/pg_controldata.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from struct import Struct
from typing import Any

from crc32c import crc32c

from datamanager.base.errors import IntegrityError, NotFound, ServerMismatch
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.postgres.account import Account
from datamanager.postgres.programs import Programs, run_program

# The states of DBState in pg_control.h, as pg_controldata words them in English.
STOPPED = "shut down"  # as a primary; one that was stopped in recovery replays WAL when it starts
CLEAN_STATES = (STOPPED, "shut down in recovery")
_STATES = (
    "starting up", *CLEAN_STATES, "shutting down", "in crash recovery", "in archive recovery", "in production",
)  # fmt: skip
_WAL_LEVELS = ("minimal", "replica", "logical")
# ControlFileData in the machine's own order and alignment, as the server wrote it: identifier, versions, state, time,
# checkpoint; the copy of the checkpoint; recovery; settings; sizes; checksums; (18: signedness), nonce, CRC.
_HEAD = "@QIIiqQ QII?iQIIIIIIIqIII QQIQQ?i?iiiii?Id IIIIIIII?I"
_LAYOUTS = {1300: Struct(_HEAD + " 32s"), 1700: Struct(_HEAD + " 32s"), 1800: Struct(_HEAD + "? 32s")}
_CRC_BYTES = 4
_MOST_BYTES = 8192


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
    control_version: int = 0
    wal_log_hints: bool = False
    track_commit_timestamp: bool = False

    @property
    def is_clean(self) -> bool:
        """Whether the server was stopped properly."""
        return self.state in CLEAN_STATES

    def record(self) -> dict[str, str | int | bool]:
        """Every value ready for JSON, LSNs as PostgreSQL prints them."""
        return {name: str(value) if isinstance(value, Lsn) else value for name, value in asdict(self).items()}


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


def read_control_bytes(data_directory: Path) -> bytes:
    """The content of ``global/pg_control``. Raises: NotFound (there is none); OSError."""
    try:
        with (data_directory / "global" / "pg_control").open("rb") as file:
            return file.read(_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        hint = "Without it no server starts on this directory; restore the cluster from a backup."
        raise NotFound(f"read control file: {data_directory} has no global/pg_control", hint=hint) from None


def parse_control_bytes(data: bytes) -> ControlFile:
    """Read the file's own bytes, those of 14 to 18 on a machine like this one.

    Raises: IntegrityError (damaged), ServerMismatch (a layout that this release does not know).
    """
    version = int.from_bytes(data[8:12], sys.byteorder)
    layout = _LAYOUTS.get(version)
    if layout is None:
        swapped = int.from_bytes(data[8:12], "big" if sys.byteorder == "little" else "little") in _LAYOUTS
        why = "is of a machine with another byte order" if swapped else f"has the layout {version}, which is not known"
        raise ServerMismatch(
            f"read control file: it {why}", hint="PostgreSQL 14 to 18 are read, where the server ran or on its like."
        )
    end = -(-layout.size // _CRC_BYTES) * _CRC_BYTES
    # The CRC also covers the padding before it, which is zeros.
    if len(data) < end + _CRC_BYTES or crc32c(data[:end]) != int.from_bytes(data[end : end + 4], sys.byteorder):
        raise IntegrityError(
            "read control file: global/pg_control is damaged", hint="Restore the cluster from a backup."
        )
    try:
        return _from_values(layout.unpack_from(data))
    except IndexError as error:
        raise IntegrityError(f"read control file: it makes no sense ({error})") from error


def _from_values(values: tuple[Any, ...]) -> ControlFile:
    """Raises: IndexError, for a state or WAL level that there is not."""
    identifier, version, catalog, state, _, checkpoint = values[:6]
    redo, timeline, previous = values[6:9]
    (
        _, minimum, minimum_timeline, backup_start, _, end_required, wal_level, hints,
        connections, workers, senders, prepared, locks, timestamps, _, _,
        block, segment, wal_block, wal_segment, _, _, _, _, _, checksums,
    ) = values[23:49]  # fmt: skip
    return ControlFile(
        system_identifier=identifier,
        catalog_version=catalog,
        state=_STATES[state],
        checkpoint=Lsn(checkpoint),
        redo=Lsn(redo),
        timeline=timeline,
        previous_timeline=previous,
        minimum_recovery_end=Lsn(minimum),
        minimum_recovery_timeline=minimum_timeline,
        backup_start=Lsn(backup_start),
        backup_end_required=end_required,
        block_size=block,
        segment_size=segment * block,
        wal_block_size=wal_block,
        wal_segment_size=wal_segment,
        checksum_version=checksums,
        wal_level=_WAL_LEVELS[wal_level],
        max_connections=connections,
        max_worker_processes=workers,
        max_wal_senders=senders,
        max_prepared_transactions=prepared,
        max_locks_per_transaction=locks,
        control_version=version,
        wal_log_hints=hints,
        track_commit_timestamp=timestamps,
    )


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
        control_version=int(values["pg_control version number"]),
        wal_log_hints=values["wal_log_hints setting"] == "on",
        track_commit_timestamp=values["track_commit_timestamp setting"] == "on",
    )
