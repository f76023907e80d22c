"""``datamanager restore --in-place``: what ``cli/restore.py`` calls for it, and the verbs for what it set aside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datamanager.base.errors import UsageError
from datamanager.cli.command import Command
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import in_place, in_place_cluster, in_place_delta, readiness
    from datamanager.app.in_place_cluster import Around
    from datamanager.app.moments import Moment
    from datamanager.app.opening import Unlocking
    from datamanager.cli import in_place_text, readiness_text
    from datamanager.cli.session import Session
else:
    in_place = lazy("datamanager.app.in_place")
    in_place_cluster = lazy("datamanager.app.in_place_cluster")
    in_place_delta = lazy("datamanager.app.in_place_delta")
    in_place_text = lazy("datamanager.cli.in_place_text")
    readiness = lazy("datamanager.app.readiness")
    readiness_text = lazy("datamanager.cli.readiness_text")


@dataclass(frozen=True)
class PlaceOptions:
    """The options of ``restore`` that are for a restore in place alone."""

    in_place: bool = False
    delta: bool = False
    confirm: str | None = None
    no_safety_backup: bool = False
    unreadable: bool = False
    data_directory: Path | None = None
    service: str | None = None
    managed: bool = False
    drain: int = 0

    def require_unused(self) -> None:
        """Raises: UsageError, when one was given without --in-place."""
        if self != PlaceOptions():
            raise UsageError(
                "read options: --delta, --confirm, --no-safety-backup, --unreadable, --data-directory, --service, "
                "--managed and --drain are for a restore in place",
                hint="Leave them out, or give --in-place.",
            )

    def around(self) -> Around:
        return in_place_cluster.Around(self.data_directory, self.service, self.managed, float(self.drain))


_HANDLING = (
    click.option(
        "--drain",
        type=click.IntRange(0, 86_400),
        default=0,
        metavar="SECONDS",
        help="Wait so long for sessions to end.",
    ),
    click.option("--managed", is_flag=True, help="Its cluster manager (Patroni, Pacemaker) was told to keep away."),
    click.option("--service", metavar="NAME", help="The server's service, where it is not found out."),
    click.option(
        "--data-directory",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Its data directory, where its server does not tell.",
    ),
)


def place_options(body: Callable[..., Any]) -> Callable[..., Any]:
    """The options that a restore in place needs; the body gets one ``for_place``."""

    @functools.wraps(body)
    def command(
        session: Session,
        *,
        in_place: bool,
        delta: bool,
        confirm: str | None,
        no_safety_backup: bool,
        unreadable: bool,
        data_directory: Path | None,
        service: str | None,
        managed: bool,
        drain: int,
        **parameters: Any,
    ) -> Outcome:
        given = PlaceOptions(
            in_place, delta, confirm, no_safety_backup, unreadable, data_directory, service, managed, drain
        )
        outcome: Outcome = body(session, for_place=given, **parameters)
        return outcome

    made: Callable[..., Any] = command
    for option in (
        *_HANDLING,
        click.option("--unreadable", is_flag=True, help="The directory is this cluster's, though it cannot be told."),
        click.option("--no-safety-backup", is_flag=True, help="Do not back up first what is there."),
        click.option("--confirm", metavar="CLUSTER", help="That cluster's data may be replaced; else it is asked for."),
        click.option(
            "--delta",
            is_flag=True,
            help="With --in-place: write over the data what differs at that moment, where there is no room for both. No"
            " way back.",
        ),
        click.option(
            "--in-place",
            is_flag=True,
            help="Replace the data of --cluster, which are kept: `restore undo` brings them back.",
        ),
    ):
        made = option(made)
    return made


def _handling(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in _HANDLING:
        command = option(command)
    return command


def restore_in_place(
    session: Session,
    backup: str,
    cluster: str | None,
    repository: str | None,
    moment: Moment,
    given: PlaceOptions,
    unlocking: Unlocking,
    others: Mapping[str, object],
    *,
    dry_run: bool,
) -> Outcome:
    """Restore in place of a cluster's data.

    Args: others - what was given for options that such a restore does not have.
    Raises: UsageError, for such an option or without the cluster's name; as ``app.in_place.run``.
    """
    misplaced = [name for name, value in others.items() if value]
    if misplaced:
        raise UsageError(
            f"read options: {misplaced[0]} and --in-place contradict each other", hint=f"Leave {misplaced[0]} out."
        )
    name = cluster or _only_cluster(session)
    if given.delta:
        return _restore_by_delta(session, name, backup, repository, moment, given, unlocking, dry_run=dry_run)
    request = in_place.Request(
        name, backup, moment, repository, given.around(), not given.no_safety_backup, given.unreadable
    )
    planned = in_place.plan(session.context, request, unlocking, finishing=not dry_run)
    if isinstance(planned, readiness.NotReady):
        return readiness_text.not_ready(planned, dry_run=dry_run)
    text = in_place_text.planned(planned, moment)
    if dry_run or readiness.refusal(planned.findings) is not None:
        data = {**in_place_text.planned_fields(planned, moment), "dry_run": dry_run}
        return readiness_text.planned(text, data, planned.findings, planned.warnings)
    if given.confirm is None:
        session.console.say(text)
    _require_name(session, name, given.confirm, "Its data will be replaced, and kept beside the restored ones.")
    done = in_place.run(session.context, request, unlocking)
    data = {**in_place_text.planned_fields(done.planned, moment), "dry_run": False, **in_place_text.done_fields(done)}
    return Outcome(in_place_text.done(done, moment), data, list(done.result.warnings))


def _restore_by_delta(
    session: Session,
    name: str,
    backup: str,
    repository: str | None,
    moment: Moment,
    given: PlaceOptions,
    unlocking: Unlocking,
    *,
    dry_run: bool,
) -> Outcome:
    if given.unreadable:
        raise UsageError(
            "restore in place: --delta is for a cluster that can be told", hint="Leave --delta or --unreadable out."
        )
    request = in_place_delta.Request(name, backup, moment, repository, given.around(), not given.no_safety_backup)
    planned = in_place_delta.plan(session.context, request, unlocking, read_wal=dry_run)
    text = in_place_text.delta_planned(planned)
    if dry_run or readiness.refusal(planned.findings) is not None:
        data = {**in_place_text.delta_fields(planned), "dry_run": dry_run}
        return readiness_text.planned(text, data, planned.findings, planned.warnings)
    if given.confirm is None:
        session.console.say(text)
    _require_name(session, name, given.confirm, "Its data will be overwritten, and there is no way back.")
    done = in_place_delta.run(session.context, request, unlocking)
    data = {**in_place_text.delta_fields(done.planned), "dry_run": False, **in_place_text.delta_done_fields(done)}
    return Outcome(in_place_text.delta_done(done), data, [*done.planned.warnings, *done.warnings])


def _only_cluster(session: Session) -> str:
    clusters = sorted(session.context.config().clusters)
    if len(clusters) != 1:
        raise UsageError(
            "restore in place: it is not said of which cluster",
            hint=f"Name it with --cluster; they are: {', '.join(clusters) or 'none yet'}.",
        )
    return clusters[0]


def _require_name(session: Session, name: str, confirmed: str | None, what: str) -> None:
    """The cluster's name, typed or given. Raises: UsageError."""
    if confirmed is None:
        confirmed = session.answer(f"{what} Type the name of the cluster to go on:")
    if confirmed != name:
        raise UsageError(
            f"restore in place: it is not confirmed that the data of {name} may be replaced",
            hint=f"Nothing was changed. Give --confirm {name} when that is what you want.",
        )


@click.command(
    "undo",
    cls=Command,
    examples=["datamanager restore undo office --dry-run", "datamanager restore undo office --confirm office"],
    job=True,
    heavy=True,
    if_failed="The data that were in force before are in force.",
)
@click.argument("cluster", metavar="CLUSTER")
@click.option("--to", "identity", metavar="ID", help="The state of `restore kept` that comes back; else the newest.")
@click.option("--confirm", metavar="CLUSTER", help="That cluster's data may be exchanged; else it is asked for.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and stop.")
@_handling
def undo(
    session: Session,
    cluster: str,
    identity: str | None,
    confirm: str | None,
    dry_run: bool,
    data_directory: Path | None,
    service: str | None,
    managed: bool,
    drain: int,
) -> Outcome:
    """Put the data back that a restore in place set aside. What is in force now is kept likewise.

    Only directories are renamed, so it takes seconds. What was written since the restore is set aside with it.
    """
    around = in_place_cluster.Around(data_directory, service, managed, float(drain))
    plan, _ = in_place.plan_back(session.context, cluster, around, identity)
    text = "\n".join(one[:1].upper() + one[1:] + "." for one in plan.lines())
    data = in_place_text.undo_fields(plan)
    if dry_run:
        return Outcome(text, {**data, "dry_run": True}, list(plan.warnings))
    if confirm is None:
        session.console.say(text)
    _require_name(session, cluster, confirm, "What was written since then will be set aside.")
    result = in_place.back(session.context, cluster, around, identity)
    return Outcome(
        in_place_text.undone(cluster, result), {**data, **in_place_text.undone_fields(result)}, list(result.warnings)
    )


@click.command("complete", cls=Command, examples=["datamanager restore complete office"])
@click.argument("cluster", metavar="CLUSTER")
@_handling
def complete(
    session: Session, cluster: str, data_directory: Path | None, service: str | None, managed: bool, drain: int
) -> Outcome:
    """Bring a restore in place, or its undo, to its end that was cut off: by a power cut, a crash, a kill.

    Before the exchange of the data everything is put back, after it everything is completed, and what was restored is
    backed up. Where `datamanager serve` runs, it does this by itself.
    """
    around = in_place_cluster.Around(data_directory, service, managed, float(drain))
    ended = in_place.finish(session.context, cluster, around)
    if ended is None:
        return Outcome(f"No restore of {cluster} is unfinished.", {"cluster": cluster, "finished": None})
    finished, following = ended.finished, ended.following
    told = {"kind": finished.kind, "completed": finished.completed, "data_directory": str(finished.data_directory)}
    text = str(finished)
    lines = [f"{text[:1].upper()}{text[1:]}."]
    backup = following.result.manifest.backup if following is not None else None
    if backup is not None:
        lines.append(f"The restored cluster was backed up: {backup}.")
    return Outcome("\n".join(lines), {"cluster": cluster, "finished": told, "following_backup_id": backup})


@click.command("kept", cls=Command, examples=["datamanager restore kept office"])
@click.argument("cluster", metavar="CLUSTER")
@_handling
def kept(
    session: Session, cluster: str, data_directory: Path | None, service: str | None, managed: bool, drain: int
) -> Outcome:
    """List the data that restores in place, and their undoing, set aside."""
    around = in_place_cluster.Around(data_directory, service, managed, float(drain))
    found = in_place.kept(session.context, cluster, around)
    data = {"cluster": cluster, "kept": [in_place_text.kept_fields(one) for one in found]}
    return Outcome(in_place_text.kept_list(cluster, found, session.clock.now()), data)


@click.command("forget", cls=Command, examples=["datamanager restore forget office 1a2b3c4d --confirm office"])
@click.argument("cluster", metavar="CLUSTER")
@click.argument("identity", metavar="ID")
@click.option("--confirm", metavar="CLUSTER", help="It may be deleted for good; else it is asked for.")
@_handling
def forget(
    session: Session,
    cluster: str,
    identity: str,
    confirm: str | None,
    data_directory: Path | None,
    service: str | None,
    managed: bool,
    drain: int,
) -> Outcome:
    """Delete data that were set aside, for good. ID is that of `restore kept`."""
    around = in_place_cluster.Around(data_directory, service, managed, float(drain))
    _require_name(session, cluster, confirm, f"The data kept as {identity} will be deleted for good.")
    gone = in_place.forget(session.context, cluster, around, identity)
    return Outcome(
        f"{gone.place} was deleted; there is no way back to the data of {in_place_text.moment_of(gone)}.",
        {"cluster": cluster, "deleted": in_place_text.kept_fields(gone)},
    )
