"""pgBackRest, tuned as far as the installed release can be, and told apart by its version everywhere."""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path

from benchmarks.process import ContenderFailed, Finished, need_program, run
from benchmarks.product import need_data_directory
from benchmarks.server import BenchmarkServer
from benchmarks.workspace import Workspace, tree_bytes

# The release that the bars of design.md mean; an older one is shown as what it is.
BAR_VERSION = (2, 59)
_BUNDLE_SINCE = (2, 39)
_BLOCK_SINCE = (2, 46)
_STANZA = "bench"
_IDLE_ARCHIVE_COMMAND = "/bin/true"


class PgBackRest:
    """The program on PATH, and configurations for one server."""

    def __init__(self, workspace: Workspace, server: BenchmarkServer) -> None:
        self.workspace = workspace
        self.server = server
        self.program = need_program("pgbackrest", "pgbackrest")
        match = re.search(r"(\d+)\.(\d+)(?:\.\d+)?", run([self.program, "version"]).stdout)
        if match is None:
            raise ContenderFailed("pgbackrest does not tell its version")
        self.version = match[0]
        self.release = (int(match[1]), int(match[2]))
        workspace.show_as(Path(self.program), "pgbackrest")

    def name(self, encrypted: bool) -> str:
        return f"pgBackRest {self.version}, {'encrypted' if encrypted else 'not encrypted'}"

    def settings(self, folder: Path, encrypted: bool) -> str:
        """The configuration file: zstd level 1, two processes, bundles and blocks where the release has them."""
        lines = [
            "[global]",
            f"repo1-path={folder}/repo",
            "repo1-retention-full=1",
            "compress-type=zst",
            "compress-level=1",
            "process-max=2",
            "start-fast=y",
            "log-level-file=off",
            f"log-path={folder}/log",
            f"lock-path={folder}/lock",
            f"spool-path={folder}/spool",
        ]
        if self.release >= _BUNDLE_SINCE:
            lines.append("repo1-bundle=y")
        if self.release >= _BLOCK_SINCE:
            lines.append("repo1-block=y")
        if encrypted:
            lines += ["repo1-cipher-type=aes-256-cbc", f"repo1-cipher-pass={secrets.token_hex(24)}"]
        lines += [
            f"[{_STANZA}]",
            f"pg1-path={self.server.data}",
            f"pg1-port={self.server.port}",
            f"pg1-socket-path={self.server.folder}",
            "pg1-user=postgres",
        ]
        return "\n".join(lines) + "\n"


class Stanza:
    """A repository of pgBackRest's with a stanza, archived to while it exists."""

    def __init__(self, tool: PgBackRest, folder: Path, encrypted: bool) -> None:
        self._tool = tool
        self.folder = folder
        self._config = folder / "pgbackrest.conf"
        account = tool.workspace.account
        account.make_folder(folder)
        self._config.touch(mode=0o600)
        self._config.write_text(tool.settings(folder, encrypted))
        account.own(self._config)

    def create(self) -> None:
        """Make the stanza, turn archiving on, wait until a segment has arrived."""
        self.call("stanza-create")
        self.archive()

    def archive(self) -> None:
        """Let the server archive here again, and wait until a segment has arrived."""
        command = f"{self._tool.program} --config={self._config} --stanza={_STANZA} archive-push %p"
        self._tool.server.set_archive_command(command)
        self.call("check")

    def rest(self) -> None:
        """Let the server's segments go, so that pgBackRest is idle while others are measured."""
        self._tool.server.set_archive_command(_IDLE_ARCHIVE_COMMAND)

    def remove(self) -> None:
        self.rest()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stored_bytes(self) -> int:
        """The backups, without the WAL."""
        return tree_bytes(self.folder / "repo" / "backup")

    def argv(self, *arguments: str) -> list[str]:
        return [self._tool.program, f"--config={self._config}", f"--stanza={_STANZA}", *arguments]

    def call(self, *arguments: str, sample_memory: bool = False) -> Finished:
        workspace = self._tool.workspace
        return run(self.argv(*arguments), account=workspace.account, cwd=workspace.path, sample_memory=sample_memory)


class OfPgBackRest:
    """What the contenders below share: one stanza, made when first needed."""

    def __init__(self, tool: PgBackRest, *, encrypted: bool) -> None:
        self._tool = tool
        self._encrypted = encrypted
        self.name = tool.name(encrypted)
        self.command = ""
        self._stanza: Stanza | None = None

    def _ready(self, kind: str) -> Stanza:
        if self._stanza is None:
            cipher = "cipher" if self._encrypted else "plain"
            folder = self._tool.workspace.path / f"pgbackrest-{self._tool.server.folder.name}-{kind}-{cipher}"
            self._stanza = Stanza(self._tool, folder, self._encrypted)
            self._stanza.create()
        return self._stanza

    def remove(self) -> None:
        if self._stanza is not None:
            stanza, self._stanza = self._stanza, None
            stanza.remove()


class PgBackRestFull(OfPgBackRest):
    """``--type=full`` into a new repository; every full reads and stores everything."""

    def prepare(self) -> None:
        self._ready("full")

    def run(self, sample_memory: bool) -> Finished:
        stanza = self._ready("full")
        self.command = self._tool.workspace.shown(stanza.argv("--type=full", "backup"))
        return stanza.call("--type=full", "backup", sample_memory=sample_memory)

    def stored_bytes(self) -> int | None:
        return None if self._stanza is None else self._stanza.stored_bytes()

    def clean(self) -> None:
        self.remove()


class PgBackRestRestore(OfPgBackRest):
    """A restore into a new directory from a repository that stays for the whole row."""

    def prepare(self) -> None:
        if self._stanza is None:
            stanza = self._ready("restore")
            stanza.call("--type=full", "backup")
            stanza.rest()
        self._tool.workspace.account.make_folder(self._target)

    def run(self, sample_memory: bool) -> Finished:
        arguments = (f"--pg1-path={self._target}", "restore", "--archive-mode=off")
        stanza = self._ready("restore")
        self.command = self._tool.workspace.shown(stanza.argv(*arguments))
        finished = stanza.call(*arguments, sample_memory=sample_memory)
        need_data_directory(self._target)
        return finished

    def stored_bytes(self) -> int | None:
        return tree_bytes(self._target)

    def clean(self) -> None:
        shutil.rmtree(self._target, ignore_errors=True)

    @property
    def _target(self) -> Path:
        cipher = "cipher" if self._encrypted else "plain"
        return self._tool.workspace.path / f"pgbackrest-restored-{cipher}"
