"""What is wrong with the archive of a cluster's WAL; pure, a part of ``verdict.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from datamanager.app.past_words import ago, when
from datamanager.app.verdict_facts import ClusterFacts, Situation, WalFacts
from datamanager.base.units import format_size
from datamanager.state.finding import Finding, Severity

# The archive is seconds behind as a rule; a server's restart and a drive that spins up take minutes.
_OLD = timedelta(minutes=5)
_MUCH = 0.5  # of what the slot may keep
# A receiver that was just begun by the service needs a moment.
_CONNECTS = timedelta(minutes=1)
# Each commit waits for milliseconds; when nothing was stored for so long, they wait for something that is stuck.
_STUCK = timedelta(seconds=10)


def newest_moment(backed_up: datetime, wal: WalFacts | None, now: datetime) -> datetime:
    """Up to when work would not be lost: the end of the newest backup, or what the archive reaches behind it."""
    if wal is None or wal.newest is None or not wal.continuous:
        return backed_up
    return now if wal.connected and wal.behind is False else max(backed_up, wal.newest)


def of_wal(cluster: ClusterFacts, situation: Situation) -> list[Finding]:
    """The findings on one cluster's archive, the worst first."""
    wal = cluster.wal
    if wal is None:
        return []
    name = cluster.name
    found = [*_waiting(name, wal, situation), *_off(name, wal, situation)]
    if wal.gap_since is not None:
        sentence = f"The WAL archive of database server {name} has a gap that ended {_when(wal.gap_since, situation)}: "
        sentence += "no moment behind it can be restored until the next backup."
        found.append(_finding("wal-gap", name, sentence, f"datamanager backup run {name}"))
    if wal.lost:
        sentence = f"The WAL archive of database server {name} had reached {wal.lost}: what was there is gone."
        found.append(_finding("wal-lost", name, sentence, f"datamanager backup run {name}"))
    if (wal.slot_missing or wal.slot_lost) and not wal.connected:
        what = "gave up the slot of the WAL archive" if wal.slot_lost else "has no slot for the WAL archive"
        sentence = f"Database server {name} {what}, so WAL that is not fetched yet may be lost."
        found.append(_finding("wal-slot", name, sentence, f"datamanager wal start {name} --enable"))
    if wal.newest is not None and wal.behind and situation.now - wal.newest > _OLD:
        sentence = (
            f"The newest WAL of database server {name} in the archive came {ago(wal.newest, situation.now)}, and "
        )
        sentence += "the server has written more since."
        found.append(_finding("wal-old", name, sentence, f"datamanager wal status {name}"))
    if wal.retained_bytes and wal.limit_bytes and wal.retained_bytes > _MUCH * wal.limit_bytes:
        sentence = f"Database server {name} keeps {format_size(wal.retained_bytes)} of WAL that was not fetched, of at "
        sentence += f"most {format_size(wal.limit_bytes)}; beyond that the archive gets a gap."
        found.append(_finding("wal-room", name, sentence, f"datamanager wal status {name}"))
    return found


def of_slots_left(cluster: ClusterFacts) -> list[Finding]:
    """Slots that make the server keep WAL that nobody fetches; their limit ends that, so nothing is at risk."""
    found = []
    for one in cluster.slots_left:
        keeps = f"Database server {cluster.name} keeps {format_size(one.retained_bytes)} of WAL in slot {one.name}"
        if one.wanted:
            why = "of the location that its archive left, until a backup lies in the new one"
            command = f"datamanager backup run {cluster.name}"
        else:
            why = "for an archive that does not run any more"
            command = f"datamanager wal stop {cluster.name} --drop-slot"
        finding = f"wal-left:{one.name}", Severity.NOTE, cluster.name, f"{keeps} {why}.", command
        found.append(Finding(*finding))
    return found


def of_forgotten_slots(slots: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Slots of clusters that were taken out of the configuration by hand: how to reach their servers is not known."""
    found = []
    for cluster, names in sorted(slots.items()):
        statements = " ".join(f"SELECT pg_drop_replication_slot('{one}');" for one in names)
        sentence = (
            f"Database server {cluster} is no longer configured, and may still keep WAL for its archive; run there: "
            f"{statements} Or add it again, and remove it with `datamanager cluster remove {cluster}`, which does that."
        )
        command = f"datamanager cluster add {cluster} CONNINFO"
        found.append(Finding(f"wal-left:{cluster}", Severity.NOTE, "", sentence, command))
    return found


def _waiting(name: str, wal: WalFacts, situation: Situation) -> list[Finding]:
    if not wal.synchronous:
        return []
    command = f"datamanager wal stop {name}"
    if wal.waiting and not wal.connected:
        many = "a commit waits" if wal.waiting == 1 else f"{wal.waiting} commits wait"
        sentence = f"On database server {name} {many} for the WAL archive, which does not run{_why(wal)}."
    elif not wal.connected:
        sentence = f"On database server {name} every commit waits for the WAL archive, which does not run{_why(wal)}."
    elif wal.waiting and wal.behind and wal.newest is not None and situation.now - wal.newest > _STUCK:
        many = "a commit waits" if wal.waiting == 1 else f"{wal.waiting} commits wait"
        sentence = f"On database server {name} {many} for the WAL archive, which does not store what has come."
    else:
        return []
    return [Finding(f"wal-waiting:{name}", Severity.URGENT, name, sentence, command)]


def _off(name: str, wal: WalFacts, situation: Situation) -> list[Finding]:
    if wal.connected:
        return []
    last = "" if wal.newest is None else f"; the newest came {ago(wal.newest, situation.now)}"
    if not wal.running:
        sentence = f"The WAL of database server {name} is not archived now: {_clause(wal) or 'no receiver runs'}{last}."
        command = f"datamanager wal status {name}" if wal.error else "datamanager service status"
        return [_finding("wal-off", name, sentence, command)]
    if wal.ended is not None and situation.now - wal.ended < _CONNECTS and not wal.error:
        return []
    sentence = f"The WAL of database server {name} is not archived now: {_clause(wal) or 'it does not connect'}{last}."
    return [_finding("wal-off", name, sentence, f"datamanager wal status {name}")]


def _finding(kind: str, name: str, sentence: str, command: str) -> Finding:
    return Finding(f"{kind}:{name}", Severity.AT_RISK, name, sentence, command)


def _why(wal: WalFacts) -> str:
    return f" ({_clause(wal)})" if wal.error else ""


def _clause(wal: WalFacts) -> str:
    return " ".join(wal.error.split()).rstrip(".")


def _when(moment: datetime, situation: Situation) -> str:
    return when(moment, situation.now, situation.zone)
