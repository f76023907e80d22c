"""The rows of design.md, section 8, about full backups, restores, memory and start: who takes part, and the bars."""

from __future__ import annotations

from benchmarks.contender import Bar, Contender, Measurement
from benchmarks.limits import BaseBackupTar, PythonStart, RawStream, TarRestore, TarZstd
from benchmarks.pgbackrest import PgBackRestFull, PgBackRestRestore
from benchmarks.product import ProductFull, ProductHelp, ProductRepeat, ProductRestore
from benchmarks.setting import RowResult, Setting, Table, Titled, faster, measured
from datamanager.base.units import MIB

_MEMORY_BAR_BYTES = 400 * MIB
_START_BAR_SECONDS = 0.25
_START_RUNS = 10


def full_row(setting: Setting) -> list[RowResult]:
    ours = ProductFull(setting.product, setting.version)
    peer = setting.pgbackrest(PgBackRestFull, encrypted=True)
    limit = TarZstd(setting.workspace, setting.server)
    plain = setting.pgbackrest(PgBackRestFull, encrypted=False)
    row = measured(
        setting,
        "Full backup",
        "Each run into a new repository. Page cache warm.",
        [ours, peer, limit, plain, BaseBackupTar(setting.workspace, setting.server)],
        [
            Bar("full, encrypted, against pgBackRest encrypted", faster(peer, ours), 1.25, True, but=setting.peer),
            Bar("full, encrypted, against the limit", faster(limit, ours), 0.95, True),
        ],
    )
    return [row]


def repeat_row(setting: Setting) -> list[RowResult]:
    ours = ProductRepeat(setting.product, setting.version)
    peer = setting.pgbackrest(PgBackRestFull, encrypted=True)
    raw = RawStream(setting.workspace, setting.server)
    note = "Nothing has changed since the previous backup in the same repository. Page cache warm."
    if setting.server.major >= 17:
        note += " The server could send an increment; `--full` makes us read everything all the same."
    row = measured(
        setting,
        "Full backup again, nothing changed",
        note,
        [ours, peer, raw],
        [
            Bar("full again, against pgBackRest full", faster(peer, ours), 2.5, True, but=setting.peer),
            Bar("full again, against the raw stream", faster(raw, ours), 0.6, True),
        ],
    )
    return [row]


def restore_row(setting: Setting) -> list[RowResult]:
    ours = ProductRestore(setting.product, setting.version)
    peer = setting.pgbackrest(PgBackRestRestore, encrypted=True)
    limit = TarRestore(setting.workspace, setting.server)
    row = measured(
        setting,
        "Restore of a full backup",
        "Each run into a new directory; the repository is in the page cache. 'Stored' is the restored directory.",
        [ours, peer, limit],
        [
            Bar("restore, against pgBackRest", faster(peer, ours), 2.0, True, but=setting.peer),
            Bar("restore, against the limit", faster(limit, ours), 0.9, True),
        ],
    )
    return [row]


def memory_row(setting: Setting) -> list[RowResult]:
    """One run each, sampled every 20 ms: anonymous and shared memory of all processes of the job."""
    full, restore = ProductFull(setting.product, setting.version), ProductRestore(setting.product, setting.version)
    again = ProductRepeat(setting.product, setting.version)
    peers = [
        setting.pgbackrest(PgBackRestFull, encrypted=True),
        setting.pgbackrest(PgBackRestRestore, encrypted=True),
    ]
    contenders = [
        Titled(full, "full backup"),
        Titled(again, "everything read again"),
        Titled(restore, "restore"),
        Titled(peers[0], "full backup"),
        Titled(peers[1], "restore"),
    ]
    bars = [memory_bar(work) for work in contenders[:3]]
    row = measured(setting, "Memory", MEMORY_NOTE, contenders, bars, rounds=1, sample_memory=True, table=Table.MEMORY)
    return [row]


MEMORY_NOTE = (
    "Peak over samples every 20 ms of RssAnon + RssShmem, all processes of the job; the server is not counted. 'Over "
    "time' is the peak of each quarter of the run."
)


def memory_bar(work: Contender) -> Bar:
    name = work.name

    def peak(found: dict[str, Measurement]) -> float:
        return float(found[name].peak.anonymous_bytes)

    return Bar(f"memory, anonymous: {name.partition(': ')[2] or name}", peak, float(_MEMORY_BAR_BYTES), False, "MiB")


def start_row(setting: Setting) -> list[RowResult]:
    ours = ProductHelp(setting.product, setting.version)
    name = ours.name

    def seconds(found: dict[str, Measurement]) -> float:
        return found[name].median

    row = measured(
        setting,
        "Start of a command",
        f"Median of {_START_RUNS} runs, files in the page cache.",
        [ours, PythonStart()],
        [Bar("`datamanager --help`", seconds, _START_BAR_SECONDS, False, "s")],
        rounds=_START_RUNS,
        table=Table.TIME,
    )
    return [row]
