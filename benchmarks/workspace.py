"""One temporary directory for everything the benchmark makes, and the names by which the report shows its paths."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.process import Account, ContenderFailed

_REASON_LETTERS = 300


class Workspace:
    """Owns a directory that every account can enter; removed on leaving the ``with`` block."""

    def __init__(self, parent: Path | None, account: Account) -> None:
        self.account = account
        self.path = Path(tempfile.mkdtemp(prefix="datamanager-benchmark-", dir=parent))
        self.path.chmod(0o755)
        self._shown = {str(self.path): "WORK"}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def show_as(self, path: Path, name: str) -> None:
        """In commands of the report write ``name`` for ``path``."""
        self._shown[str(path)] = name

    def shown(self, command: Sequence[str] | str) -> str:
        """A command as the report prints it: no path of this machine."""
        text = command if isinstance(command, str) else shlex.join(command)
        for path, name in sorted(self._shown.items(), key=lambda item: -len(item[0])):
            text = text.replace(path, name)
        return text

    def reason(self, error: object) -> str:
        """Why something failed, as the report prints it: short, without a path of this machine or a piece of one."""
        return self.shown(str(error))[:_REASON_LETTERS]

    def need_space(self, size_bytes: int) -> None:
        """Raises: ContenderFailed when the volume has less free."""
        free = shutil.disk_usage(self.path).free
        if free < size_bytes:
            raise ContenderFailed(f"{size_bytes >> 20} MiB of free disk are needed, there are {free >> 20} MiB")


def tree_bytes(folder: Path, *skipped: str) -> int:
    """Sum of the sizes of the files below, without folders of the given names."""
    total = 0
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in skipped]
        total += sum((Path(root) / name).lstat().st_size for name in files)
    return total


def tree_files(folder: Path) -> int:
    """Number of files below."""
    return sum(len(files) for _, _, files in os.walk(folder))


def warm_cache(folder: Path) -> None:
    """Read every file once, so that each contender finds the data in the page cache."""
    for root, _, files in os.walk(folder):
        for name in files:
            with open(Path(root) / name, "rb", buffering=0) as file:
                while file.read(1 << 22):
                    pass
