"""The summary that comes although nothing went wrong, so that silence never has to be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from datamanager.base.units import format_size
from datamanager.config.model import DigestPace, NotifyConfig, NotifyEvent, Weekday
from datamanager.notify.message import Message, Sender, day, heading, moment, one_line, title_of
from datamanager.state.model import Alert, Job, JobState, KnownCluster, Proof

LONGEST = timedelta(days=31)
_DAYS = {DigestPace.DAILY: 1, DigestPace.WEEKLY: 7}


@dataclass(frozen=True, slots=True)
class Period:
    """What a summary is about.

    Args:
        findings: what is wrong or at risk now, as sentences.
        verdict: one sentence on how safe the data is, empty when nobody judged.
    """

    begin: datetime
    end: datetime
    jobs: Sequence[Job]
    proofs: Sequence[Proof]
    alerts: Sequence[Alert]
    clusters: Sequence[KnownCluster]
    findings: Sequence[str] = ()
    verdict: str = ""


def planned(config: NotifyConfig, now: datetime, zone: tzinfo) -> datetime | None:
    """The newest planned moment of the summary that is not after ``now``; None where none is wanted.

    An hour that a change of the clocks skips comes an hour later, one that comes twice counts the first time.
    """
    if config.digest is DigestPace.NONE:
        return None
    today = now.astimezone(zone).date()
    for back in range(2 * _DAYS[config.digest] + 1):
        on = today - timedelta(days=back)
        if config.digest is DigestPace.DAILY or on.weekday() == list(Weekday).index(config.digest_day):
            found = _at(on, config.digest_hour, zone)
            if found <= now:
                return found
    return None


def _at(on: date, hour: int, zone: tzinfo) -> datetime:
    return datetime.combine(on, time(hour), zone).astimezone(UTC)


def summary(sender: Sender, period: Period) -> Message:
    """The text of a summary."""
    lines = [*heading(sender), ""]
    if period.verdict:
        lines += [one_line(period.verdict), ""]
    lines += [f"FROM {_when(period.begin, sender)} TO {_when(period.end, sender)}"]
    names = sorted({one.name for one in period.clusters} | {job.request.subject for job in _backups(period)})
    for name in names:
        lines += _cluster(name, period, sender)
    if not names:
        lines.append("No database server is backed up yet.")
    others = Counter(_result(job) for job in period.jobs if job.request.kind not in ("backup run", "drill run"))
    if others:
        lines += ["", f"Other runs: {_counted(others)}."]
    lines += ["", "WHAT IS WRONG NOW"]
    lines += [f"- {one_line(alert.title)}, since {moment(alert.first_seen, sender.zone)}" for alert in period.alerts]
    lines += [f"- {one_line(sentence)}" for sentence in period.findings]
    wrong = len(period.alerts) + len(period.findings)
    if not wrong:
        lines.append("Nothing that this program knows of.")
    step = "Run: datamanager status" if wrong else "Nothing."
    lines += ["", "WHAT TO DO NEXT", step, ""]
    failed = sum(job.state is JobState.FAILED for job in period.jobs)
    title = f"Summary: {_failures(failed)}, {_wrong(wrong)}"
    return Message(
        id=f"digest@{period.end:%Y%m%dT%H%M%S.%fZ}",
        key="digest",
        event=NotifyEvent.DIGEST,
        title=title_of(sender, title),
        body="\n".join(lines),
        created=period.end,
    )


def _backups(period: Period) -> list[Job]:
    return [job for job in period.jobs if job.request.kind == "backup run" and job.request.subject]


def _cluster(name: str, period: Period, sender: Sender) -> list[str]:
    known = next((one for one in period.clusters if one.name == name), None)
    databases = known.databases if known else ()
    mine = [job for job in _backups(period) if job.request.subject == name]
    lines = ["", f"Database server: {one_line(name)}"]
    if databases:
        lines.append(f"Databases: {one_line(', '.join(map(one_line, databases)))}")
    if known is not None and known.size_bytes is not None:
        lines.append(f"Size: {format_size(known.size_bytes)}")
    lines.append(f"Backups: {_counted(Counter(map(_result, mine))) if mine else 'none was made'}.")
    newest = known.newest_backup_time if known else None
    newest = newest or max((job.ended for job in mine if job.state.good and job.ended), default=None)
    lines.append(f"Newest good backup: {moment(newest, sender.zone) if newest else 'none is known'}.")
    proofs = Counter("good" if one.passed else "failed" for one in period.proofs if one.cluster == name)
    lines.append(f"Test restores: {_counted(proofs) if proofs else 'none'}.")
    return lines


def _result(job: Job) -> str:
    match job.state:
        case JobState.DONE:
            return "good"
        case JobState.WARNED:
            return "good with warnings"
        case _:
            return str(job.state)


def _counted(results: Counter[str]) -> str:
    order = ("good", "good with warnings", "failed", "cancelled")
    return ", ".join(f"{results[name]} {name}" for name in order if results[name])


def _failures(number: int) -> str:
    return "no failures" if not number else f"{number} failure{'' if number == 1 else 's'}"


def _wrong(number: int) -> str:
    return "nothing is wrong" if not number else f"{number} thing{' is' if number == 1 else 's are'} wrong"


def _when(time: datetime, sender: Sender) -> str:
    return day(time, sender.zone).upper()
