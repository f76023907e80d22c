"""DataManager itself, driven like a user would: as a program, through its command line."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path

from benchmarks.process import ContenderFailed, Finished, run
from benchmarks.server import BenchmarkServer
from benchmarks.workspace import Workspace, tree_bytes

_CLUSTER = "bench"


class Product:
    """A home, a passphrase and a registered cluster, shared by the contenders below; made when first needed."""

    def __init__(self, workspace: Workspace, server: BenchmarkServer, program: str) -> None:
        self.workspace = workspace
        self._server = server
        self._program = program
        self.folder = workspace.path / f"product-{server.folder.name}"
        self._passphrase = self.folder / "passphrase"
        self._repositories = 0
        self._ready = False
        self._failure = ""
        workspace.show_as(Path(program), "datamanager")

    def call(self, *arguments: str, sample_memory: bool = False) -> Finished:
        """One command of ours. Raises: ContenderFailed."""
        return run(
            [self._program, *arguments],
            env={"DATAMANAGER_HOME": str(self.folder / "home")},
            cwd=self.workspace.path,
            sample_memory=sample_memory,
        )

    def shown(self, *arguments: str) -> str:
        return self.workspace.shown([self._program, *arguments])

    def new_repository(self) -> tuple[str, Path]:
        """Make an encrypted repository in a new directory: its name and place."""
        self._prepare()
        self._repositories += 1
        name = f"r{self._repositories}"
        place = self.folder / name
        self.call("repo", "init", name, str(place), "--passphrase-file", str(self._passphrase))
        return name, place

    def backup_arguments(self, repository: str) -> tuple[str, ...]:
        return ("backup", "run", _CLUSTER, "--repo", repository, "--json")

    def backup(self, repository: str, *, sample_memory: bool = False) -> tuple[Finished, str]:
        """Back up; what was measured, and the id. Raises: ContenderFailed, also when the id is not reported."""
        finished = self.call(*self.backup_arguments(repository), sample_memory=sample_memory)
        return finished, _backup_id(finished.stdout)

    def _prepare(self) -> None:
        if self._ready:
            return
        if self._failure:
            raise ContenderFailed(self._failure)
        self.folder.mkdir(mode=0o700)
        self._passphrase.touch(mode=0o600)
        self._passphrase.write_text(secrets.token_hex(16) + "\n")
        try:
            self.call("cluster", "add", _CLUSTER, self._server.dsn)
        except ContenderFailed as error:
            self._failure = str(error)
            raise
        self._ready = True


class _OfProduct:
    """What the contenders of the product share."""

    label = ""

    def __init__(self, product: Product, version: str) -> None:
        self._product = product
        self.name = f"DataManager {version}, encrypted{self.label}"
        self.command = ""
        self._place: Path | None = None

    def stored_bytes(self) -> int | None:
        return None if self._place is None else tree_bytes(self._place)


class ProductFull(_OfProduct):
    """A first backup into a new repository."""

    def prepare(self) -> None:
        self._repository, self._place = self._product.new_repository()

    def run(self, sample_memory: bool) -> Finished:
        self.command = self._product.shown(*self._product.backup_arguments(self._repository))
        return self._product.backup(self._repository, sample_memory=sample_memory)[0]

    def clean(self) -> None:
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)


class ProductRepeat(_OfProduct):
    """Another backup of the unchanged cluster into the repository of the first; ``remove`` it when the row is done."""

    label = ", again"

    def prepare(self) -> None:
        if self._place is None:
            self._repository, self._place = self._product.new_repository()
            self._product.backup(self._repository)

    def run(self, sample_memory: bool) -> Finished:
        self.command = self._product.shown(*self._product.backup_arguments(self._repository))
        return self._product.backup(self._repository, sample_memory=sample_memory)[0]

    def clean(self) -> None:
        return

    def remove(self) -> None:
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)


class ProductRestore(_OfProduct):
    """A restore of a full backup into a new directory."""

    def prepare(self) -> None:
        if self._place is None:
            repository, self._place = self._product.new_repository()
            _, self._backup = self._product.backup(repository)

    def run(self, sample_memory: bool) -> Finished:
        arguments = ("restore", self._backup, "--target", str(self._target))
        self.command = self._product.shown("restore", "BACKUP_ID", "--target", str(self._target))
        finished = self._product.call(*arguments, sample_memory=sample_memory)
        need_data_directory(self._target)
        return finished

    def stored_bytes(self) -> int | None:
        return tree_bytes(self._target)

    def clean(self) -> None:
        shutil.rmtree(self._target, ignore_errors=True)

    def remove(self) -> None:
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)

    @property
    def _target(self) -> Path:
        return self._product.folder / "restored"


class ProductHelp(_OfProduct):
    """The start of a command."""

    def prepare(self) -> None:
        return

    def run(self, sample_memory: bool) -> Finished:
        self.command = self._product.shown("--help")
        return self._product.call("--help", sample_memory=sample_memory)

    def clean(self) -> None:
        return


def need_data_directory(folder: Path) -> None:
    """Raises: ContenderFailed when a restore left no data directory."""
    for name in ("PG_VERSION", "global/pg_control", "base"):
        if not (folder / name).exists():
            raise ContenderFailed(f"the restore ended well but left no {name}")


def _backup_id(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    try:
        return str(json.loads(lines[-1])["backup_id"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ContenderFailed("`backup run --json` did not end with a line that has backup_id") from error
