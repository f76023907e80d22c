"""Running commands as a person or a program does: in this process (fast), or in one of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from datamanager.cli import main
from datamanager.config.model import ClusterConfig

PASSPHRASE = "open sesame, said the clinic"
_DOCUMENTED = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
_OPTIONS = set(ClusterConfig.model_fields)
HOME = "DATAMANAGER_HOME"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    errors: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines of standard output."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1]

    def of_type(self, message_type: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["message_type"] == message_type]


class Installation:
    """A home, and the means to run commands with it. Everything lies below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.passphrase_file = self.secret_file("passphrase.txt", PASSPHRASE + "\n")

    def secret_file(self, name: str, text: str) -> Path:
        """A file only its owner reads."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        return path

    def run(self, *words: str | Path, stdin: str = "", home: Path | None = None) -> Done:
        """Run a command in this process."""
        out, errors = io.StringIO(), io.StringIO()
        given = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, {HOME: str(home or self.home)}))
            stack.enter_context(_stdin(given))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(errors))
            code = main.run([str(word) for word in words])
        return Done(code, out.getvalue(), errors.getvalue())

    def ok(self, *words: str | Path, stdin: str = "", home: Path | None = None) -> Done:
        """The same for a command that must succeed without a warning."""
        done = self.run(*words, stdin=stdin, home=home)
        assert done.code == 0, f"{words}: {done}"
        return done

    def result(self, *words: str | Path) -> dict[str, Any]:
        """The result of a command that must succeed; its fields are those that docs/cli.md promises."""
        found = self.ok(*words, "--json").last
        assert not [name for name in found if f"`{name}`" not in _DOCUMENTED and name not in _OPTIONS]
        return found

    def start(self, *words: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start a command in a process of its own; the caller waits for it."""
        module = options.pop("module", "datamanager.cli.main")
        return subprocess.Popen(
            [sys.executable, "-m", module, *(str(word) for word in words)],
            env={**os.environ, HOME: str(self.home)},
            text=True,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def killed_at(self, phase: str, *words: str | Path) -> bool:
        """Run a command that is killed the moment it tells of a phase; whether it came so far."""
        process = self.start(phase, *words, "--json", module="tests.cli.dying")
        process.communicate(timeout=120)
        return process.returncode == -signal.SIGKILL

    def process(self, *words: str | Path, input: str = "") -> Done:
        """Run a command in a process of its own."""
        process = self.start(*words, stdin=subprocess.PIPE)
        out, errors = process.communicate(input, timeout=120)
        return Done(process.returncode, out, errors)

    def init(self, name: str = "usb", folder: Path | None = None) -> Path:
        """Make a repository and return its folder."""
        place = folder or self.folder / f"repository of {name}"
        self.ok(
            "repo", "init", name, place, "--passphrase-file", self.passphrase_file,
            "--kit-file", self.folder / f"kit of {name}.txt", "--no-wheels",
        )  # fmt: skip
        return place

    def recovery_code(self, name: str = "usb") -> str:
        """The code on the kit of a repository made by ``init``."""
        kit = (self.folder / f"kit of {name}.txt").read_text(encoding="utf-8")
        section = kit.partition("RECOVERY CODE")[2].partition("Whoever")[0]
        groups = re.findall(r"\b[0-9A-Z]{4}\b", section)
        assert len(groups) == 9
        return "-".join(groups)

    def logs(self) -> list[Path]:
        """The logs of all runs."""
        folder = self.home / "logs"
        return sorted(folder.iterdir()) if folder.is_dir() else []


@contextlib.contextmanager
def _stdin(stream: io.TextIOWrapper) -> Iterator[None]:
    before, sys.stdin = sys.stdin, stream
    try:
        yield
    finally:
        sys.stdin = before
