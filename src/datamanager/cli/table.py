"""The command table: which module holds which command, and the one line that help shows without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import click

from datamanager.cli.lazy import load


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: ``module`` holds it as ``command``; ``help`` is its line in the list."""

    module: str
    help: str


COMMANDS: Mapping[str, Entry] = {
    "demo": Entry("datamanager.cli.demo", "Show the whole way on a sample clinic: back up, change, restore, compare."),
    "status": Entry("datamanager.cli.status", "Is the data safe? The verdict, what is wrong, and what mends it."),
    "repo": Entry("datamanager.cli.repo", "Repositories: where backups are kept, and their keys."),
    "cluster": Entry("datamanager.cli.cluster", "Clusters: the PostgreSQL servers that are backed up."),
    "backup": Entry("datamanager.cli.backup", "Make backups, list them, export them."),
    "expire": Entry("datamanager.cli.expire", "Let the backups go that the retention of a cluster does not keep."),
    "restore": Entry("datamanager.cli.restore", "Restore a backup into a new directory."),
    "wal": Entry("datamanager.cli.wal", "WAL: the archive from which every moment can be restored."),
    "drill": Entry("datamanager.cli.drill", "Test restores: prove that a backup comes back."),
    "schedule": Entry("datamanager.cli.schedule", "Schedules: backups and other jobs that run by themselves."),
    "job": Entry("datamanager.cli.job", "Jobs: what ran, what runs and what waits, their logs, and ending one."),
    "serve": Entry("datamanager.cli.serve", "Run schedules and their jobs until stopped; what the service runs."),
    "service": Entry("datamanager.cli.service", "Run schedules with nobody signed in: a service of this computer."),
    "services": Entry("datamanager.cli.services", "Services that are stopped around a job, and started again."),
    "notify": Entry("datamanager.cli.notify", "Notifications: who is told of failures, and how."),
    "audit": Entry("datamanager.cli.audit", "The audit log: who changed what, when and why."),
    "config": Entry("datamanager.cli.config", "Show and change the configuration."),
    "logs": Entry("datamanager.cli.logs", "Where the logs of all runs are."),
}


class LazyGroup(click.Group):
    """A group whose commands are modules, imported by name when they are used.

    Source: click documentation, Complex Applications, Lazily Loading Subcommands.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = load(entry.module).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])
