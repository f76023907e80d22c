"""The results as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.contender import Bar, Measurement
from benchmarks.setting import RowResult, Table
from datamanager.base.units import MIB, format_size


def render(facts: Sequence[str], rows: Sequence[RowResult]) -> str:
    """The whole page. Ratios are of one run on one machine; they compare, they promise nothing."""
    parts = [
        "# Benchmark results",
        "",
        "Written by `python -m benchmarks`; see README.md for what is measured and how. Do not edit.",
        "",
        *[f"- {fact}" for fact in facts],
    ]
    for row in rows:
        parts += ["", *_row(row)]
    return "\n".join(parts) + "\n"


def _row(row: RowResult) -> Iterable[str]:
    yield f"## {row.title}"
    yield ""
    if row.facts:
        yield f"*{row.facts}*"
        yield ""
    sized = row.table in (Table.SPEED, Table.MEMORY)
    yield f"{row.note} Data directory without WAL: {format_size(row.data_bytes)}." if sized else row.note
    yield ""
    yield from _TABLES[row.table](row)
    if row.bars:
        yield ""
        yield from _bar_table(row)
    commands = [found for found in row.measurements if found.command]
    if commands:
        yield ""
        yield from (f"- {found.name}: `{found.command}`{_remark(found)}" for found in commands)


def bar_lines(row: RowResult) -> list[str]:
    """The verdicts on a row as plain lines."""
    return [
        f"{text}: {figure or 'not measured'} (needed {needed}): {verdict}"
        for text, needed, figure, verdict in _bars(row)
    ]


def merge(page: str, before: str) -> str:
    """``page`` with the sections of ``before`` that it does not have itself; both as made by ``render``."""
    head, *new = page.split("\n## ")
    _, *old = before.split("\n## ")
    wanted = {_heading(section): section.rstrip("\n") for section in new}
    kept = [wanted.pop(_heading(section), section.rstrip("\n")) for section in old]
    return "\n\n## ".join([head.rstrip("\n"), *kept, *wanted.values()]) + "\n"


def _heading(section: str) -> str:
    return section.partition("\n")[0].strip()


def _time_table(row: RowResult) -> Iterable[str]:
    first = "DataManager" if row.ours.startswith("DataManager") else "the first"
    yield f"| contender | median | range | MB/s | stored | times {first}'s time |"
    yield "|---|---|---|---|---|---|"
    ours = next((found for found in row.measurements if found.name == row.ours and not found.failure), None)
    for found in row.measurements:
        if found.failure or not found.seconds:
            yield f"| {_cell(found.name)} | failed: {_cell(found.failure)} | | | | |"
            continue
        speed = f"{row.data_bytes / 1e6 / found.median:.0f}" if row.table is Table.SPEED else ""
        stored = "" if found.stored_bytes is None else format_size(found.stored_bytes)
        ratio = f"{found.median / ours.median:.2f}" if ours is not None else ""
        spread = f"{_seconds(min(found.seconds))} to {_seconds(max(found.seconds))} ({len(found.seconds)})"
        yield f"| {_cell(found.name)} | {_seconds(found.median)} | {spread} | {speed} | {stored} | {ratio} |"


def _memory_table(row: RowResult) -> Iterable[str]:
    yield "| contender | anonymous and shared | over time | mapped pages beside it | processes |"
    yield "|---|---|---|---|---|"
    for found in row.measurements:
        if found.failure:
            yield f"| {_cell(found.name)} | failed: {_cell(found.failure)} | | | |"
        else:
            peak = found.peak
            sizes = f"{format_size(peak.anonymous_bytes)} | {_quarters(found)} | {format_size(peak.mapped_bytes)}"
            yield f"| {_cell(found.name)} | {sizes} | {peak.processes} |"


def _size_table(row: RowResult) -> Iterable[str]:
    yield "| what | bytes | |"
    yield "|---|---|---|"
    for found in row.measurements:
        size = "" if found.stored_bytes is None else format_size(found.stored_bytes)
        yield f"| {_cell(found.name)} | {size} | {_cell(found.failure or found.remark)} |"


_TABLES = {
    Table.SPEED: _time_table,
    Table.TIME: _time_table,
    Table.MEMORY: _memory_table,
    Table.SIZE: _size_table,
}


def _quarters(found: Measurement) -> str:
    """The highest of the samples of each quarter of a run, in MiB."""
    samples = found.anonymous_over_time
    parts = [samples[len(samples) * at // 4 : len(samples) * (at + 1) // 4] for at in range(4)]
    return ", ".join(f"{max(part) / MIB:.0f}" for part in parts if part) + " MiB" if samples else ""


def _bar_table(row: RowResult) -> Iterable[str]:
    yield "| bar | needed | measured | verdict |"
    yield "|---|---|---|---|"
    for text, needed, figure, verdict in _bars(row):
        yield f"| {text} | {needed} | {figure} | {verdict} |"


def _bars(row: RowResult) -> Iterator[tuple[str, str, str, str]]:
    """Text, what is needed, what was measured (empty where it was not), verdict."""
    found = {entry.name: entry for entry in row.measurements if entry.usable}
    for bar in row.bars:
        needed = f"{'≥' if bar.at_least else '≤'} {_amount(bar, bar.needed)}"
        try:
            figure = bar.figure(found)
        except KeyError:
            yield bar.text, needed, "", "not measured: a contender failed"
            continue
        yield bar.text, needed, _amount(bar, figure), _verdict(bar, figure)


def _verdict(bar: Bar, figure: float) -> str:
    held = figure >= bar.needed if bar.at_least else figure <= bar.needed
    verdict = "held" if held else "missed"
    return f"{verdict}, but {bar.but}" if bar.but else verdict


def _remark(found: Measurement) -> str:
    return f"; {_cell(found.remark)}" if found.remark else ""


def _amount(bar: Bar, value: float) -> str:
    if bar.unit == "MiB":
        return f"{value / MIB:.0f} MiB"
    return f"{value:.2f} {bar.unit}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value:.3f} s"


def _cell(text: str) -> str:
    """One line that does not break a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
