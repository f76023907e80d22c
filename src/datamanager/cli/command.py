"""What every command has in common: ``--json``, help with examples, signals, the log, warnings and exit codes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.cli import session
    from datamanager.cli.session import Invocation, Session
else:
    from datamanager.cli.lazy import lazy

    session = lazy("datamanager.cli.session")

EXIT_STATUS = (
    "Exit status: 0 done; 3 done with warnings; 2 the command was given something it cannot use; 130 stopped; "
    "any other number is the kind of failure, listed in docs/exit-codes.md."
)

FILE = click.Path(path_type=Path, dir_okay=False)
Body = Callable[..., Outcome]


class CommandEnded(Exception):
    """Carries the exit code from a finished command to ``main``."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


# Parameters that may name what a job is about; the first one given does.
_SUBJECTS = ("cluster", "name", "repository")
_ARGUMENTS = "datamanager.arguments"
_JSON = "--json"


class Command(click.Command):
    """A command with ``--json`` and examples.

    Args:
        examples: lines as typed.
        job: it stands in the history, can be queued, watched and cancelled; others leave a log alone.
        heavy: as a job, never beside another heavy one of the same subject.
        if_failed: what it means if the job fails, one sentence (R95).
    """

    def __init__(
        self,
        *args: Any,
        examples: Sequence[str] = (),
        job: bool = False,
        heavy: bool = False,
        if_failed: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.job = job
        self.heavy = heavy
        self.if_failed = if_failed
        self.params.append(
            click.Option(
                [_JSON, "json_lines"],
                is_flag=True,
                help="Write one JSON object a line; the last is the result or the error.",
            )
        )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
        formatter.write_paragraph()
        formatter.write_text(EXIT_STATUS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = tuple(one for one in args if one != _JSON)
        return super().parse_args(ctx, args)

    def call(self, ctx: click.Context) -> Invocation:
        """What was called, for the log, the history and the queue."""
        given = {name: session.redacted(str(ctx.params[name])) for name in _SUBJECTS if ctx.params.get(name)}
        # What only says what it would do is no run that the history should count.
        job = self.job and not ctx.params.get("dry_run")
        return session.Invocation(
            ctx.command_path.split(" ", 1)[1],
            ctx.meta[_ARGUMENTS],
            next(iter(given.values()), "") if job else "",
            job,
            self.heavy,
            self.if_failed or "It did not do what it was asked for.",
            given.get("repository"),
            given.get("cluster"),
        )

    def invoke(self, ctx: click.Context) -> None:
        """Run the body inside a session and end with its exit code. Raises: CommandEnded."""
        parameters = dict(ctx.params)
        json_lines = bool(parameters.pop("json_lines"))
        body = self.callback
        if body is None:
            raise TypeError(f"command {self.name} has no body")
        raise CommandEnded(session.run(self.call(ctx), body, parameters, json_lines=json_lines))


class Group(click.Group):
    """A noun: its verbs are in the same module."""

    command_class = Command


def noun(name: str, text: str) -> Group:
    """An empty group; ``text`` is its help."""
    return Group(name, help=text, epilog=EXIT_STATUS)


def key_options(body: Callable[..., Any]) -> Callable[..., Any]:
    """The options that bring a key; the body gets one ``unlocking``.

    Without them the configured key file opens, or a passphrase is asked for.
    """

    @functools.wraps(body)
    def command(
        session: Session,
        *,
        passphrase_file: Path | None,
        recovery_code_file: Path | None,
        key_file: Path | None,
        **parameters: Any,
    ) -> Outcome:
        unlocking = session.unlocking(passphrase_file, recovery_code_file, key_file)
        outcome: Outcome = body(session, unlocking=unlocking, **parameters)
        return outcome

    made: Callable[..., Any] = command
    for name, text in (
        ("--key-file", "Open the repository with this key file."),
        ("--recovery-code-file", "Open the repository with the recovery code in this file."),
        ("--passphrase-file", "Open the repository with the passphrase on this file's first line."),
    ):
        made = click.option(name, type=FILE, metavar="FILE", help=text)(made)
    return made
