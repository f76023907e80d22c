"""``datamanager expire``: let the backups go that the retention of a cluster does not keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from datamanager.base.errors import UsageError
from datamanager.cli.command import Command, key_options
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import expiry
    from datamanager.app.opening import Unlocking
    from datamanager.cli import retention_text
    from datamanager.cli.session import Session
else:
    expiry = lazy("datamanager.app.expiry")
    retention_text = lazy("datamanager.cli.retention_text")

_COUNT = click.IntRange(0, 1_000_000)
_PERIODS = ("hour", "day", "week", "month", "year")
_ADVERBS = {"day": "daily"}


def _keep_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The rules, each in place of the configured one for this run."""
    command = click.option(
        "--keep-minimum",
        "minimum",
        type=click.IntRange(1, 1_000_000),
        metavar="N",
        help="Keep the newest N undamaged ones whatever the rules say.",
    )(command)
    for period in reversed(_PERIODS):
        word = _ADVERBS.get(period, f"{period}ly")
        text = f"Keep the newest of each of the last N {period}s that have a backup."
        command = click.option(f"--keep-{word}", word, type=_COUNT, metavar="N", help=text)(command)
    command = click.option(
        "--keep-within", "within", metavar="TIME", help="Keep what is no older than this: 36h, 14d, 3w; 0 sets no rule."
    )(command)
    return click.option("--keep-last", "last", type=_COUNT, metavar="N", help="Keep the newest N; 0 sets no rule.")(
        command
    )


@click.command(
    "expire",
    cls=Command,
    examples=[
        "datamanager expire office --dry-run",
        "datamanager expire office",
        "datamanager expire office --repo usb2 --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run",
    ],
    job=True,
    if_failed="Backups that should go may still be there; none went that is to stay.",
)
@click.argument("cluster")
@click.option("--repo", "repository", metavar="REPO", help="Where; else the cluster's repository, or the only one.")
@click.option("--dry-run", is_flag=True, help="Only show what would stay and go, and why.")
@_keep_options
@key_options
def command(
    session: Session,
    cluster: str,
    repository: str | None,
    dry_run: bool,
    unlocking: Unlocking,
    **rules: Any,
) -> Outcome:
    """Show for each backup of CLUSTER why it stays or goes, and what can no longer be restored; then let those go.

    The rules are the cluster's (`keep_last`, `keep_daily` and so on, see `cluster set`); an option takes the place of
    one for this run. Without any rule everything stays. The newest backup, the newest undamaged one and pinned ones
    always stay. Space is given back by `repo prune`; until then `backup undelete` brings a backup back.
    """
    wanted = _rules(rules)
    with expiry.planning(session.context, cluster, repository, wanted, unlocking, dry_run=dry_run) as plan:
        for line in retention_text.lines(plan.decisions):
            session.say(line)
        plan.apply()
        return _outcome(cluster, plan, dry_run=dry_run)


def _rules(given: dict[str, Any]) -> expiry.Rules:
    try:
        return expiry.checked(expiry.Rules(**given))
    except ValueError as error:
        raise UsageError(f"read --keep-within: {error}", hint="Write it as 14d, for 14 days.") from None


def _outcome(cluster: str, plan: expiry.ExpiryPlan, *, dry_run: bool) -> Outcome:
    where = plan.repository.title
    going = len(plan.going) if dry_run else len(plan.marked)
    stays = len(plan.decisions) - going
    data: dict[str, Any] = {
        "cluster": cluster,
        "repository": where,
        "dry_run": dry_run,
        "backups": [retention_text.fields(one) for one in plan.decisions],
        "expired": list(plan.marked),
    }
    counted = retention_text.counted
    if not plan.decisions:
        return Outcome(f"{where} holds no backup of {cluster}.", data)
    if plan.policy.keeps_everything and not going:
        text = f"No retention is set for {cluster}: all {counted(stays)} in {where} stay."
        return Outcome(f"{text}\nSet one, for example `datamanager cluster set {cluster} keep_daily=7`.", data)
    if dry_run:
        return Outcome(f"{cluster} in {where}: {counted(going)} would go, {stays} would stay.", data)
    text = f"{cluster} in {where}: {counted(going)} went, {stays} stay."
    if going:
        text += (
            f"\n`datamanager repo prune {where}` gives the space back; until then `datamanager backup undelete ID` "
            "brings one back."
        )
    kept = sorted(set(plan.going) - set(plan.marked))
    warnings = [f"{one} was pinned meanwhile and stays" for one in kept]
    return Outcome(text, data, warnings)
