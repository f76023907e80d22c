"""A command that has verbs of its own beside what it takes: ``restore latest``, and ``restore finish DIR``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from datamanager.cli.command import Command


class CommandWithVerbs(Command):
    """A command whose first word may be a verb. Args: verbs - other commands, by that word."""

    def __init__(self, *args: Any, verbs: Mapping[str, Command], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.verbs = dict(verbs)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """That of the verb, where the first word is one."""
        verb = self.verbs.get(args[0]) if args else None
        if verb is None:
            return super().make_context(info_name, args, parent, **extra)
        return verb.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, one.get_short_help_str(80)) for name, one in self.verbs.items()])
        super().format_epilog(ctx, formatter)
