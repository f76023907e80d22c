"""The rows of design.md, section 8, that this harness measures: who takes part, and what the bars are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.contender import Bar, Contender, Measurement, measure
from benchmarks.limits import BaseBackupTar, PythonStart, RawIncrementalStream, RawStream, TarRestore, TarZstd
from benchmarks.pgbackrest import BAR_VERSION, PgBackRest, PgBackRestFull, PgBackRestRestore
from benchmarks.process import ContenderFailed, Finished
from benchmarks.product import Product, ProductFull, ProductHelp, ProductRepeat, ProductRestore
from benchmarks.server import BenchmarkServer
from benchmarks.workspace import Workspace
from datamanager.base.units import MIB

_MEMORY_BAR_BYTES = 400 * MIB
_START_BAR_SECONDS = 0.25
_START_RUNS = 10
_BAR_MICROSECONDS_PER_FILE = 10.0


@dataclass(slots=True)
class RowResult:
    """A measured row: what the report shows. ``ours`` is the contender that the others are compared with."""

    title: str
    note: str
    measurements: list[Measurement]
    bars: list[Bar]
    data_bytes: int
    ours: str = ""
    memory: bool = False
    speeds: bool = True


@dataclass(slots=True)
class Setting:
    """What every row needs; made once for each server."""

    workspace: Workspace
    server: BenchmarkServer
    program: str
    version: str
    rounds: int
    say: Callable[[str], None]
    file_count: int = 0
    product: Product = field(init=False)
    tool: PgBackRest | None = field(init=False, default=None)
    tool_failure: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.product = Product(self.workspace, self.server, self.program)
        try:
            self.tool = PgBackRest(self.workspace, self.server)
        except ContenderFailed as error:
            self.tool_failure = str(error)

    def pgbackrest(self, kind: type[PgBackRestFull] | type[PgBackRestRestore], *, encrypted: bool) -> Contender:
        if self.tool is None:
            return Absent(f"pgBackRest, {'encrypted' if encrypted else 'not encrypted'}", self.tool_failure)
        return kind(self.tool, encrypted=encrypted)

    @property
    def peer(self) -> str:
        """Whom a ratio was measured against, when it is not the release that the bars mean."""
        if self.tool is None or self.tool.release >= BAR_VERSION:
            return ""
        return f"pgBackRest {self.tool.version}, not the {BAR_VERSION[0]}.{BAR_VERSION[1]} that the bar means"


class Absent:
    """Stands in a row for a contender that cannot take part at all."""

    command = ""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    def prepare(self) -> None:
        raise ContenderFailed(self._reason)

    def run(self, sample_memory: bool) -> Finished:
        raise ContenderFailed(self._reason)

    def stored_bytes(self) -> int | None:
        return None

    def clean(self) -> None:
        return


def full_row(setting: Setting) -> RowResult:
    ours = ProductFull(setting.product, setting.version)
    peer = setting.pgbackrest(PgBackRestFull, encrypted=True)
    limit = TarZstd(setting.workspace, setting.server)
    plain = setting.pgbackrest(PgBackRestFull, encrypted=False)
    return _measured(
        setting,
        "Full backup",
        "Each run into a new repository. Page cache warm.",
        [ours, peer, limit, plain, BaseBackupTar(setting.workspace, setting.server)],
        [
            Bar("full, encrypted, against pgBackRest encrypted", _faster(peer, ours), 1.25, True, against=setting.peer),
            Bar("full, encrypted, against the limit", _faster(limit, ours), 0.95, True),
        ],
    )


def repeat_row(setting: Setting) -> RowResult:
    ours = ProductRepeat(setting.product, setting.version)
    peer = setting.pgbackrest(PgBackRestFull, encrypted=True)
    raw = RawStream(setting.workspace, setting.server)
    bars = [
        Bar("full again, against pgBackRest full", _faster(peer, ours), 2.5, True, against=setting.peer),
        Bar("full again, against the raw stream", _faster(raw, ours), 0.6, True),
    ]
    note = "Nothing has changed since the previous backup in the same repository. Page cache warm."
    if setting.server.major >= 17:
        note += (
            " On this version the server sends an increment, so the bars for a full read (14 to 16) are not held here."
        )
        bars = []
    return _measured(setting, "Full backup again, nothing changed", note, [ours, peer, raw], bars)


def restore_row(setting: Setting) -> RowResult:
    ours = ProductRestore(setting.product, setting.version)
    peer = setting.pgbackrest(PgBackRestRestore, encrypted=True)
    limit = TarRestore(setting.workspace, setting.server)
    return _measured(
        setting,
        "Restore of a full backup",
        "Each run into a new directory; the repository is in the page cache. 'Stored' is the restored directory.",
        [ours, peer, limit],
        [
            Bar("restore, against pgBackRest", _faster(peer, ours), 2.0, True, against=setting.peer),
            Bar("restore, against the limit", _faster(limit, ours), 0.9, True),
        ],
    )


def memory_row(setting: Setting) -> RowResult:
    """One run each, sampled every 20 ms: anonymous and shared memory of all processes of the job."""
    full, restore = ProductFull(setting.product, setting.version), ProductRestore(setting.product, setting.version)
    peers = [
        setting.pgbackrest(PgBackRestFull, encrypted=True),
        setting.pgbackrest(PgBackRestRestore, encrypted=True),
    ]
    contenders = [
        Titled(full, "full backup"),
        Titled(restore, "restore"),
        Titled(peers[0], "full backup"),
        Titled(peers[1], "restore"),
    ]
    bars = [
        Bar(f"memory of a {work.title}, anonymous", _peak(work.name), float(_MEMORY_BAR_BYTES), False, "MiB")
        for work in contenders[:2]
    ]
    note = "Peak over samples every 20 ms of RssAnon + RssShmem, all processes of the job; the server is not counted."
    result = _measured(setting, "Memory", note, contenders, bars, rounds=1, sample_memory=True)
    result.memory = True
    return result


def start_row(setting: Setting) -> RowResult:
    ours = ProductHelp(setting.product, setting.version)
    name = ours.name

    def seconds(found: dict[str, Measurement]) -> float:
        return found[name].median

    result = _measured(
        setting,
        "Start of a command",
        f"Median of {_START_RUNS} runs, files in the page cache.",
        [ours, PythonStart()],
        [Bar("`datamanager --help`", seconds, _START_BAR_SECONDS, False, "s")],
        rounds=_START_RUNS,
    )
    result.speeds = False
    return result


def files_row(setting: Setting) -> RowResult:
    """Many small files: what a file costs us above what it costs the server."""
    ours, again = ProductFull(setting.product, setting.version), ProductRepeat(setting.product, setting.version)
    incremental = setting.server.major >= 17
    raw: Contender = RawStream(setting.workspace, setting.server)
    contenders: list[Contender] = [ours, again, setting.pgbackrest(PgBackRestFull, encrypted=True), raw]
    if incremental:
        raw = RawIncrementalStream(setting.workspace, setting.server)
        contenders.append(raw)
    name, limit, count = again.name, raw.name, setting.file_count

    def microseconds(found: dict[str, Measurement]) -> float:
        return (found[name].median - found[limit].median) * 1e6 / count

    bars = []
    if incremental:
        bars.append(Bar("ours above the server's, a file", microseconds, _BAR_MICROSECONDS_PER_FILE, False, "µs"))
    note = f"{count:,} relation files, almost without data."
    return _measured(setting, "Many files", note, contenders, bars)


ROWS: dict[str, Callable[[Setting], RowResult]] = {
    "full": full_row,
    "repeat": repeat_row,
    "restore": restore_row,
    "memory": memory_row,
    "start": start_row,
    "files": files_row,
}


class Titled:
    """A contender under a longer name, for rows in which it takes part twice."""

    def __init__(self, inner: Contender, title: str) -> None:
        self._inner = inner
        self.title = title
        self.name = f"{inner.name}: {title}"

    @property
    def command(self) -> str:
        return self._inner.command

    def prepare(self) -> None:
        self._inner.prepare()

    def run(self, sample_memory: bool) -> Finished:
        return self._inner.run(sample_memory)

    def stored_bytes(self) -> int | None:
        return self._inner.stored_bytes()

    def clean(self) -> None:
        self._inner.clean()

    def remove(self) -> None:
        _remove(self._inner)


def _measured(
    setting: Setting,
    title: str,
    note: str,
    contenders: Sequence[Contender],
    bars: list[Bar],
    *,
    rounds: int | None = None,
    sample_memory: bool = False,
) -> RowResult:
    setting.say(f"  {title}")
    try:
        measurements = measure(contenders, rounds or setting.rounds, setting.say, sample_memory=sample_memory)
    finally:
        for contender in contenders:
            _remove(contender)
    for found in measurements:
        found.failure = setting.workspace.shown(found.failure)
    return RowResult(title, note, measurements, bars, setting.server.data_bytes(), ours=contenders[0].name)


def _remove(contender: Contender) -> None:
    """Some contenders keep a repository for the whole row."""
    remove = getattr(contender, "remove", None)
    if remove is not None:
        remove()


def _faster(peer: Contender, ours: Contender) -> Callable[[dict[str, Measurement]], float]:
    """How many times as fast ours is: the peer's seconds over ours."""
    peer_name, our_name = peer.name, ours.name
    return lambda found: found[peer_name].median / found[our_name].median


def _peak(name: str) -> Callable[[dict[str, Measurement]], float]:
    return lambda found: float(found[name].peak.anonymous_bytes)
