"""Reading a command that is to run later: parsed now as it will be then, so that it cannot fail for a typing error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from datamanager.base.errors import UsageError
from datamanager.cli.command import Command
from datamanager.cli.session import Invocation
from datamanager.cli.table import COMMANDS, LazyGroup

_PROGRAM = "datamanager"


def read_job(words: Sequence[str]) -> Invocation:
    """The job that ``words`` mean, as ``backup run office``.

    Raises: UsageError, when that is no command, no job, lacks something, or would depend on who runs it from where.
    """
    given = list(words)[1:] if words[:1] == [_PROGRAM] else list(words)
    if not given or {"-h", "--help"} & set(given):
        raise UsageError("read command: there is none", hint=f"Give it after --, for example {_example()}.")
    try:
        call, context = _parsed(given)
    except click.UsageError as error:
        message = error.format_message().rstrip(".")
        path = error.ctx.command_path if error.ctx else _PROGRAM
        raise UsageError(
            f"read command: {message[:1].lower()}{message[1:]}", hint=f"Run `{path} --help` to see what it takes."
        ) from error
    if not call.recorded:
        raise UsageError(
            f"read command: {call.words} is not a job that can be scheduled",
            hint=f"Those that can be are: {', '.join(job_commands())}; without --dry-run.",
        )
    _check_paths(context)
    return call


def _example() -> str:
    return "`-- backup run CLUSTER`"


def _parsed(words: list[str]) -> tuple[Invocation, click.Context]:
    """Raises: click.UsageError, UsageError."""
    context = click.Context(LazyGroup(_PROGRAM), info_name=_PROGRAM)
    rest = words
    while isinstance(context.command, click.Group):
        if not rest:
            raise click.UsageError("a verb is missing", context)
        name, command, rest = context.command.resolve_command(context, rest)
        if isinstance(command, Command):
            made = command.make_context(name, rest, parent=context)
            # It may have made the context of one of its verbs.
            called = made.command if isinstance(made.command, Command) else command
            return called.call(made), made
        if not isinstance(command, click.Group):
            break
        context = click.Context(command, info_name=name, parent=context)
    raise click.UsageError("it is no command", context)


def _check_paths(context: click.Context) -> None:
    """A relative path would mean another place when a service runs it. Raises: UsageError."""
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path) and not path.is_absolute():
                raise UsageError(f"read command: {path} is a relative path", hint=f"Give it as {path.absolute()}.")


def job_commands() -> list[str]:
    """The commands that can be queued, in the order of the table."""
    return [words for name in COMMANDS for words in _jobs_of(name)]


def _jobs_of(name: str) -> Iterator[str]:
    command = LazyGroup(_PROGRAM).get_command(click.Context(LazyGroup(_PROGRAM)), name)
    members = command.commands.items() if isinstance(command, click.Group) else [("", command)]
    for verb, member in members:
        if isinstance(member, Command) and member.job:
            yield f"{name} {verb}".strip()
