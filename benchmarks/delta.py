"""The row about delta restores: a directory that is the backup already, and one of which a little differs.

What differs is made in the files of the stopped copy, the same for every contender: bytes in one of a hundred pages of
every table of some size, a file lost, one that nobody knows. Sizes and times of the changed files stay as they were.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path

from benchmarks.contender import Bar
from benchmarks.pgbackrest import OfPgBackRest, PgBackRest
from benchmarks.process import Finished, run
from benchmarks.product import COMPILED, OfProduct, Product, need_data_directory
from benchmarks.server import PAGE_BYTES
from benchmarks.setting import RowResult, Setting, faster, measured
from benchmarks.workspace import Workspace
from datamanager.base.units import format_size

_ONE_IN = 100  # pages
_LARGE_BYTES = 8 << 20


def delta_row(setting: Setting) -> list[RowResult]:
    rows = []
    for title, differs in (("Delta restore, nothing differs", False), ("Delta restore, 1 % of pages differ", True)):
        ours = ProductDelta(setting.product, setting.version, differs=differs)
        peer = setting.pgbackrest(
            lambda tool, encrypted, differs=differs: PgBackRestDelta(tool, differs), encrypted=True
        )
        bar = Bar(
            f"{title[:1].lower()}{title[1:]}, against pgBackRest --delta",
            faster(peer, ours),
            1.5,
            True,
            but=setting.peer,
        )
        rows.append(measured(setting, title, _NOTE, [ours, peer], [bar]))
    return rows


_NOTE = (
    "Each run over a stopped copy of the cluster, restored from the same backup. Ours is the engine's own call, in a"
    " process of its own, with the key file as any command has it. Page cache warm."
)


class ProductDelta(OfProduct):
    """A delta restore over a directory that we restored before; it stays for the whole row."""

    label = ", delta"

    def __init__(self, product: Product, version: str, *, differs: bool) -> None:
        super().__init__(product, version)
        self._product = product
        self._differs = differs
        self._turn = 0

    def prepare(self) -> None:
        if self._place is None:
            self._repository, self._place = self._product.new_repository()
            self._backup = self._product.backup(self._repository).id
            self._product.call("restore", self._backup, "--target", str(self._target))
            _own(self._product.workspace, self._target)
        self._turn += 1
        if self._differs:
            disturb(self._target, self._turn)

    def run(self, sample_memory: bool) -> Finished:
        key_file = self._product.key_file(self._repository)
        words = (str(self._place), str(key_file), self._backup, str(self._target))
        self.command = "python -m benchmarks.delta_child REPOSITORY KEY_FILE BACKUP_ID TARGET"
        argv = [sys.executable, "-m", "benchmarks.delta_child", *words]
        finished = run(argv, env={**COMPILED, "OPENBLAS_NUM_THREADS": "1"}, sample_memory=sample_memory)
        need_data_directory(self._target)
        told = json.loads(finished.stdout)
        self.remark = f"fetched {format_size(told['fetched'])}, wrote {format_size(told['written'])}"
        return finished

    def stored_bytes(self) -> int | None:
        return None

    def clean(self) -> None:
        return

    def remove(self) -> None:
        shutil.rmtree(self._target, ignore_errors=True)
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)

    @property
    def _target(self) -> Path:
        return self._product.folder / "delta"


class PgBackRestDelta(OfPgBackRest):
    """``--delta restore`` over a directory that pgBackRest restored before; it stays for the whole row."""

    def __init__(self, tool: PgBackRest, differs: bool) -> None:
        super().__init__(tool, encrypted=True)
        self._differs = differs
        self._turn = 0

    def prepare(self) -> None:
        if self._stanza is None:
            stanza = self._ready("delta")
            stanza.call("--type=full", "backup")
            stanza.rest()
            self._tool.workspace.account.make_folder(self._target)
            stanza.call(f"--pg1-path={self._target}", "restore", "--archive-mode=off")
        self._turn += 1
        if self._differs:
            disturb(self._target, self._turn)
            _own(self._tool.workspace, self._target)

    def run(self, sample_memory: bool) -> Finished:
        arguments = (f"--pg1-path={self._target}", "--delta", "restore", "--archive-mode=off")
        stanza = self._ready("delta")
        self.command = self._tool.workspace.shown(stanza.argv(*arguments))
        finished = stanza.call(*arguments, sample_memory=sample_memory)
        need_data_directory(self._target)
        return finished

    def stored_bytes(self) -> int | None:
        return None

    def clean(self) -> None:
        return

    def remove(self) -> None:
        shutil.rmtree(self._target, ignore_errors=True)
        super().remove()

    @property
    def _target(self) -> Path:
        return self._tool.workspace.path / "pgbackrest-delta"


def disturb(target: Path, turn: int) -> None:
    """Make files differ without their size or time telling; the same turn draws the same pages."""
    numbers = random.Random(turn)
    tables = sorted(one for one in (target / "base").rglob("*") if one.is_file() and one.stat().st_size >= _LARGE_BYTES)
    for path in tables:
        status = path.stat()
        with path.open("r+b") as file:
            for page in numbers.sample(range(status.st_size // PAGE_BYTES), status.st_size // PAGE_BYTES // _ONE_IN):
                file.seek(page * PAGE_BYTES + 4096)
                file.write(numbers.randbytes(64))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    tables[-1].with_name("987654").write_bytes(numbers.randbytes(PAGE_BYTES))
    next(one for one in sorted((target / "base" / "1").iterdir()) if one.stat().st_size == PAGE_BYTES).unlink()


def _own(workspace: Workspace, folder: Path) -> None:
    """Give a directory to the account of servers, with all that is in it."""
    for path in (folder, *folder.rglob("*")):
        workspace.account.own(path)
