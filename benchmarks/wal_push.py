"""The row about ``archive_command``: a hundred segments of WAL, a process for each.

The segments are the server's own, written by scattered changes (whole pages) and by pgbench (small records), and copied
aside by its archiver. Every contender stores the same files in the same order into a new repository.
"""

from __future__ import annotations

import re
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.churn import Churn
from benchmarks.pgbackrest import OfPgBackRest, PgBackRest, Stanza
from benchmarks.process import ContenderFailed, Finished, run
from benchmarks.product import CLUSTER, OfProduct, Product
from benchmarks.server import BenchmarkServer
from benchmarks.setting import RowResult, Setting, Table, faster, measured, stored_share
from benchmarks.workspace import Workspace, tree_bytes

_SEGMENTS = 100
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_CHANGED_PAGES = 20_000  # 160 MB as whole pages
_TRANSACTIONS = 20_000
_ARCHIVER_SECONDS = 60.0


def push_row(setting: Setting) -> list[RowResult]:
    folder = setting.workspace.path / f"segments-{setting.server.folder.name}"
    try:
        segments = _make_segments(setting.workspace, setting.server, folder)
        ours = ProductPush(setting.product, setting.version, segments)
        peer = setting.pgbackrest(
            lambda tool, encrypted: PgBackRestPush(tool, segments, encrypted=encrypted), encrypted=True
        )
        row = measured(setting, "Push of WAL, per segment", _NOTE, [ours, peer], [], table=Table.TIME)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = {one.name: one for one in row.measurements if one.usable}
    if ours.name in found and peer.name in found:
        share = stored_share(ours, peer)(found)
        setting.say(f"  {row.title}: {faster(peer, ours)(found):.2f} × as fast as {peer.name}, {share:.2f} × its bytes")
    return [row]


_NOTE = (
    f"{_SEGMENTS} segments of 16 MiB, one process after the other as archive_command starts them, into a new"
    " repository; the time is that of all, shared out. Ours opens the repository with its key file. 'Stored' is what"
    " all of them added. Page cache warm."
)


class ProductPush(OfProduct):
    """``wal push`` of each segment."""

    def __init__(self, product: Product, version: str, segments: Sequence[Path]) -> None:
        super().__init__(product, version)
        self._product = product
        self._segments = segments
        self._empty_bytes = 0

    def prepare(self) -> None:
        self._repository, self._place = self._product.new_repository()
        self._empty_bytes = tree_bytes(self._place)

    def run(self, sample_memory: bool) -> Finished:
        self.command = self._product.shown(*self._arguments("SEGMENT"))
        finished, self.remark = _push_all(
            self._segments,
            lambda path: self._product.call(*self._arguments(str(path)), sample_memory=sample_memory),
        )
        return finished

    def _arguments(self, path: str) -> tuple[str, ...]:
        return ("wal", "push", path, "--cluster", CLUSTER, "--repo", self._repository)

    def stored_bytes(self) -> int | None:
        return None if self._place is None else tree_bytes(self._place) - self._empty_bytes

    def clean(self) -> None:
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)


class PgBackRestPush(OfPgBackRest):
    """Synchronous ``archive-push`` of each segment; the server itself archives nowhere meanwhile."""

    def __init__(self, tool: PgBackRest, segments: Sequence[Path], *, encrypted: bool) -> None:
        super().__init__(tool, encrypted=encrypted)
        self._segments = segments
        self.remark = ""

    def prepare(self) -> None:
        self._stanza = Stanza(self._tool, self._folder, self._encrypted)
        self._stanza.call("stanza-create")

    def run(self, sample_memory: bool) -> Finished:
        stanza = self._stanza
        if stanza is None:
            raise ContenderFailed("there is no stanza")
        self.command = self._tool.workspace.shown(stanza.argv("archive-push", "SEGMENT"))
        finished, self.remark = _push_all(
            self._segments, lambda path: stanza.call("archive-push", str(path), sample_memory=sample_memory)
        )
        return finished

    def stored_bytes(self) -> int | None:
        return tree_bytes(self._folder / "repo" / "archive")

    def clean(self) -> None:
        self.remove()

    @property
    def _folder(self) -> Path:
        return self._tool.workspace.path / f"pgbackrest-{self._tool.server.folder.name}-push"


def _push_all(segments: Sequence[Path], push: Callable[[Path], Finished]) -> tuple[Finished, str]:
    """One process for each: the mean of their times in seconds, and what to say of how they spread."""
    runs = [push(path) for path in segments]
    times = sorted(one.seconds for one in runs)
    peak = runs[0].peak
    for one in runs[1:]:
        peak = peak.most(one.peak)
    spread = f"a process {times[0]:.3f} to {times[-1]:.3f} s, median {statistics.median(times):.3f} s"
    return Finished(statistics.mean(times), "", peak), spread


def _make_segments(workspace: Workspace, server: BenchmarkServer, folder: Path) -> list[Path]:
    """Let the server's archiver copy segments aside while its data changes, until there are enough.

    Raises: ContenderFailed, psycopg.Error.
    """
    workspace.account.make_folder(folder)
    server.set_archive_command(f'cp "%p" "{folder}/%f"')
    try:
        churn = Churn(server)
        pgbench = [str(server.programs / "pgbench"), "-h", str(server.folder), "-p", str(server.port), "-U", "postgres"]
        # The archiver works in order: the one before the newest is complete.
        while len(_segments(folder)) <= _SEGMENTS:
            before = len(_segments(folder))
            churn.touch(_CHANGED_PAGES)
            run(
                [*pgbench, "-n", "-c", "4", "-t", str(_TRANSACTIONS // 4), "bench"],
                account=workspace.account,
                env={"PGOPTIONS": "-c synchronous_commit=off"},
                cwd=workspace.path,
            )
            _wait_for_more(folder, before)
    finally:
        server.set_archive_command("/bin/true")
    return _segments(folder)[:_SEGMENTS]


def _wait_for_more(folder: Path, before: int) -> None:
    """Raises: ContenderFailed, when the server's archiver copies nothing."""
    deadline = time.monotonic() + _ARCHIVER_SECONDS
    while len(_segments(folder)) <= before:
        if time.monotonic() > deadline:
            raise ContenderFailed("the server does not archive its WAL")
        time.sleep(0.1)


def _segments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _SEGMENT.fullmatch(path.name))
