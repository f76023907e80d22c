"""Running other people's commands: without a shell, with a limit, ended with everything they began, their output kept.

A command that must not be lost sight of (one that stops or starts a service) waits behind a gate until its identity is
written down: whoever looks after a killed run then finds a command that goes on, or none that ever will.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypedDict

from datamanager.base.pipeline import StopToken
from datamanager.base.redacting import redacted_output
from datamanager.system.processes import ProcessIdentity, end_tree, group_options, identify

if sys.platform != "win32":
    import pwd

# The end of what a command said tells why it failed; more of it would only swell the log.
OUTPUT_BYTES = 16 * 1024
_LONGEST_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 3.0
_CODING = "oem" if sys.platform == "win32" else "utf-8"
# Reads a line before it becomes the command; when its parent dies first it reads the end and goes. The command's words
# are arguments, the shell never reads them.
_GATE = ("/bin/sh", "-c", 'read -r go || exit 125; exec "$@" </dev/null', "gate")


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended.

    Args:
        status: its exit status; None when it could not be run or was ended.
        output: the end of what it wrote to both outputs, secrets masked.
        problem: why it did not do what it was to do, as ``exit status 4``; empty when its status is 0.
    """

    status: int | None
    output: str
    seconds: float
    problem: str = ""

    @property
    def last_line(self) -> str:
        """What it said last; empty when it said nothing."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    @property
    def explained(self) -> str:
        """The problem and what it said last."""
        return f"{self.problem} ({self.last_line})" if self.last_line else self.problem


def split_command(text: str) -> tuple[str, ...]:
    """The words of a command line, by the system's own rules of quoting and nothing else of a shell.

    Raises: ValueError, for no word at all or a quotation mark that is not closed.
    Source: shlex (POSIX); CommandLineToArgvW.
    """
    words = _windows_words(text) if sys.platform == "win32" else shlex.split(text)
    if not words or not words[0]:
        raise ValueError("it names no program")
    return tuple(words)


def _windows_words(text: str) -> list[str]:
    if sys.platform != "win32":
        raise NotImplementedError
    if not text.strip():
        return []
    count = ctypes.c_int()
    split = ctypes.windll.shell32.CommandLineToArgvW
    split.argtypes = [ctypes.c_wchar_p, ctypes.POINTER(ctypes.c_int)]
    split.restype = ctypes.POINTER(ctypes.c_wchar_p)
    words = split(text.strip(), ctypes.byref(count))
    if not words:
        raise ValueError("it is not a command line")
    try:
        return [words[index] or "" for index in range(count.value)]
    finally:
        ctypes.windll.kernel32.LocalFree(words)


def find_program(word: str) -> str:
    """The program that a command's first word means. Raises: FileNotFoundError, when there is none that may be run."""
    found = shutil.which(word)
    if found is None:
        raise FileNotFoundError(f"there is no program {word!r} that this account may run")
    return found


def run_command(
    words: Sequence[str],
    *,
    limit_seconds: float,
    stop: StopToken,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    user_id: int | None = None,
    output: Path | None = None,
    begun: Callable[[ProcessIdentity], None] | None = None,
    grace_seconds: float = _GRACE_SECONDS,
    keep_bytes: int = OUTPUT_BYTES,
) -> CommandResult:
    """Run a command to its end; past its limit it is ended with all that it began and did not set free.

    What it leaves behind when it ends by itself goes on: that is how services begin.

    Args:
        environment: instead of ours.
        folder: where it runs; else where we do.
        user_id: the account that runs it, for root; None is ours.
        output: a file that takes what it says, appended to and kept. Needed for whatever leaves a service behind,
            which may go on writing there.
        begun: told who it is before its first step; when it raises, the command never takes that step.
        grace_seconds: between asking it to end and killing it.
        keep_bytes: how much of the end of what it says is returned.

    Raises: Cancelled, after it was ended; what ``begun`` raises.
    """
    began = time.monotonic()
    variables = dict(os.environ if environment is None else environment)
    with _open_output(output) as file:
        said_before = file.seek(0, os.SEEK_END)
        try:
            variables |= _account_variables(user_id)
            process = _begin(words, variables, folder, user_id, file, begun)
        except FileNotFoundError as error:
            return CommandResult(None, "", 0.0, _cause(error))
        except OSError as error:
            return CommandResult(None, "", 0.0, f"it cannot be run: {_cause(error)}")
        problem = _wait(process, limit_seconds, stop, grace_seconds)
        said = _said(file, said_before, keep_bytes)
    status = None if problem else process.returncode
    if status:
        problem = f"exit status {status}" if status > 0 else f"ended by signal {-status}"
    return CommandResult(status, redacted_output(said, variables).strip(), time.monotonic() - began, problem)


def _begin(
    words: Sequence[str],
    variables: Mapping[str, str],
    folder: Path | None,
    user_id: int | None,
    output: IO[bytes],
    begun: Callable[[ProcessIdentity], None] | None,
) -> subprocess.Popen[bytes]:
    line = [find_program(words[0]), *words[1:]]
    gated = begun is not None and sys.platform != "win32"
    process = subprocess.Popen(
        [*_GATE, *line] if gated else line,
        env=dict(variables),
        cwd=folder,
        stdin=subprocess.PIPE if gated else subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        **group_options(),
        **_account_options(user_id),
    )
    try:
        if begun is not None:
            identity = identify(process.pid)
            if identity is not None:
                begun(identity)
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.write(b"go\n")
                process.stdin.flush()
            with contextlib.suppress(OSError):
                process.stdin.close()
    except BaseException:
        end_tree(process.pid, 0)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
        raise
    return process


def _wait(process: subprocess.Popen[bytes], limit_seconds: float, stop: StopToken, grace_seconds: float) -> str:
    """The problem, if it did not end by itself. Raises: Cancelled."""
    deadline = time.monotonic() + limit_seconds
    look = 0.005
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                end_tree(process.pid, grace_seconds)
                process.wait()
                return f"it did not end within {limit_seconds:g} seconds"
            if stop.wait(min(look, max(deadline - time.monotonic(), 0.0) + 0.001)):
                stop.check()
            look = min(look * 2, _LONGEST_LOOK_SECONDS)
    except BaseException:
        end_tree(process.pid, grace_seconds)
        process.wait()
        raise
    return ""


def _open_output(path: Path | None) -> IO[bytes]:
    if path is None:
        # A file, not a pipe: what a command leaves running keeps its outputs open.
        return tempfile.TemporaryFile()
    return path.open("ab+")


def _said(file: IO[bytes], since: int, keep_bytes: int) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(min(since, size), size - keep_bytes))
    return file.read().decode(_CODING, "replace").replace("\r\n", "\n")


def _cause(error: OSError) -> str:
    return (error.strerror or str(error)).lower() if error.errno else str(error)


class _AccountOptions(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _account_options(user_id: int | None) -> _AccountOptions:
    if sys.platform == "win32" or user_id is None or user_id == os.geteuid():
        return {}
    entry = _entry(user_id)
    return {
        "user": entry.pw_uid,
        "group": entry.pw_gid,
        "extra_groups": os.getgrouplist(entry.pw_name, entry.pw_gid),
    }


def _account_variables(user_id: int | None) -> dict[str, str]:
    if sys.platform == "win32" or user_id is None or user_id == os.geteuid():
        return {}
    entry = _entry(user_id)
    return {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}


if sys.platform != "win32":

    def _entry(user_id: int) -> pwd.struct_passwd:
        try:
            return pwd.getpwuid(user_id)
        except KeyError:
            raise PermissionError(f"no account has the number {user_id}") from None
