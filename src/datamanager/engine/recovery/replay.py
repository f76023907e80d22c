"""What a recovery replays: the archived WAL up to a record, or only what came with the backup.

It can be written down as JSON, for a recovery that whoever comes after a kill goes on with, to the very same record.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from datamanager.base.errors import IntegrityError, WalMissing
from datamanager.base.events import Listener, PhaseStarted, Progress
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.recovery.plan import NeededWal
from datamanager.engine.recovery.segments import TAKEN, Need, histories_of
from datamanager.postgres.wal.history import Switch, TimelineHistory
from datamanager.postgres.wal.names import segment_name, segment_start
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line


@dataclass(frozen=True, slots=True)
class Replay:
    """What is replayed.

    Args:
        history: of the timeline that is followed, by its number.
        target: where the last record begins that is replayed; None for the backup's own end, with its own WAL alone.
        needs: the WAL from the backup's end to the end of that record, oldest first; empty if the backup holds it all.
        lines: every line of the cluster in the repository, for their histories.
        histories: further ones, by file name, of timelines whose numbers are taken elsewhere.
    """

    history: TimelineHistory
    target: Lsn | None
    needs: tuple[Need, ...]
    segment_size: int
    lines: tuple[Line, ...]
    histories: Mapping[str, bytes] = field(default_factory=dict)

    def history_files(self) -> dict[str, bytes]:
        """The histories that the server finds in the archive, by name."""
        if self.target is not None:
            return histories_of(self.lines, self.history, self.histories)
        # The backup brings its own timeline's and those before it. Behind it, every number that is taken counts.
        known = histories_of(self.lines, None, self.histories)
        return {
            name: data for name, data in known.items() if data != TAKEN or int(name[:8], 16) > self.history.timeline
        }


def own_end(manifest: Manifest, histories: Mapping[str, bytes]) -> Replay:
    """A backup as it is, recovered to its own end. Args: histories - of every timeline known, by file name."""
    return Replay(TimelineHistory(manifest.timeline), None, (), manifest.wal_segment_size, (), histories)


def replay_to_json(replay: Replay) -> dict[str, Any]:
    """All but the histories of other timelines."""
    history = replay.history
    return {
        "timeline": history.timeline,
        "history": history.text.decode("latin-1"),
        "switches": [[one.timeline, str(one.at), one.reason] for one in history.switches],
        "target": None if replay.target is None else str(replay.target),
        "segment_size": replay.segment_size,
        "needs": [[one.line.id, str(one.start), str(one.end), one.timeline] for one in replay.needs],
    }


def replay_from_json(value: Mapping[str, Any], lines: tuple[Line, ...]) -> Replay:
    """Raises: WalMissing (a line is no longer in the archive), IntegrityError."""
    known = {one.id: one for one in lines}
    try:
        switches = tuple(Switch(int(number), Lsn.parse(at), str(why)) for number, at, why in value["switches"])
        history = TimelineHistory(int(value["timeline"]), switches, str(value["history"]).encode("latin-1"))
        target = None if value["target"] is None else Lsn.parse(value["target"])
        needs: list[Need] = []
        for line, start, end, timeline in value["needs"]:
            if line not in known:
                raise WalMissing(f"read WAL: the archive no longer has line {line}", Lsn.parse(start))
            needs.append(NeededWal(known[line], Lsn.parse(start), Lsn.parse(end), int(timeline)))
        return Replay(history, target, tuple(needs), int(value["segment_size"]), lines)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"read recovery: malformed: {error}") from error


def require_wal(
    repository: Repository, manifest: Manifest, replay: Replay, stop: StopToken, listener: Listener
) -> None:
    """Read all the WAL that a recovery will need, before anything is overwritten for it.

    Raises: WalMissing, IntegrityError, StoreError, Cancelled.
    """
    if not replay.needs:
        return
    listener(PhaseStarted("reading the WAL"))
    _require_head(repository, manifest, replay)
    size, done, total = replay.segment_size, 0, sum(one.end - one.start for one in replay.needs)
    for one in replay.needs:
        at = one.start
        while at < one.end:
            stop.check()
            end = min(one.end, Lsn(segment_start(at, size) + size))
            one.line.read(at, end)
            done, at = done + end - at, end
            listener(Progress(done, total))


def _require_head(repository: Repository, manifest: Manifest, replay: Replay) -> None:
    """The first segment may begin before what is needed of it; the archive or the backup has that."""
    first = replay.needs[0]
    begin = segment_start(first.start, replay.segment_size)
    if begin == first.start:
        return
    try:
        first.line.read(begin, first.start)
    except WalMissing:
        name = f"pg_wal/{segment_name(first.timeline, begin, replay.segment_size)}"
        if name not in _wal_of(repository, manifest):
            raise


def _wal_of(repository: Repository, manifest: Manifest) -> Collection[str]:
    names = (entry.path for entry in repository.contents(manifest).files())
    return {os.fsdecode(path) for path in names if path.startswith(b"pg_wal/")}
