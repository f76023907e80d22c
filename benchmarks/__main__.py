"""``python -m benchmarks``: measure the chosen rows side by side and write the table."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pwd
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from benchmarks.increment_rows import sizes_row
from benchmarks.machine import machine_facts, processor
from benchmarks.process import Account, ContenderFailed
from benchmarks.report import bar_lines, merge, render
from benchmarks.server import BenchmarkServer
from benchmarks.setting import RowResult, Setting, Table
from benchmarks.table import ROWS, Data
from benchmarks.workspace import Workspace, warm_cache
from datamanager.base.errors import DataManagerError
from datamanager.base.files import write_durably
from datamanager.base.units import format_size, parse_size

_DEBIAN_PROGRAMS = Path("/usr/lib/postgresql/15/bin")
_SERVER_ACCOUNTS = ("postgres", "nobody")
# Data, a plain tar of it, two compressed copies, a restored copy, and the server's WAL while it is filled.
_SPACE_FACTOR = 6
_INCREMENT_SPACE_FACTOR = 3  # the data and two repositories


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: measured, whether bars are held or not; 1: could not measure."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    try:
        unknown = [name for name in options.rows if name not in ROWS]
        if unknown:
            raise ContenderFailed(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
        with Workspace(options.work, _account()) as workspace:
            factor = _INCREMENT_SPACE_FACTOR if options.rows == ["increment"] else _SPACE_FACTOR
            workspace.need_space(max(options.size) * factor)
            workspace.show_as(Path.cwd(), ".")
            workspace.show_as(Path(sys.prefix), "VENV")
            _measure(options, workspace)
    except (ContenderFailed, DataManagerError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(options: argparse.Namespace, workspace: Workspace) -> None:
    facts = machine_facts(workspace.path)
    before = "" if options.fresh or not options.out.exists() else options.out.read_text()
    results: list[RowResult] = []

    def write() -> None:
        write_durably(options.out, merge(render(facts, results), before).encode())

    wanted = [(data, size) for data in Data for size in _sizes(options, data)]
    for number, (data, size) in enumerate(wanted):
        chosen = [name for name in options.rows if ROWS[name].data is data]
        if not chosen:
            continue
        with _server(options, workspace, data, size, number) as setting:
            for name in chosen:
                warm_cache(setting.server.data)
                for row in ROWS[name].measure(setting):
                    _label(row, setting, options)
                    results.append(row)
                    for line in bar_lines(row):
                        print(f"  {row.title}: {line}", flush=True)
                write()
    sizes = sizes_row(results)
    if sizes is not None:
        results.append(sizes)
        print(*bar_lines(sizes), sep="\n", flush=True)
        write()
    print(f"written: {options.out}")


def _sizes(options: argparse.Namespace, data: Data) -> list[int]:
    """The row about files has one server, whatever the sizes of the others."""
    return options.size[:1] if data is Data.FILES else list(options.size)


def _label(row: RowResult, setting: Setting, options: argparse.Namespace) -> None:
    """Tell rows of several servers and sizes apart, in one page that grows from run to run."""
    row.facts = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {processor()}, {os.cpu_count()} cores; PostgreSQL "
        f"{setting.server.version}; rounds: {options.rounds}"
    )
    size = "" if row.table is Table.TIME and not row.data_bytes else f", {row.data_bytes / 1e9:.1f} GB"
    row.title = f"{row.title} (PostgreSQL {setting.server.major}{size})"


@contextmanager
def _server(options: argparse.Namespace, workspace: Workspace, data: Data, size: int, number: int) -> Iterator[Setting]:
    """A server with the row's data; stopped and removed afterwards."""
    with BenchmarkServer(workspace, options.postgres, f"{data.value}{number}", options.port) as server:
        print(f"filling a PostgreSQL {server.version} server", flush=True)
        if data is not Data.FILES:
            server.fill(size, room=data is Data.CHANGING)
        setting = Setting(
            workspace,
            server,
            options.datamanager,
            _version(),
            options.rounds,
            _say,
            files=options.files,
            days=options.days,
        )
        print(f"filled: {format_size(server.data_bytes())} in {server.data_files()} relation files", flush=True)
        yield setting
    shutil.rmtree(server.folder, ignore_errors=True)
    shutil.rmtree(setting.product.folder, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--size",
        type=lambda text: [parse_size(part) for part in text.split(",")],
        default=[parse_size("1GB")],
        help="size of the data, or several separated by commas (default 1GB)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender, alternating (default 3)")
    parser.add_argument(
        "--rows",
        type=lambda text: [part.strip() for part in text.split(",") if part.strip()],
        default=[name for name, row in ROWS.items() if row.usual],
        help=f"which rows, separated by commas: {', '.join(ROWS)} (default: those that change nothing)",
    )
    parser.add_argument("--files", type=int, default=25_000, help="relation files of the row `files` (default 25000)")
    parser.add_argument("--days", type=int, default=60, help="daily increments of the row `old` (default 60)")
    parser.add_argument("--fresh", action="store_true", help="leave out what --out holds from earlier runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/RESULTS.md"), help="where the table goes")
    parser.add_argument("--postgres", type=Path, default=_default_programs(), help="folder of the server's programs")
    parser.add_argument("--datamanager", default=_default_product(), help="the program to measure")
    parser.add_argument("--work", type=Path, help="parent of the working directory (default: the system's)")
    parser.add_argument("--port", type=int, default=27015, help="number in the name of the server's socket")
    return parser


def _default_programs() -> Path:
    if _DEBIAN_PROGRAMS.is_dir():
        return _DEBIAN_PROGRAMS
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found else _DEBIAN_PROGRAMS


def _default_product() -> str:
    """The program of the environment that runs the harness, else the one on PATH."""
    beside = Path(sys.executable).with_name("datamanager")
    return str(beside) if beside.exists() else shutil.which("datamanager") or "datamanager"


def _account() -> Account:
    """PostgreSQL refuses root, so root hands the server and the peers to an unprivileged account."""
    if os.geteuid() != 0:
        return Account()
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in _SERVER_ACCOUNTS:
        if name in known:
            return Account(name)
    raise ContenderFailed("root needs an account named postgres or nobody to run the server as")


def _version() -> str:
    try:
        return importlib.metadata.version("datamanager-postgresql")
    except importlib.metadata.PackageNotFoundError:
        return "(unknown version)"


def _say(text: str) -> None:
    print(text, flush=True)


def _end(number: int, frame: FrameType | None) -> None:
    """SIGTERM leaves by the same way as Ctrl-C, so that the server and the files go."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
