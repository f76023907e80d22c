"""The results as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.contender import Bar
from benchmarks.rows import RowResult
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
    yield f"{row.note} Data directory without WAL: {format_size(row.data_bytes)}." if row.speeds else row.note
    yield ""
    yield from _memory_table(row) if row.memory else _time_table(row)
    if row.bars:
        yield ""
        yield from _bar_table(row)
    commands = [found for found in row.measurements if found.command]
    if commands:
        yield ""
        yield from (f"- {found.name}: `{found.command}`" for found in commands)


def _time_table(row: RowResult) -> Iterable[str]:
    yield "| contender | median | range | MB/s | stored | times DataManager's time |"
    yield "|---|---|---|---|---|---|"
    ours = next((found for found in row.measurements if found.name == row.ours and not found.failure), None)
    for found in row.measurements:
        if found.failure or not found.seconds:
            yield f"| {_cell(found.name)} | failed: {_cell(found.failure)} | | | | |"
            continue
        speed = f"{row.data_bytes / 1e6 / found.median:.0f}" if row.speeds else ""
        stored = "" if found.stored_bytes is None else format_size(found.stored_bytes)
        ratio = f"{found.median / ours.median:.2f}" if ours is not None else ""
        spread = f"{_seconds(min(found.seconds))} to {_seconds(max(found.seconds))} ({len(found.seconds)})"
        yield f"| {_cell(found.name)} | {_seconds(found.median)} | {spread} | {speed} | {stored} | {ratio} |"


def _memory_table(row: RowResult) -> Iterable[str]:
    yield "| contender | anonymous and shared | mapped pages beside it | processes |"
    yield "|---|---|---|---|"
    for found in row.measurements:
        if found.failure:
            yield f"| {_cell(found.name)} | failed: {_cell(found.failure)} | | |"
        else:
            peak = found.peak
            sizes = f"{format_size(peak.anonymous_bytes)} | {format_size(peak.mapped_bytes)}"
            yield f"| {_cell(found.name)} | {sizes} | {peak.processes} |"


def _bar_table(row: RowResult) -> Iterable[str]:
    yield "| bar | needed | measured | verdict |"
    yield "|---|---|---|---|"
    found = {entry.name: entry for entry in row.measurements if not entry.failure and entry.seconds}
    for bar in row.bars:
        sign = "≥" if bar.at_least else "≤"
        try:
            figure = bar.figure(found)
        except KeyError:
            yield f"| {bar.text} | {sign} {_amount(bar, bar.needed)} | | not measured: a contender failed |"
            continue
        yield f"| {bar.text} | {sign} {_amount(bar, bar.needed)} | {_amount(bar, figure)} | {_verdict(bar, figure)} |"


def _verdict(bar: Bar, figure: float) -> str:
    held = figure >= bar.needed if bar.at_least else figure <= bar.needed
    verdict = "held" if held else "missed"
    return f"{verdict}, but against {bar.against}" if bar.against else verdict


def _amount(bar: Bar, value: float) -> str:
    if bar.unit == "MiB":
        return f"{value / MIB:.0f} MiB"
    return f"{value:.2f} {bar.unit}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value:.3f} s"


def _cell(text: str) -> str:
    """One line that does not break a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
