"""What a server's WAL summaries say: whether an increment on a given parent is possible, asked before it is begun.

From 17 on the summarizer writes, for each stretch of WAL from one checkpoint's redo position to the next, which blocks
changed there. The start of a backup is such a redo position, so a stretch ends exactly there; another history of the
same cluster (a reverted virtual machine) has its cuts elsewhere. Every role that may log in can read all of it.

Source: PostgreSQL documentation, 9.27.9 (WAL summarization information functions) and 28.6 (WAL summarization);
``docs/design.md``, PostgreSQL decisions 4 and 20.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import psycopg

from datamanager.base.errors import AuthenticationFailed, NotFound, RightMissing, ServerUnfit
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn, format_duration
from datamanager.postgres.connection import ServerAddress, cancelled_by, connect, server_errors

FIRST_MAJOR = 17
# A checkpoint, with which every backup begins, wakes the summarizer, and the cut is on disk within milliseconds (17.11
# and 18.6, idle and busy). A summarizer that does not move for this long is stuck or an age behind.
PATIENCE_SECONDS = 10.0
# One that moves gets this long in all: after it, reading everything is the surer way.
LONGEST_SECONDS = 60.0
_LOOK_SECONDS = 0.1
# The one reason that an owner can do away with by a single command.
SUMMARIES_OFF = "the server keeps no WAL summaries (summarize_wal is off)"
# Cuts that a backup remembers of its own history (`Summaries.cuts_until`): a night of checkpoints on a busy server.
MOST_CUTS = 100

_SETTINGS = (
    "SELECT current_setting('server_version_num')::int / 10000, current_setting('wal_level'),"
    " current_setting('wal_log_hints') = 'on', current_setting('data_checksums') = 'on', pg_is_in_recovery(),"
    " current_setting('summarize_wal', true) = 'on',"
    " (SELECT setting::bigint * 60 FROM pg_settings WHERE name = 'wal_summary_keep_time'),"
    " (SELECT system_identifier FROM pg_control_system())"
)
# On a primary the control file tells the old timeline until the checkpoint that follows a promotion.
_PRIMARY = (
    "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int, pg_current_wal_lsn()::text"
)
_STANDBY = "SELECT timeline_id, coalesce(pg_last_wal_replay_lsn(), redo_lsn)::text FROM pg_control_checkpoint()"
_STATE = "SELECT summarized_tli, summarized_lsn::text, pending_lsn::text FROM pg_get_wal_summarizer_state()"
_RANGES = "SELECT tli, start_lsn::text, end_lsn::text FROM pg_available_wal_summaries()"
# Relations that were cut short above their first block, each with the end of the first summary that says so.
_SHORTENED = (
    "SELECT c.reltablespace::bigint, c.reldatabase::bigint, c.relfilenode::bigint, min(s.end_lsn)::text"
    " FROM pg_available_wal_summaries() s, pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) c"
    " WHERE s.tli = %s AND s.end_lsn > %s::pg_lsn AND c.is_limit_block AND c.relblocknumber > 0 AND c.relforknumber = 0"
    " GROUP BY 1, 2, 3"
)


class Relation(NamedTuple):
    """A relation by OIDs, as summaries name it: 1663 is the tablespace of ``base``, 1664 of ``global``."""

    tablespace: int
    database: int
    file: int


class SummaryRange(NamedTuple):
    """One summary: the WAL of ``timeline`` from ``start`` up to, not including, ``end``."""

    timeline: int
    start: Lsn
    end: Lsn


@dataclass(frozen=True)
class Summaries:
    """What one look at a server found; None where it could not be told.

    Args:
        supported: the server is 17 or newer; all else about summaries is unknown below that.
        enabled: summarize_wal.
        keep_seconds: wal_summary_keep_time; 0 keeps summaries for ever.
        ranges: the summaries at hand, ordered by timeline and start.
        summarized: timeline and position up to which summaries are on disk, by the summarizer's own word.
        pending: the position that the summarizer has read up to.
        timeline: on which the server writes, or which a standby replays.
        position: the end of the WAL written (replayed) when the look began.
        shortened: relations that lost blocks at their end since ``reach`` and were not emptied, each with the end of
            the first summary that says so. The server may miss what was written to them later (decision 26).
        unknown: why nothing could be seen, in one lower-case clause; empty when all else counts.
        remedy: what would let it be seen, a full sentence; may be empty.
    """

    supported: bool | None = None
    enabled: bool | None = None
    keep_seconds: int | None = None
    ranges: tuple[SummaryRange, ...] = field(default=(), repr=False)
    summarized: tuple[int, Lsn] | None = None
    pending: Lsn | None = None
    in_recovery: bool | None = None
    timeline: int | None = None
    position: Lsn | None = None
    wal_log_hints: bool | None = None
    data_checksums: bool | None = None
    wal_level: str = ""
    system_identifier: int | None = None
    shortened: Mapping[Relation, Lsn] = field(default_factory=dict, repr=False)
    unknown: str = ""
    remedy: str = ""

    def on(self, timeline: int) -> list[SummaryRange]:
        """The summaries of one timeline, by start."""
        return [one for one in self.ranges if one.timeline == timeline]

    def cuts_until(self, timeline: int, start: Lsn) -> tuple[Lsn, ...]:
        """The last cuts up to and including ``start``, ascending; empty when ``start`` is no cut (yet).

        What a backup that begins at ``start`` should remember, so that its children know their history by more than
        one position (``missing_reason``).
        """
        cuts = _cuts(self.on(timeline))
        return tuple(sorted(one for one in cuts if one <= start)[-MOST_CUTS:]) if start in cuts else ()

    def cuts_before(self, timeline: int, start: Lsn) -> tuple[Lsn, ...]:
        """The last cuts below ``start``, ascending, for a backup that looked before it began there."""
        return tuple(sorted(one for one in _cuts(self.on(timeline)) if one < start)[-MOST_CUTS:])

    def behind(self, timeline: int, start: Lsn) -> bool:
        """Whether the summarizer has yet to arrive at ``start``, which the server's WAL has passed."""
        if not self.enabled or self.in_recovery or self.timeline != timeline or self.position is None:
            return False
        reached = max((one.end for one in self.on(timeline)), default=Lsn(0))
        return reached < start <= self.position and (self.pending is None or self.pending <= start)


def read_summaries(
    address: ServerAddress,
    stop: StopToken,
    on_sql: Callable[[str], None],
    *,
    reach: tuple[int, Lsn] | None = None,
) -> Summaries:
    """Look at the summaries of the server at ``address`` over an SQL session of any role.

    Args:
        on_sql: is told each statement, once.
        reach: timeline and start of the parent. While the summarizer is on its way there, it is waited for: 10 s
            without progress, 60 s in all; then what there is is returned.

    Returns: a record whose ``unknown`` says why when no session is admitted or a right was revoked.
    Raises: ServerUnreachable (retryable), ConfigurationError, Cancelled.
    """
    try:
        with _session(address, stop) as connection, cancelled_by(stop, connection), server_errors("read WAL summaries"):
            return _Look(connection, on_sql).until(reach, stop)
    except (AuthenticationFailed, RightMissing, ServerUnfit, NotFound) as denied:
        return Summaries(unknown=denied.message, remedy=denied.hint)


def _session(address: ServerAddress, stop: StopToken) -> psycopg.Connection[tuple[object, ...]]:
    """A session in the address's database, or in template1 where that one does not exist."""
    try:
        return connect(address, stop=stop)
    except NotFound:
        return connect(address, stop=stop, database="template1")


class _Look:
    """Reads the summaries over one session, as often as asked. One thread."""

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]], on_sql: Callable[[str], None]) -> None:
        self._connection = connection
        self._on_sql = on_sql
        self._told: set[str] = set()

    def until(self, reach: tuple[int, Lsn] | None, stop: StopToken) -> Summaries:
        """Look until the summarizer is no longer behind, or patience ends. Raises: psycopg.Error, Cancelled."""
        found = self.look()
        began = moved = time.monotonic()
        while reach is not None and found.behind(*reach):
            now = time.monotonic()
            if now - moved > PATIENCE_SECONDS or now - began > LONGEST_SECONDS:
                break
            if stop.wait(_LOOK_SECONDS):
                stop.check()
            before, found = found.pending, self.look()
            if found.pending != before:
                moved = time.monotonic()
        if reach is None or unavailable_reason(found):
            return found
        return replace(found, shortened=self._shortened(*reach))

    def _shortened(self, timeline: int, start: Lsn) -> dict[Relation, Lsn]:
        rows = self._rows(_SHORTENED, (timeline, str(start)))
        return {
            Relation(int(str(tablespace)), int(str(database)), int(str(file))): Lsn.parse(str(end))
            for tablespace, database, file, end in rows
        }

    def look(self) -> Summaries:
        """One look. Raises: psycopg.Error."""
        ((major, level, hints, checksums, recovering, enabled, keep, identifier),) = self._rows(_SETTINGS)
        ((timeline, position),) = self._rows(_STANDBY if recovering else _PRIMARY)
        found = Summaries(
            supported=int(str(major)) >= FIRST_MAJOR,
            in_recovery=bool(recovering),
            timeline=int(str(timeline)),
            position=Lsn.parse(str(position)),
            wal_log_hints=bool(hints),
            data_checksums=bool(checksums),
            wal_level=str(level),
            system_identifier=int(str(identifier)),
        )
        return self._with_ranges(found, bool(enabled), int(str(keep))) if found.supported else found

    def _with_ranges(self, found: Summaries, enabled: bool, keep_seconds: int) -> Summaries:
        # The state comes first: whatever it says is on disk is then among the ranges.
        ((at, summarized, pending),) = self._rows(_STATE)
        ranges = sorted(
            SummaryRange(int(str(timeline)), Lsn.parse(str(start)), Lsn.parse(str(end)))
            for timeline, start, end in self._rows(_RANGES)
        )
        state = (int(str(at)), Lsn.parse(str(summarized))) if at else None
        values = vars(found) | {"enabled": enabled, "keep_seconds": keep_seconds, "ranges": tuple(ranges)}
        return Summaries(**values | {"summarized": state, "pending": Lsn.parse(str(pending)) if state else None})

    def _rows(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        if sql not in self._told:
            self._told.add(sql)
            self._on_sql(sql)
        return self._connection.execute(sql.encode(), values or None).fetchall()


def missing_reason(
    summaries: Summaries, timeline: int, parent_start: Lsn, parent_stop: Lsn, parent_cuts: tuple[Lsn, ...] = ()
) -> str | None:
    """Why the server cannot, or must not, send what changed since the parent; None when it can. Pure.

    Args:
        timeline, parent_start, parent_stop: those of the parent.
        parent_cuts: ``cuts_until`` as read at the parent's end; empty when that is not known.

    Returns: a lower-case clause for the sentence `everything was read: …`.
    """
    return next(filter(None, _reasons(summaries, timeline, parent_start, parent_stop, parent_cuts)), None)


def _reasons(
    summaries: Summaries, timeline: int, start: Lsn, stop: Lsn, parent_cuts: tuple[Lsn, ...]
) -> Iterator[str | None]:
    """Each obstacle in the order in which it makes the later ones meaningless."""
    yield unavailable_reason(summaries)
    if summaries.timeline != timeline:
        yield f"the server's timeline is {summaries.timeline}, that of the parent was {timeline}"
    if summaries.position is None or summaries.position < stop:
        yield _differs(f"its WAL ends at {summaries.position}, before the parent's end {stop}")
    ranges = summaries.on(timeline)
    if not ranges:
        yield "the server has no WAL summaries yet"
    if summaries.behind(timeline, start):
        yield f"the server has not summarized its WAL up to the parent's start {start} yet"
    yield _gap(summaries, ranges, start)
    cuts = _cuts(ranges)
    if start not in cuts:
        yield _differs(f"no checkpoint of it was at the parent's start {start}")
    yield _other_cuts(cuts, parent_cuts, ranges[0].start)


def unavailable_reason(summaries: Summaries) -> str | None:
    """Why the server can send no increment at all, on whatever parent; None when it can. Pure."""
    if summaries.unknown:
        return f"the server's WAL summaries cannot be seen ({summaries.unknown})"
    if not summaries.supported:
        return f"the server is older than PostgreSQL {FIRST_MAJOR}"
    if summaries.in_recovery:
        return "the server is a standby, and increments are made only from a primary"
    if not summaries.enabled:
        return SUMMARIES_OFF
    return None


def _differs(how: str) -> str:
    return f"the server's history differs from the parent's ({how}; was the machine put back to a snapshot?)"


def _gap(summaries: Summaries, ranges: list[SummaryRange], start: Lsn) -> str | None:
    """What is missing between the parent's start and the end of what is summarized."""
    covered = start
    for one in ranges:
        if one.start <= covered < one.end:
            covered = one.end
    last = ranges[-1].end
    if last <= start or covered >= last:
        return None
    after = min(one.start for one in ranges if one.start > covered)
    if covered == start and after == ranges[0].start:
        keep = f"kept for {_format_days(summaries.keep_seconds)}" if summaries.keep_seconds else "kept for ever"
        return f"the server's WAL summaries begin at {after}, after the parent's start {start} (they are {keep})"
    return f"WAL summaries since the parent are missing, from {covered} to {after}"


def _format_days(seconds: int | None) -> str:
    """``864000`` as ``10 days``; in hours and minutes below a day."""
    days, rest = divmod(seconds or 0, 86400)
    return f"{days} day{'' if days == 1 else 's'}" if days and not rest else format_duration(seconds or 0)


def _other_cuts(cuts: set[Lsn], remembered: tuple[Lsn, ...], oldest: Lsn) -> str | None:
    """Whether checkpoints before the parent's start were elsewhere; those whose summaries are gone tell nothing.

    On a quiet server every backup begins a few bytes into a fresh segment, so that two histories may well share the
    parent's start; they do not share what led to it: a machine that is put back begins with recovery's checkpoint.
    """
    if not remembered:
        return None
    first, last = max(remembered[0], oldest), remembered[-1]
    now = {one for one in cuts if first <= one <= last}
    then = {one for one in remembered if first <= one}
    if now == then:
        return None
    return _differs(f"a checkpoint was at {min(now ^ then)} in only one of them")


def _cuts(ranges: list[SummaryRange]) -> set[Lsn]:
    return {one.start for one in ranges} | {one.end for one in ranges}
