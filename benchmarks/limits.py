"""What the machine and PostgreSQL's own tools can do: the limits that the bars are held against."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from benchmarks.process import Finished, need_program, run
from benchmarks.product import need_data_directory
from benchmarks.server import BenchmarkServer
from benchmarks.workspace import Workspace, tree_bytes

# What a base backup leaves out as well.
_LEFT_OUT = "--exclude='./pg_wal/*' --exclude=./postmaster.pid --exclude=./postmaster.opts"


class _Limit:
    """What the contenders below share: a folder of their own that is gone after each run."""

    name = ""

    def __init__(self, workspace: Workspace, server: BenchmarkServer) -> None:
        self._workspace = workspace
        self._server = server
        self.command = ""
        self._folder = workspace.path / f"limit-{server.folder.name}-{type(self).__name__.lower()}"
        workspace.show_as(server.programs, "PGBIN")

    def prepare(self) -> None:
        self._workspace.account.make_folder(self._folder)

    def stored_bytes(self) -> int | None:
        return tree_bytes(self._folder)

    def clean(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def remove(self) -> None:
        self.clean()

    def _run(self, command: str, sample_memory: bool) -> Finished:
        self.command = self._workspace.shown(command)
        return run(command, account=self._workspace.account, cwd=self._workspace.path, sample_memory=sample_memory)

    def _base_backup(self, arguments: str) -> str:
        connection = f"-h {self._server.folder} -p {self._server.port} -U postgres"
        return f"{self._server.programs}/pg_basebackup {connection} -c fast -X fetch {arguments}"


class TarZstd(_Limit):
    """The limit of a compressed backup: no checksums, no encryption, no consistency."""

    name = "limit: tar | zstd -1 -T2"

    def run(self, sample_memory: bool) -> Finished:
        return self._run(tar_zstd(self._server.data, self._folder / "data.tar.zst"), sample_memory)


class BaseBackupTar(_Limit):
    """PostgreSQL's own tool, uncompressed; it syncs by itself."""

    name = "pg_basebackup, plain tar"

    def run(self, sample_memory: bool) -> Finished:
        return self._run(self._base_backup(f"-Ft -D {shlex.quote(str(self._folder))}"), sample_memory)


class RawStream(_Limit):
    """BASE_BACKUP read and thrown away: what the server can send. With its WAL, since without it the server waits for
    the archiver in steps of a second."""

    name = "limit: BASE_BACKUP stream, thrown away"

    def run(self, sample_memory: bool) -> Finished:
        return self._run(self._base_backup("-Ft -D - > /dev/null"), sample_memory)

    def stored_bytes(self) -> int | None:
        return None


class TarRestore(_Limit):
    """The limit of a restore: decompress, write, sync the file system."""

    name = "limit: zstd -d | tar -x, sync"

    def prepare(self) -> None:
        if not self._archive.exists():
            super().prepare()
            self._run(tar_zstd(self._server.data, self._archive), False)
        self._workspace.account.make_folder(self._target)

    def run(self, sample_memory: bool) -> Finished:
        zstd = need_program("zstd", "zstd")
        self._workspace.show_as(Path(zstd), "zstd")
        target = shlex.quote(str(self._target))
        command = f"{zstd} -d -c {shlex.quote(str(self._archive))} | tar -x -C {target} && sync -f {target}"
        finished = self._run(command, sample_memory)
        need_data_directory(self._target)
        return finished

    def stored_bytes(self) -> int | None:
        return tree_bytes(self._target)

    def clean(self) -> None:
        shutil.rmtree(self._target, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _archive(self) -> Path:
        return self._folder / "data.tar.zst"

    @property
    def _target(self) -> Path:
        return self._folder / "restored"


class PythonStart:
    """An interpreter that does nothing: the limit of a command's start."""

    name = "limit: python -c pass"
    command = "python -c pass"

    def prepare(self) -> None:
        return

    def run(self, sample_memory: bool) -> Finished:
        return run([sys.executable, "-c", "pass"], sample_memory=sample_memory)

    def stored_bytes(self) -> int | None:
        return None

    def clean(self) -> None:
        return


def tar_zstd(data: Path, archive: Path) -> str:
    """The pipeline of the limit; tar's code 1 (a file changed meanwhile) counts as success, as a server is running.

    Raises: ContenderFailed when zstd is not installed.
    """
    zstd, file = need_program("zstd", "zstd"), shlex.quote(str(archive))
    tar = f"{{ tar -c -C {shlex.quote(str(data))} {_LEFT_OUT} . || [ $? -eq 1 ]; }}"
    return f"{tar} | {Path(zstd).name} -q -1 -T2 -o {file} && sync {file}"
