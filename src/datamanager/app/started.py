"""Starting a server on what was restored: one that keeps to itself, reached through a socket folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamanager.app.context import Context
from datamanager.app.restores import Restored
from datamanager.base.errors import UsageError
from datamanager.base.events import PhaseStarted, Warned
from datamanager.postgres.account import service_account
from datamanager.postgres.clone import prepare_clone
from datamanager.postgres.facts_model import ServerFacts
from datamanager.postgres.local_server import LocalServer
from datamanager.postgres.programs import find_programs
from datamanager.repository.format import canonical_json


@dataclass(frozen=True)
class Started:
    """A running server.

    Args:
        side: the folder beside the data directory with its socket, log and configuration files.
        conninfo: how a session is opened, by the account that owns the files.
        stop_command: what ends it, as the same account.
    """

    side: Path
    conninfo: str
    account: str
    stop_command: str


def start(context: Context, restored: Restored, port: int) -> Started:
    """Start a restored directory as a clone: no archive, no primary, no subscription, no network.

    Raises: ProgramMissing, ServerDidNotStart, TargetUnfit, ConfigurationError, Cancelled.
    """
    if restored.result is None:
        raise UsageError("start server: a dry run restores nothing", hint="Leave --dry-run or --start out.")
    manifest = restored.plan.manifest
    return start_clone(context, restored.result.target, manifest.cluster, manifest.major, manifest.server, port)


def start_clone(
    context: Context, target: Path, cluster: str, major: int, server_facts: Mapping[str, Any], port: int
) -> Started:
    """The same for a directory of which only that is known. Raises: as ``start``."""
    context.listener(PhaseStarted("starting the server"))
    account = service_account(target)
    known = context.config().clusters.get(cluster)
    programs = find_programs(major, known.install_path if known else None, account=account)
    facts = ServerFacts.from_json(canonical_json(dict(server_facts)))
    side = target.with_name(f"{target.name}.server")
    socket = side / "socket"
    clone = prepare_clone(
        target,
        side,
        facts,
        port=port,
        socket_directory=socket,
        account=account,
        programs=programs,
        shared_preload_libraries=facts.shared_preload_libraries,
    )
    for warning in clone.warnings:
        context.listener(Warned(warning))
    server = LocalServer(
        target,
        programs,
        account,
        socket,
        port,
        clone.options,
        side / "server.log",
        user=facts.superuser,
        on_executed=context.executed,
    )
    server.start(context.stop)
    stop_command = f"{programs.path('pg_ctl')} stop -D {target}"
    return Started(side, server.address.describe(), account.name, stop_command)
