"""The real command line in processes of its own, with a home of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import environment

PASSPHRASE = "correct horse battery staple"


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float = 0.0

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines of a run with ``--json``."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        """The last JSON line: the result or the error."""
        return self.lines[-1]


class Running:
    """A command under way, its output read as it comes. Used by one thread; ``wait`` ends it."""

    def __init__(self, words: Sequence[str], variables: Mapping[str, str]) -> None:
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            words,
            env=environment(**variables),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream, kept), daemon=True)
            for stream, kept in ((self._process.stdout, self._lines), (self._process.stderr, self._errors))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, kept: list[str]) -> None:
        with stream:
            kept.extend(iter(stream.readline, ""))

    @property
    def pid(self) -> int:
        return self._process.pid

    def until(self, text: str, seconds: float = 60) -> None:
        """Wait until a line of the output holds ``text``."""
        deadline = time.monotonic() + seconds
        while not any(text in line for line in list(self._lines)):
            ended = self._process.poll() is not None and not any(one.is_alive() for one in self._readers)
            if ended or time.monotonic() > deadline:
                self._process.kill()
                raise AssertionError(f"{text!r} never came: {''.join(self._lines)}{''.join(self._errors)}")
            time.sleep(0.002)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; ``seconds`` of the result counts from here."""
        self.began = time.monotonic()
        self._process.send_signal(number)

    def wait(self, seconds: float = 60) -> Done:
        """Wait for the end."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        took = time.monotonic() - self.began
        for reader in self._readers:
            reader.join(10)
        return Done(code, "".join(self._lines), "".join(self._errors), took)


@dataclass
class CommandLine:
    """``datamanager`` with ``home`` as DATAMANAGER_HOME.

    Args: secrets - what must never stand in any output; checked after each command.
    """

    home: Path
    secrets: list[str] = field(default_factory=lambda: [PASSPHRASE])

    @property
    def passphrase_file(self) -> Path:
        path = self.home.with_name("passphrase")
        if not path.exists():
            path.write_text(PASSPHRASE + "\n")
            path.chmod(0o600)
        return path

    def words(self, arguments: Sequence[str | Path]) -> list[str]:
        return [sys.executable, "-m", "datamanager.cli.main", *map(str, arguments)]

    @property
    def variables(self) -> dict[str, str]:
        return {"DATAMANAGER_HOME": str(self.home)}

    def start(self, *arguments: str | Path) -> Running:
        """Begin a command."""
        return Running(self.words(arguments), self.variables)

    def run(self, *arguments: str | Path, typed: str = "", seconds: float = 120) -> Done:
        """Run a command to its end."""
        began = time.monotonic()
        done = subprocess.run(
            self.words(arguments),
            env=environment(**self.variables),
            cwd="/",
            input=typed,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        self._check_no_secret(done.stdout + done.stderr)
        return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def ok(self, *arguments: str | Path, typed: str = "") -> dict[str, Any]:
        """Run a command that must succeed, with ``--json``; returns its result."""
        done = self.run(*arguments, "--json", typed=typed)
        assert done.code in (0, 3), done.out + done.err
        return done.last

    def refused(self, code: int, *arguments: str | Path, says: Sequence[str] = (), advises: Sequence[str] = ()) -> Done:
        """Run a command that must fail with ``code``, for people and as JSON: the same sentence and remedy in both.

        Args: says - what the message holds; advises - what the remedy holds.
        """
        people = self.run(*arguments)
        assert people.code == code, people.out + people.err
        message, _, hint = people.err.rstrip("\n").partition("\n")
        check_error(message.removeprefix("error: "), hint, says, advises)
        programs = self.run(*arguments, "--json")
        assert programs.code == code, programs.out + programs.err
        assert programs.err == ""
        assert programs.last["message_type"] == "error"
        assert programs.last["exit_code"] == code
        check_error(programs.last["message"], programs.last["hint"], says, advises)
        return programs

    def repository(self, name: str, place: Path) -> str:
        """Make a repository; returns what was printed, with the kit."""
        done = self.run("repo", "init", name, place, "--passphrase-file", self.passphrase_file, "--no-wheels")
        assert done.code == 0, done.out + done.err
        return done.out

    def cluster(self, name: str, conninfo: str, *more: str | Path) -> None:
        """Add a cluster."""
        done = self.run("cluster", "add", name, conninfo, *more)
        assert done.code in (0, 3), done.out + done.err

    def backups(self, repository: str) -> list[str]:
        """The ids of the backups listed."""
        return [one["backup_id"] for one in self.ok("backup", "list", "--repo", repository)["backups"]]

    def verified(self, repository: str) -> dict[str, Any]:
        """Read every byte of a repository, which must be clean."""
        done = self.run("repo", "verify", repository, "--json")
        assert done.code == 0, done.out + done.err
        return done.last

    def _check_no_secret(self, said: str) -> None:
        assert not [secret for secret in self.secrets if secret in said]


def check_error(message: str, hint: str, says: Sequence[str], advises: Sequence[str]) -> None:
    """A message is ``verb noun: cause`` in lower case without a stop; a remedy is a whole sentence."""
    for text in says:
        assert text in message, message
    for text in advises:
        assert text in hint, hint
    assert ": " in message
    assert not message.endswith(".")
    assert message[0].islower(), message
    assert hint[:1].isupper(), f"{message} / {hint}"
    assert hint.endswith((".", ";", "?")), hint
    assert "Traceback" not in message + hint
    assert not message.startswith("run command: unexpected")
