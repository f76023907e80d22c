"""Running one contender's command: as which account, for how long, with what output, in how much memory."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# No command of a benchmark of a few GB takes this long; one that does hangs.
TIMEOUT_SECONDS = 3600.0
# A walk over the job's processes takes some 100 µs, so this costs half a percent of one core.
SAMPLE_SECONDS = 0.02

_CHILDREN_LISTED = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists()


class ContenderFailed(Exception):
    """A contender cannot be measured; the message says why and stands in the table."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory of all processes of a job together, in bytes, at one sample; mapped pages apart."""

    anonymous_bytes: int = 0
    mapped_bytes: int = 0
    processes: int = 0

    def most(self, other: Peak) -> Peak:
        return Peak(
            max(self.anonymous_bytes, other.anonymous_bytes),
            max(self.mapped_bytes, other.mapped_bytes),
            max(self.processes, other.processes),
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ended with an exit code that counts as success."""

    seconds: float
    stdout: str
    peak: Peak = field(default_factory=Peak)
    anonymous_over_time: tuple[int, ...] = ()
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a command runs as: PostgreSQL's account when the harness is root, else whoever runs the harness."""

    user: str | None = None

    def own(self, path: Path) -> Path:
        """Give ``path`` to the account."""
        if self.user is not None:
            shutil.chown(path, self.user, self.user)
        return path

    def make_folder(self, path: Path) -> Path:
        path.mkdir(parents=True, mode=0o700)
        return self.own(path)


def need_program(name: str, package: str) -> str:
    """The path of a program on PATH. Raises: ContenderFailed, naming the package to install."""
    found = shutil.which(name)
    if found is None:
        raise ContenderFailed(f"{name} is not installed (package {package})")
    return found


def run(
    command: Sequence[str] | str,
    *,
    account: Account | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    sample_memory: bool = False,
    accepted: Collection[int] = (0,),
) -> Finished:
    """Run a command, or a shell pipeline given as one string, to its end; wall time of the whole process.

    Args: account - None: the harness's own. sample_memory - also sum up memory, every 20 ms. accepted - exit codes.
    Raises: ContenderFailed on a missing program, a failing exit code (any part of a pipeline) or the time limit.
    """
    argv = ["bash", "-o", "pipefail", "-c", command] if isinstance(command, str) else list(command)
    user = account.user if account is not None else None
    began = time.perf_counter()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            user=user,
            group=user,
            extra_groups=[] if user is not None else None,
            start_new_session=True,
        )
    except OSError as error:
        raise ContenderFailed(f"{Path(argv[0]).name} cannot be run: {error.strerror}") from error
    with _ended_with_its_group(process):
        stdout, stderr, samples = _attend(process, Path(argv[0]).name, sample_memory)
    seconds = time.perf_counter() - began
    if process.returncode not in accepted:
        raise ContenderFailed(_failure(command, process.returncode, (stderr or stdout).decode(errors="replace")))
    peak = functools.reduce(Peak.most, samples, Peak())
    over_time = tuple(sample.anonymous_bytes for sample in samples)
    return Finished(seconds, stdout.decode(errors="replace"), peak, over_time, process.returncode)


@contextlib.contextmanager
def _ended_with_its_group(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever happens, nothing of the command's own session stays behind."""
    try:
        yield
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _attend(process: subprocess.Popen[bytes], name: str, sample_memory: bool) -> tuple[bytes, bytes, list[Peak]]:
    """Collect the output to the end, sampling meanwhile if asked. Raises: ContenderFailed at the time limit."""
    samples: list[Peak] = []
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        try:
            stdout, stderr = process.communicate(timeout=SAMPLE_SECONDS if sample_memory else TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            samples.append(_sample(process.pid))
            continue
        return stdout, stderr, samples
    raise ContenderFailed(f"{name} did not end within {TIMEOUT_SECONDS:.0f} s")


def _sample(root: int) -> Peak:
    anonymous = mapped = count = 0
    for pid in _tree(root):
        with contextlib.suppress(OSError):
            values = _status(pid)
            anonymous += values.get("RssAnon", 0) + values.get("RssShmem", 0)
            mapped += values.get("RssFile", 0)
            count += 1
    return Peak(anonymous, mapped, count)


def _tree(root: int) -> list[int]:
    """The process and all its descendants, by the kernel's own lists of children (proc(5), task/children)."""
    if not _CHILDREN_LISTED:
        # A kernel built without the lists: slower, the whole process table is read.
        with contextlib.suppress(psutil.Error):
            return [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    waiting += [int(child) for child in (task / "children").read_text().split()]
    return found


def _status(pid: int) -> dict[str, int]:
    """The Rss lines of /proc/PID/status in bytes."""
    with open(f"/proc/{pid}/status") as file:
        return {
            name: int(value.split()[0]) * 1024
            for name, _, value in (line.partition(":") for line in file)
            if name.startswith("Rss")
        }


def _failure(command: Sequence[str] | str, code: int, output: str) -> str:
    # Of a Python traceback only the last line is of use in a table.
    lines = [line.strip() for line in output.rpartition("Traceback (most recent")[2].splitlines() if line.strip()]
    if "Traceback (most recent" in output:
        lines = lines[-1:]
    name = command.split()[0] if isinstance(command, str) else " ".join([Path(command[0]).name, *command[1:3]])
    return f"{name} ended with {code}: {' / '.join(lines[-3:]) or 'no message'}"
