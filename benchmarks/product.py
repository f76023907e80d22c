"""DataManager itself, driven like a user would: as a program, through its command line."""

from __future__ import annotations

import compileall
import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.process import ContenderFailed, Finished, run
from benchmarks.server import BenchmarkServer
from benchmarks.workspace import Workspace, tree_bytes
from datamanager import __file__ as package

CLUSTER = "bench"
# The exit code of a command that did its work and has something to say (docs/exit-codes.md).
WITH_WARNINGS = 3
# An installed program is compiled; where a session forbids to write that down, each command would compile itself.
COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was taken, what it says of how, and why not otherwise."""

    finished: Finished
    id: str
    method: str
    reason: str

    @property
    def told(self) -> str:
        """For the report."""
        return f"method {self.method}" + (f" ({self.reason})" if self.reason else "")


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
        compileall.compile_dir(Path(package).parent, quiet=1)

    def call(self, *arguments: str, sample_memory: bool = False) -> Finished:
        """One command of ours. Raises: ContenderFailed."""
        return run(
            [self._program, *arguments],
            env={"DATAMANAGER_HOME": str(self.folder / "home"), **COMPILED},
            cwd=self.workspace.path,
            sample_memory=sample_memory,
            accepted=(0, WITH_WARNINGS),
        )

    def key_file(self, repository: str) -> Path:
        """The key file with which commands open a repository."""
        return self.folder / "home" / "keys" / f"{repository}.key"

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

    def backup_arguments(self, repository: str, *options: str) -> tuple[str, ...]:
        return ("backup", "run", CLUSTER, "--repo", repository, *options, "--json")

    def backup(self, repository: str, *options: str, sample_memory: bool = False) -> Backup:
        """Back up. Raises: ContenderFailed, also when the result does not name the backup."""
        finished = self.call(*self.backup_arguments(repository, *options), sample_memory=sample_memory)
        result = _result(finished.stdout)
        if "backup_id" not in result:
            raise ContenderFailed("`backup run --json` did not end with a line that has backup_id")
        return Backup(finished, str(result["backup_id"]), str(result.get("method", "unknown")), _reason(result))

    def full_option(self) -> tuple[str, ...]:
        """What makes the product read everything on a server that could send an increment."""
        return ("--full",) if self._server.major >= 17 else ()

    def _prepare(self) -> None:
        if self._ready:
            return
        if self._failure:
            raise ContenderFailed(self._failure)
        self.folder.mkdir(mode=0o700)
        self._passphrase.touch(mode=0o600)
        self._passphrase.write_text(secrets.token_hex(16) + "\n")
        try:
            self.call("cluster", "add", CLUSTER, self._server.dsn)
        except ContenderFailed as error:
            self._failure = str(error)
            raise
        self._ready = True


class OfProduct:
    """What the contenders of the product share."""

    label = ""

    def __init__(self, product: Product, version: str) -> None:
        self._product = product
        self.name = f"DataManager {version}, encrypted{self.label}"
        self.command = ""
        self.remark = ""
        self._place: Path | None = None

    def stored_bytes(self) -> int | None:
        return None if self._place is None else tree_bytes(self._place)


class ProductFull(OfProduct):
    """A first backup into a new repository."""

    def prepare(self) -> None:
        self._repository, self._place = self._product.new_repository()

    def run(self, sample_memory: bool) -> Finished:
        self.command = self._product.shown(*self._product.backup_arguments(self._repository))
        return self._product.backup(self._repository, sample_memory=sample_memory).finished

    def clean(self) -> None:
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)


class ProductRepeat(OfProduct):
    """Everything read again, into the repository of the first backup; ``remove`` it when the row is done."""

    label = ", again"

    def prepare(self) -> None:
        if self._place is None:
            self._repository, self._place = self._product.new_repository()
            self._product.backup(self._repository)

    def run(self, sample_memory: bool) -> Finished:
        options = self._product.full_option()
        self.command = self._product.shown(*self._product.backup_arguments(self._repository, *options))
        taken = self._product.backup(self._repository, *options, sample_memory=sample_memory)
        self.remark = taken.told
        return taken.finished

    def clean(self) -> None:
        return

    def remove(self) -> None:
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)


class ProductRestore(OfProduct):
    """A restore of a full backup into a new directory."""

    def prepare(self) -> None:
        if self._place is None:
            repository, self._place = self._product.new_repository()
            self._backup = self._product.backup(repository).id

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


class ProductHelp(OfProduct):
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


def _result(output: str) -> dict[str, Any]:
    """The last line of a command with ``--json``; empty when there is none."""
    lines = [line for line in output.splitlines() if line.strip()]
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _reason(result: dict[str, Any]) -> str:
    """Why everything was read, or what was warned of."""
    return str(result.get("reason") or "; ".join(str(one) for one in result.get("warnings", ())))
