"""``datamanager schedule``: jobs that run by themselves."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datamanager.base.errors import UsageError
from datamanager.cli.command import noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import scheduled_run, schedules
    from datamanager.cli import job_words, schedule_text
    from datamanager.cli.session import Session
    from datamanager.schedule import native, recurrence, words, zones
    from datamanager.state import model
else:
    scheduled_run = lazy("datamanager.app.scheduled_run")
    schedules = lazy("datamanager.app.schedules")
    job_words = lazy("datamanager.cli.job_words")
    schedule_text = lazy("datamanager.cli.schedule_text")
    native = lazy("datamanager.schedule.native")
    recurrence = lazy("datamanager.schedule.recurrence")
    words = lazy("datamanager.schedule.words")
    zones = lazy("datamanager.schedule.zones")
    model = lazy("datamanager.state.model")

command = noun("schedule", "Schedules: backups, test restores and other jobs that run by themselves.")
_DEFAULT_TIME = "1:00AM"


@command.command(
    "add",
    examples=[
        "datamanager schedule add nightly --daily -- backup run office",
        "datamanager schedule add nightly --weekly mon,thu --every 2 --at 11:30PM -- backup run office --rolling",
        "datamanager schedule add proof --monthly 'last friday' --months mar,sep --at 10PM -- drill run",
        "datamanager schedule add month-end --monthly 31 --limit 3h -- backup run office --append-date",
        "datamanager schedule add before-update --once 2026-12-24 --at 8PM -- backup run office",
    ],
)
@click.argument("name")
@click.option("--once", metavar="DATE", help="Once, on this day, as 2026-12-24.")
@click.option("--hourly", is_flag=True, help="Every hour; with --every N every N hours, counted from --at.")
@click.option("--daily", is_flag=True, help="Every day; with --every N every N days.")
@click.option("--weekly", metavar="DAYS", help="On these days of the week, as mon,thu; with --every N every N weeks.")
@click.option("--monthly", metavar="DAY", help="On this day of the month: 15, last, 'last friday' or '2nd tuesday'.")
@click.option("--at", metavar="TIME", default=_DEFAULT_TIME, show_default=True, help="As 1:00AM or 23:30.")
@click.option("--every", type=click.IntRange(1), default=1, metavar="N", help="Only every Nth hour, day or week.")
@click.option("--months", metavar="MONTHS", help="With --monthly: only in these months, as mar,sep.")
@click.option(
    "--short-months",
    type=click.Choice(["last", "skip"]),
    help="With --monthly 29 to 31, in a month without that day: run on its last day (the default), or skip it.",
)
@click.option("--start", metavar="DATE", help="The day from which --every counts; else today. Nothing runs before it.")
@click.option("--zone", metavar="ZONE", help="Whose clocks --at is on, as Europe/Berlin; else this computer's.")
@click.option("--limit", metavar="TIME", help="End the job when it takes longer than this: 90min, 3h.")
@click.option("--disabled", is_flag=True, help="Add it switched off.")
@click.option("--replace", is_flag=True, help="Change the schedule of that name without asking.")
@click.argument("job", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
def add(
    session: Session,
    name: str,
    job: tuple[str, ...],
    at: str,
    zone: str | None,
    limit: str | None,
    disabled: bool,
    replace: bool,
    **times: Any,
) -> Outcome:
    """Let a command run by itself; what follows -- is the command with all of its options.

    Where a schedule of that name is there already, old and new are shown side by side, and it is changed after a yes.
    The service runs schedules (`datamanager service install`); `schedule export` hands one to the operating system's
    own scheduler instead. Backups that exist are never touched by this.
    """
    call = job_words.read_job(job)
    schedules.check_target(session.context, call.cluster, call.repository)
    seconds = None if limit is None else words.read_limit(limit)
    request = model.JobRequest(call.words, call.arguments, call.subject, heavy=call.heavy, limit_seconds=seconds)
    wanted = schedules.Definition(name, _recurrence(session, at, zone, times), request, enabled=not disabled)
    change = schedules.plan(session.context, wanted)
    if change.before is not None:
        _ask(session, change, replace=replace)
    unprotected = schedules.save(session.context, change)
    return _told(session, "added" if change.before is None else "changed", change.after, unprotected, change.before)


def _recurrence(session: Session, at: str, zone: str | None, times: dict[str, Any]) -> recurrence.Recurrence:
    """Raises: UsageError."""
    given = [kind for kind in ("once", "hourly", "daily", "weekly", "monthly") if times[kind]]
    if len(given) != 1:
        said = " and ".join(f"--{kind}" for kind in given) or "none of the kinds"
        raise UsageError(
            f"read options: {said} is given where one is needed",
            hint="Give one of --once, --hourly, --daily, --weekly and --monthly.",
        )
    kind = recurrence.Kind(given[0])
    if kind is not recurrence.Kind.MONTHLY and (times["months"] or times["short_months"]):
        raise UsageError("read options: --months and --short-months are for --monthly", hint="Leave them out.")
    if kind is recurrence.Kind.ONCE and times["start"]:
        raise UsageError("read options: --once takes no --start", hint="Its date is the one given with --once.")
    place = recurrence.check_zone(zone) if zone else zones.machine_zone()
    day, nth, weekdays = words.read_monthly(times["monthly"]) if times["monthly"] else (None, None, ())
    start = times["once"] or times["start"]
    hour = "12:00AM" if kind is recurrence.Kind.HOURLY and at == _DEFAULT_TIME else at
    return recurrence.Recurrence(
        kind,
        place,
        words.read_date(start) if start else schedule_text.today(session.clock.now(), place),
        words.read_time(hour),
        times["every"],
        words.read_weekdays(times["weekly"]) if times["weekly"] else weekdays,
        day,
        nth,
        words.read_months(times["months"]) if times["months"] else (),
        recurrence.ShortMonths(times["short_months"] or "last"),
    )


def _ask(session: Session, change: schedules.Change, *, replace: bool) -> None:
    """Raises: UsageError, unless whoever runs this wants the change."""
    if change.before is None:
        return
    name = change.after.name
    for line in schedule_text.side_by_side(change.before, change.after):
        session.say(line)
    if replace or session.confirm(f"Change schedule {name}?"):
        return
    raise UsageError(
        f"add schedule: {name} is there already and stays as it is",
        hint="Say yes, give --replace to change it without being asked, or choose another name.",
    )


def _told(
    session: Session, done: str, after: model.Schedule, unprotected: str, before: model.Schedule | None = None
) -> Outcome:
    text = (
        f"Schedule {after.name} was {done}: {schedules.in_words(after)}. {schedule_text.next_run(after, _now(session))}"
    )
    data = {**schedule_text.fields(after), "replaced": None if before is None else schedules.described(before)}
    return Outcome(text, data, _warnings(unprotected), log=f"Schedule {after.name} was {done}.")


def _warnings(unprotected: str) -> list[str]:
    if not unprotected:
        return []
    return [f"no enabled schedule backs up {unprotected} any more: it is not protected"]


def _now(session: Session) -> datetime:
    return session.clock.now()


@command.command("list", examples=["datamanager schedule list", "datamanager schedule list --json"])
def list_(session: Session) -> Outcome:
    """List every schedule: what it runs, when next, how it went last, whether it is switched on."""
    found = schedules.listed(session.context)
    text = schedule_text.table(found, _now(session)) or (
        "No schedules yet. Add one, for example\n`datamanager schedule add nightly --daily -- backup run CLUSTER`."
    )
    return Outcome(
        text, {"schedules": [schedule_text.shown_fields(one) for one in found]}, log=f"Listed {len(found)} schedules."
    )


@command.command("show", examples=["datamanager schedule show nightly"])
@click.argument("name")
def show(session: Session, name: str) -> Outcome:
    """Show a schedule: its command, its times in words, its next five runs and its newest results."""
    one = schedules.shown(session.context, name)
    return Outcome(schedule_text.details(one, _now(session)), schedule_text.shown_fields(one), log=f"Showed {name}.")


@command.command("next", examples=["datamanager schedule next", "datamanager schedule next --limit 20"])
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="N", help="So many, the soonest."
)
def next_(session: Session, limit: int) -> Outcome:
    """List the next runs of all schedules, the soonest first."""
    found = schedules.upcoming(session.context, limit)
    lines = [schedule_text.upcoming(moment, one, _now(session)) for moment, one in found]
    values = [
        {
            "schedule": one.schedule.name,
            "due": moment.isoformat(),
            "command": schedules.command_of(one.schedule.request),
        }
        for moment, one in found
    ]
    return Outcome("\n".join(lines) or "Nothing is planned.", {"upcoming": values}, log=f"Listed {len(found)} runs.")


@command.command("remove", examples=["datamanager schedule remove nightly"])
@click.argument("name")
def remove(session: Session, name: str) -> Outcome:
    """Forget a schedule. Its history and all backups stay; the command that brings it back is printed."""
    before, unprotected = schedules.remove(session.context, name)
    again = schedules.command_again(before)
    text = f"Schedule {name} was removed. This brings it back:\n{again}"
    data = {**schedule_text.fields(before), "undo": again}
    return Outcome(text, data, _warnings(unprotected), log=f"Schedule {name} was removed.")


@command.command("enable", examples=["datamanager schedule enable nightly"])
@click.argument("name")
def enable(session: Session, name: str) -> Outcome:
    """Switch a schedule on. What fell in while it was off is not made up for."""
    after, unprotected = schedules.set_enabled(session.context, name, True)
    return _told(session, "enabled", after, unprotected)


@command.command("disable", examples=["datamanager schedule disable nightly"])
@click.argument("name")
def disable(session: Session, name: str) -> Outcome:
    """Switch a schedule off; it stays as it is until it is enabled again."""
    after, unprotected = schedules.set_enabled(session.context, name, False)
    return _told(session, "disabled", after, unprotected)


@command.command("run", examples=["datamanager schedule run nightly", "datamanager schedule run nightly --if-due"])
@click.argument("name")
@click.option(
    "--if-due", is_flag=True, help="Only when a planned run has come that nobody began; for other schedulers."
)
def run(session: Session, name: str, if_due: bool) -> Outcome:
    """Run the job of a schedule now and wait for it; it stands in the schedule's history.

    Ends with the exit code of the job.
    """
    ran = scheduled_run.run(session.context, name, if_due=if_due, say=session.say)
    if ran is None:
        return Outcome(
            f"Nothing is due for {name}.", {"schedule": name, "job": None}, log=f"Nothing was due for {name}."
        )
    job = ran.job
    where = "" if ran.here else " by the service"
    text = f"Schedule {name}: job {job.id} was run{where}: {job.state}.\n{job.summary}\n{job.next_step}".rstrip()
    data = {
        "schedule": name,
        "job": job.id,
        "state": str(job.state),
        "summary": job.summary,
        "job_result": ran.result or dict(job.result),
    }
    return Outcome(text, data, exit_code=_exit_code(job))


def _exit_code(job: model.Job) -> int:
    if job.exit_code is not None:
        return job.exit_code
    return {"done": 0, "done with warnings": 3, "cancelled": 130}.get(str(job.state), 1)


@command.command("suggest", examples=["datamanager schedule suggest office"])
@click.argument("cluster")
@click.option("--zone", metavar="ZONE", help="Whose clocks to answer in; else this computer's.")
def suggest(session: Session, cluster: str, zone: str | None) -> Outcome:
    """Suggest the hour at which a daily backup of CLUSTER disturbs the fewest."""
    found = schedules.suggest(session.context, cluster, zone)
    at = words.clock_time(found.hour.at)
    text = f"Every day at {at} is a good time. {found.hour.reason}\n{found.command}"
    data = {
        "cluster": cluster,
        "at": f"{found.hour.at:%H:%M}",
        "zone": found.zone,
        "measured": found.hour.measured,
        "reason": found.hour.reason,
        "command": found.command,
    }
    return Outcome(text, data)


@command.command(
    "export",
    examples=[
        "datamanager schedule export nightly --to systemd --out /tmp/units",
        "datamanager schedule export nightly --to cron",
    ],
)
@click.argument("name")
@click.option(
    "--to", "system", required=True, type=click.Choice(["systemd", "windows", "cron"]), help="Which scheduler gets it."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the files there; else they are printed.",
)
@click.option("--account", metavar="NAME", help="Who runs it there; else you, unless you are root.")
def export(session: Session, name: str, system: str, out: Path | None, account: str | None) -> Outcome:
    """Hand a schedule to the operating system's own scheduler, for those who want no service of ours.

    It calls `datamanager schedule run NAME --if-due`: the same job, the same history. Where the service runs as well,
    each planned run is still made once.
    """
    found = schedules.exported(session.context, name, native.System(system), account)
    lines = []
    if out is None:
        for file in found.files:
            lines += [f"--- {file.name}", file.text.rstrip("\n")]
    else:
        lines = [f"Wrote {path}." for path in schedules.write_files(out, found.files)]
    lines += ["To install:", *(f"  {step}" for step in found.steps), *(f"Note: {note}" for note in found.warnings)]
    data = {
        "schedule": name,
        "to": system,
        "files": [{"name": file.name, "text": file.text} for file in found.files],
        "folder": None if out is None else str(out.absolute()),
        "steps": list(found.steps),
        "notes": list(found.warnings),
    }
    return Outcome("\n".join(lines), data, log=f"Exported {name} to {system}.")
