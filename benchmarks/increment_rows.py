"""The rows about what only changed: scattered changes, nothing changed, 1 % compared by place, many files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.churn import Churn
from benchmarks.contender import Bar, Contender, Measurement
from benchmarks.incremental import PgBackRestIncrement, ProductIncrement
from benchmarks.limits import RawStream
from benchmarks.pgbackrest import PgBackRestFull
from benchmarks.product import ProductFull, ProductRepeat
from benchmarks.raw_increment import RawIncrement
from benchmarks.rows import MEMORY_NOTE, memory_bar
from benchmarks.setting import (
    RowResult,
    Setting,
    Table,
    Titled,
    above,
    both,
    faster,
    make_base,
    measured,
    remove,
    stored_share,
)

SCATTERED_PAGES = 7000
# Two runs of the same work differ by so much on a quiet machine; "equal at every size" cannot mean less.
_EQUAL_SECONDS = 0.15
_ABOVE_SERVER_SECONDS = 0.6
_IDLE_SECONDS = 0.5
_BAR_MICROSECONDS_PER_FILE = 10.0
_LARGE_BYTES, _MEANT_BYTES = 15_000_000_000, 5_000_000_000
ABOVE_FIGURE = "increment, seconds above the server's own"


def increment_row(setting: Setting) -> list[RowResult]:
    """Scattered changes, then nothing changed, by the same contenders in the same chain of backups; then memory."""
    churn = Churn(setting.server)
    native = setting.server.major >= 17
    ours = ProductIncrement(setting.product, setting.version)
    peer = setting.pgbackrest(PgBackRestIncrement, encrypted=True)
    raw: Contender = RawIncrement(setting.workspace, setting.server)
    if not native:
        raw = RawStream(setting.workspace, setting.server)
    contenders = [ours, peer, raw]
    touched: list[int] = []

    def change(turn: int) -> None:
        touched.append(churn.touch(SCATTERED_PAGES))

    try:
        _make_bases(setting, contenders)
        changed = measured(
            setting, "Increment after scattered changes", "", contenders, [], before_round=change, keep=True
        )
        idle = measured(setting, "Increment, nothing changed", "", contenders, [], keep=True)
        rows = [changed, idle, _memory(setting, churn, ours)]
    finally:
        for contender in contenders:
            remove(contender)
    changed.note = (
        f"One row on each of {touched[-1]:,} pages updated before each round ({churn.stayed():.0%} of the new versions "
        "stayed on their page), then a checkpoint. 'Stored' is what the run added: to our whole repository, with its "
        "WAL; to pgBackRest's backups, without; for the limit the changed pages, zstd 1 in chunks of 256 KiB."
    )
    idle.note = "As above, without changes between the backups."
    _set_bars(setting, changed, idle, ours, peer, raw)
    return rows


def _set_bars(
    setting: Setting, changed: RowResult, idle: RowResult, ours: Contender, peer: Contender, raw: Contender
) -> None:
    """The bars of native increments; of a server that sends none, that of the bytes alone."""
    small = setting.smaller_than(_MEANT_BYTES)
    share = Bar("bytes stored, against pgBackRest incremental", stored_share(ours, peer), 0.3, False, but=setting.peer)
    if setting.server.major < 17:
        changed.bars = [share]
        return
    wanted = 8.0 if setting.server.data_bytes() > _LARGE_BYTES else 4.0
    changed.bars = [
        Bar(
            "increment, against pgBackRest incremental", faster(peer, ours), wanted, True, but=both(setting.peer, small)
        ),
        Bar("our time above the server's own", above(ours, raw), _ABOVE_SERVER_SECONDS, False, "s"),
        Bar("bytes stored, against the changed pages compressed", stored_share(ours, raw), 1.2, False),
        share,
    ]
    name = ours.name

    def seconds(found: dict[str, Measurement]) -> float:
        return found[name].median

    idle.bars = [
        Bar("nothing changed, the whole command", seconds, _IDLE_SECONDS, False, "s", but=small),
        Bar("our time above the server's own", above(ours, raw), _ABOVE_SERVER_SECONDS, False, "s"),
    ]
    found = {one.name: one for one in changed.measurements if one.usable}
    if ours.name in found and raw.name in found:
        changed.figures[ABOVE_FIGURE] = above(ours, raw)(found)


def _memory(setting: Setting, churn: Churn, ours: ProductIncrement) -> RowResult:
    work = Titled(ours, "increment, 1 % of the pages changed")
    return measured(
        setting,
        "Memory of an increment",
        MEMORY_NOTE,
        [work],
        [memory_bar(work)],
        rounds=1,
        sample_memory=True,
        before_round=lambda turn: _ignore(churn.touch_share(0.01)),
        keep=True,
        table=Table.MEMORY,
    )


def sizes_row(rows: Sequence[RowResult]) -> RowResult | None:
    """Whether increments of equal changes cost the same at all sizes measured; None for fewer than two sizes."""
    by_size = {row.data_bytes: row.figures[ABOVE_FIGURE] for row in rows if ABOVE_FIGURE in row.figures}
    if len(by_size) < 2:
        return None
    found = [Measurement(f"{size / 1e9:.1f} GB", seconds=[seconds]) for size, seconds in sorted(by_size.items())]

    def spread(names: dict[str, Measurement]) -> float:
        values = [one.median for one in names.values()]
        return max(values) - min(values)

    bar = Bar("equal at every size: most less least", spread, _EQUAL_SECONDS, False, "s")
    note = "Our time above the server's own, equal changes, medians of the rows above. Two runs differ by 0.1 s anyway."
    return RowResult("Increments at different sizes", note, found, [bar], 0, ours=found[0].name, table=Table.TIME)


def churned_row(setting: Setting) -> list[RowResult]:
    """Everything read and compared by place, after 1 % scattered churn; there is no bar, the peer's time tells."""
    churn = Churn(setting.server, seed=2)
    ours = ProductIncrement(setting.product, setting.version, everything=True)
    peer = setting.pgbackrest(PgBackRestIncrement, encrypted=True)
    contenders: list[Contender] = [ours, peer, RawStream(setting.workspace, setting.server)]

    def change(turn: int) -> None:
        if turn == 0:
            _make_bases(setting, contenders)
        churn.touch_share(0.01)

    row = measured(
        setting,
        "Everything read again after 1 % scattered churn",
        "A row changed on 1 % of all pages before each round; compared with the previous backup by place. 'Stored' is "
        "what the run added.",
        contenders,
        [],
        before_round=change,
    )
    return [row]


def files_row(setting: Setting) -> list[RowResult]:
    """Many small files: what a file costs us above what it costs the server.

    On 17 and newer increments are measured before the files are made and after: the difference, over the files.
    """
    server, rows = setting.server, []
    server.settle()
    few_files, few = server.data_files(), _idle_increments(setting, "few files")
    if few is not None:
        rows.append(few)
    server.fill_with_files(setting.files)
    many_files, many = server.data_files(), _idle_increments(setting, "many files")
    if few is not None and many is not None:
        many.bars = [_per_file_bar(few, many, many_files - few_files)]
        many.note = f"{many_files:,} relation files; the figure is what they add to the time of {few_files:,}."
        rows.append(many)
    ours, again = ProductFull(setting.product, setting.version), ProductRepeat(setting.product, setting.version)
    peer = setting.pgbackrest(PgBackRestFull, encrypted=True)
    contenders: list[Contender] = [ours, again, peer, RawStream(setting.workspace, server)]
    rows.append(measured(setting, "Many files", f"{many_files:,} relation files, almost no data.", contenders, []))
    return rows


def _idle_increments(setting: Setting, which: str) -> RowResult | None:
    if setting.server.major < 17:
        return None
    ours = ProductIncrement(setting.product, setting.version)
    contenders: list[Contender] = [ours, RawIncrement(setting.workspace, setting.server, weigh=False)]
    _make_bases(setting, contenders)
    note = f"{setting.server.data_files():,} relation files."
    return measured(setting, f"Increment of nothing changed, {which}", note, contenders, [], table=Table.TIME)


def _per_file_bar(few: RowResult, many: RowResult, files: int) -> Bar:
    def microseconds(found: dict[str, Measurement]) -> float:
        small = {one.name: one for one in few.measurements if one.usable}
        ours, raw = (one.name for one in many.measurements)
        added = found[ours].median - small[ours].median
        return (added - (found[raw].median - small[raw].median)) * 1e6 / files

    return Bar("ours above the server's, a file", microseconds, _BAR_MICROSECONDS_PER_FILE, False, "µs")


def _make_bases(setting: Setting, contenders: Sequence[Contender]) -> None:
    """Every contender's first backup, of the same data."""
    for contender in contenders:
        setting.say(f"    first backup of {contender.name}")
        make_base(contender)


def _ignore(value: object) -> None:
    return


RowFunction = Callable[[Setting], list[RowResult]]
