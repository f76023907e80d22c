"""A person's own commands before and after a job: run without a shell, told how it went, ended with all they began."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Literal

from datamanager.base.errors import HookFailed, UsageError
from datamanager.base.events import Executed, Listener, PhaseStarted
from datamanager.base.pipeline import StopToken
from datamanager.base.redacting import redacted_output
from datamanager.system.commands import CommandResult, find_program, run_command, split_command

When = Literal["before", "after"]
PREFIX = "DATAMANAGER_"
# Says to a child which job it is; a command of this program inside a hook is another one.
_OURS_ALONE = ("DATAMANAGER_JOB",)


def parse_hook(text: str, when: When) -> tuple[str, ...]:
    """The words of a hook's command line, whose program must be there. Raises: UsageError."""
    try:
        words = split_command(text)
        find_program(words[0])
    except (ValueError, FileNotFoundError) as error:
        cause = str(error)
        raise UsageError(
            f"read --{when}: {cause[:1].lower()}{cause[1:]}",
            hint="Give a program and its arguments. No shell reads them: put pipes and redirections into a script.",
        ) from None
    return words


def run_hook(
    words: tuple[str, ...],
    when: When,
    facts: Mapping[str, str],
    *,
    limit_seconds: float,
    stop: StopToken,
    listener: Listener,
    mask: Callable[[str], str],
) -> None:
    """Run one hook to its end.

    Args:
        facts: what it is told in variables: ``{"RESULT": "done"}`` becomes DATAMANAGER_RESULT.
        mask: takes known secrets out of a text.

    Raises: HookFailed (it could not be run, failed, or took longer than its limit, after which nothing of it is left);
        Cancelled, likewise.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _OURS_ALONE}
    environment |= {f"{PREFIX}{name}": value for name, value in facts.items()}
    shown = mask(redacted_output(_shown(words), environment))
    listener(PhaseStarted(f"running the command {when} the job"))
    listener(Executed(f"command {when} the job: {shown}"))
    result = run_command(words, limit_seconds=limit_seconds, stop=stop, environment=environment)
    listener(Executed(mask(_told(when, result))))
    if result.problem:
        raise HookFailed(
            f"run command {when} the job: {shown}: {mask(result.explained)}",
            hint="Mend the command, or leave it out; what it said stands in the log.",
        )


def _shown(words: tuple[str, ...]) -> str:
    """Long arguments are cut: a line of a log is for people."""
    line = subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
    return line if len(line) <= 500 else f"{line[:500]} …"


def _told(when: When, result: CommandResult) -> str:
    end = f"command {when} the job: {result.problem or 'done'} after {result.seconds:.1f} s"
    return f"{end}\n{result.output}".strip()
