"""The command line: ``datamanager NOUN VERB``. Turns every way a command can end into an exit code."""

from __future__ import annotations

import click

from datamanager import __version__
from datamanager.base.errors import UsageError
from datamanager.cli.command import EXIT_STATUS, CommandEnded
from datamanager.cli.output import report_error
from datamanager.cli.table import LazyGroup


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_STATUS,
)
@click.version_option(__version__, prog_name="datamanager")
def cli() -> None:
    """Back up a running PostgreSQL server, prove that the backup comes back, and get data back."""


def run(words: list[str]) -> int:
    """Run a command and return its exit code."""
    try:
        code = cli.main(words, prog_name="datamanager", standalone_mode=False)
    except CommandEnded as ended:
        return ended.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return UsageError.exit_code
    except click.UsageError as error:
        report_error(_usage_error(error), json_lines="--json" in words)
        return UsageError.exit_code
    except click.exceptions.Abort:
        return 130
    return code if isinstance(code, int) else 0


def _usage_error(error: click.UsageError) -> UsageError:
    message = error.format_message().rstrip(".")
    command = error.ctx.command_path if error.ctx else "datamanager"
    return UsageError(
        f"read command: {message[:1].lower()}{message[1:]}", hint=f"Run `{command} --help` to see what it takes."
    )
