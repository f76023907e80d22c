"""Plans of recovery on real WAL, and what PostgreSQL makes of them."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from datamanager.base.errors import NotFound, TargetUnreachable
from datamanager.base.units import Lsn
from datamanager.engine.recovery.plan import RecoveryPlan
from datamanager.engine.recovery.targets import Target
from datamanager.postgres.wal.records import Record, commit_time, moment, walk
from datamanager.repository.manifest import ChecksumFailure
from tests.engine.recovery.scene import Scene, commit_times, rows, write_rows
from tests.postgres.wal.generated import SEGMENT_SIZE, position, segments

STEP = timedelta(microseconds=1)


def records_of(scene: Scene) -> list[Record]:
    stored = segments(scene.server)
    return list(walk(b"".join(stored.values()), min(stored), SEGMENT_SIZE))


@pytest.mark.pg("14,18")
@pytest.mark.decision(3)
@pytest.mark.decision(14)
def test_every_time_becomes_the_record_before_the_first_later_commit(scene: Scene) -> None:
    server = scene.server
    line = scene.begin_line()
    write_rows(server, 5)
    scene.backup()
    write_rows(server, 60)
    server.sql("select pg_create_restore_point('half')")
    server.sql("select pg_switch_wal()")
    scene.backup()
    write_rows(server, 200, seconds=0.001)
    end = scene.store(line)
    times = commit_times(server)
    records = [one for one in records_of(scene) if one.end <= end]
    commits = [(moment(found), one) for one in records if (found := commit_time(one)) is not None]
    first_stop, second_stop = (one.stop for one in scene.manifests)
    chance = random.Random(5)
    for number in chance.sample(range(6, 266), 40):
        for asked in (times[number], times[number] - STEP):
            plan = scene.plan(Target.at_time(asked))
            later = next(one for when, one in commits if when > asked and one.lsn > first_stop)
            assert plan.target == later.prev
            assert plan.last_commit == max(when for when, one in commits if one.lsn < later.lsn)
            assert plan.next_commit == moment(commit_time(later) or 0)
            assert plan.timeline == 1
            wanted = scene.manifests[1 if later.lsn >= second_stop else 0]
            assert plan.backup.backup == wanted.backup
            assert covers(plan, records)
    latest = scene.plan(Target.latest())
    assert latest.target == records[-1].lsn
    assert latest.next_commit is None
    half = scene.plan(Target.at_name("half"))
    point = next(one for one in records if one.rmid == 0 and one.info & 0xF0 == 0x70)
    assert half.target == point.lsn
    assert half.backup.backup == scene.manifests[0].backup
    for record in chance.sample([one for one in records if one.lsn >= first_stop], 30):
        assert scene.plan(Target.at_lsn(record.lsn)).target == record.lsn
        inside = Lsn(record.lsn + chance.randrange(1, 24))
        assert scene.plan(Target.at_lsn(inside)).target == record.lsn
    assert scene.plan(Target.at_lsn(end)).target == records[-1].lsn


def covers(plan: RecoveryPlan, records: list[Record]) -> bool:
    """Whether the WAL that is needed goes from the backup to the end of the target's record, without a hole."""
    end = next(one.end for one in records if one.lsn == plan.target)
    at = plan.backup.stop
    for one in plan.needs:
        if one.start != at:
            return False
        at = one.end
    return at == max(end, plan.backup.stop)


@pytest.mark.decision(14)
def test_a_commit_whose_record_crosses_the_border_of_a_segment_is_not_missed(scene: Scene) -> None:
    server = scene.server
    line = scene.begin_line()
    write_rows(server, 5)
    scene.backup()
    # WAL of nothing but commits: most borders go through one.
    server.script(
        "do $$ begin for i in 1..90000 loop perform pg_current_xact_id(); commit; end loop; end $$;"
        " select pg_create_restore_point('end');"
    )
    end = scene.store(line)
    records = [one for one in records_of(scene) if one.end <= end]
    commits = [(one, moment(found)) for one in records if (found := commit_time(one)) is not None]
    crossing = [
        number for number, (one, _) in enumerate(commits) if one.end % SEGMENT_SIZE and one.lsn // SEGMENT_SIZE
        != one.end // SEGMENT_SIZE and one.lsn > scene.manifests[0].stop
    ]  # fmt: skip
    assert crossing
    for number in crossing:
        record, when = commits[number]
        before = scene.plan(Target.at_time(when - STEP))
        first = next(one for one, other in commits if other > when - STEP and one.lsn > scene.manifests[0].stop)
        assert (before.target, before.next_commit) == (first.prev, when)
        assert scene.plan(Target.at_lsn(record.lsn)).last_commit == when
        assert scene.plan(Target.at_lsn(record.prev)).next_commit == when


@pytest.mark.decision(14)
def test_commit_times_that_go_back_are_taken_in_the_order_of_wal_as_the_server_does(scene: Scene) -> None:
    server = scene.server
    line = scene.begin_line()
    write_rows(server, 5)
    scene.backup()
    with server.load(clients=8, script="insert into rows (filler) values ('x');", extra=("-j", "2")):
        time.sleep(1.5)
    write_rows(server, 2)
    end = scene.store(line)
    stop = scene.manifests[0].stop
    commits = [(one, when) for one in records_of(scene) if one.end <= end and (when := commit_time(one)) is not None]
    later = [(one, when) for one, when in commits if one.lsn > stop]
    backwards = [number for number in range(1, len(later)) if later[number][1] < later[number - 1][1]]
    assert backwards
    for number in backwards[:: max(1, len(backwards) // 12)]:
        asked = moment(later[number][1])
        first = next(one for one, when in later if when > later[number][1])
        assert scene.plan(Target.at_time(asked)).target == first.prev
    plan = scene.plan(Target.at_time(moment(later[backwards[len(backwards) // 2]][1])))
    ours = scene.recover(plan)
    theirs = scene.recover(
        scene.plan(Target.latest()), recovery_target_time=str(plan.asked.time), recovery_target_inclusive="on"
    )
    assert rows(ours) == rows(theirs)
    assert len(rows(ours)) < len(later)


@pytest.mark.decision(14)
def test_without_any_index_the_plans_are_the_same(scene: Scene) -> None:
    server = scene.server
    plain, bare = scene.begin_line(), scene.begin_line()
    write_rows(server, 3)
    scene.backup()  # the archive proves that it is of either
    write_rows(server, 150, seconds=0.0005)
    end = scene.store(plain)
    scene.store(bare, end=end, indexed=False)
    times = commit_times(server)
    for target in (
        Target.latest(),
        *(Target.at_time(times[number] - STEP) for number in (5, 60, 150)),
        Target.at_lsn(Lsn(end - 100_000)),
    ):
        with_index = scene.plan(target, abandoned=[bare.id])
        without = scene.plan(target, abandoned=[plain.id])
        assert {one.line.id for one in with_index.needs} <= {plain.id}
        assert {one.line.id for one in without.needs} <= {bare.id}
        assert (with_index.target, with_index.last_commit, with_index.next_commit) == (
            without.target,
            without.last_commit,
            without.next_commit,
        )


@pytest.mark.pg("18")
@pytest.mark.decision(3)
@pytest.mark.decision(14)
def test_postgresql_brings_back_exactly_the_rows_committed_by_then(scene: Scene) -> None:
    server = scene.server
    line = scene.begin_line()
    write_rows(server, 5)
    scene.backup()
    write_rows(server, 80)
    server.sql("select pg_create_restore_point('before the import')")
    write_rows(server, 20)
    scene.store(line)
    times = commit_times(server)
    asked = times[40] - STEP
    middle = scene.recover(scene.plan(Target.at_time(asked)))
    assert rows(middle) == [number for number, when in times.items() if when <= asked] == list(range(1, 40))
    assert rows(scene.recover(scene.plan(Target.at_name("before the import")))) == list(range(1, 86))
    latest = scene.plan(Target.latest())
    assert rows(scene.recover(latest)) == list(times)
    assert latest.last_commit == times[105]


@pytest.mark.decision(14)
def test_a_quiet_night_is_no_reason_to_fail_and_what_is_not_proven_is_refused(scene: Scene) -> None:
    server = scene.server
    line = scene.begin_line()
    write_rows(server, 5)
    scene.backup()
    write_rows(server, 5)
    evening = datetime.now(UTC) + timedelta(hours=3)
    scene.store(line, received=evening)
    last = commit_times(server)[10]
    plan = scene.plan(Target.at_time(last + timedelta(hours=1)))
    assert plan.target == scene.plan(Target.latest()).target
    assert plan.last_commit == last
    assert plan.next_commit is None
    assert "no later one is in the archive" in plan.words()
    night = evening + timedelta(hours=5)
    with pytest.raises(TargetUnreachable, match="the archive tells only until") as refused:
        scene.plan(Target.at_time(night), zone=ZoneInfo("Europe/Zurich"))
    assert f"to {evening.astimezone(ZoneInfo('Europe/Zurich')).isoformat(' ')}" in refused.value.message
    assert scene.plan(Target.at_time(night), proven={line.id: night}).target == plan.target


@pytest.mark.decision(14)
def test_what_cannot_be_reached_is_refused_with_what_can(scene: Scene) -> None:
    server = scene.server
    line = scene.begin_line()
    write_rows(server, 5)
    manifest = scene.backup()
    write_rows(server, 60)
    end = scene.store(line)
    times = commit_times(server)
    for target in (
        Target.at_time(times[1] - STEP),
        Target.at_time(times[5] - STEP),
        Target.at_time(datetime.now(UTC) + timedelta(days=1)),
        Target.at_lsn(Lsn(manifest.stop - 1)),
        Target.at_lsn(Lsn(end + 100)),
        Target.at_name("never made"),
        Target.latest(timeline=7),
    ):
        with pytest.raises(TargetUnreachable) as refused:
            scene.plan(target)
        if target.timeline is None:
            assert f"positions {manifest.stop_lsn} to" in refused.value.message
            assert manifest.ended.replace("T", " ") in refused.value.message
    with pytest.raises(NotFound):
        scene.plan(Target.end_of_backup("another"))
    own = scene.plan(Target.end_of_backup(manifest.backup))
    assert (own.target, own.needs) == (None, ())


@pytest.mark.decision(14)
def test_a_hole_in_the_archive_ends_a_window_and_a_later_backup_begins_the_next(scene: Scene) -> None:
    server = scene.server
    line = scene.begin_line()
    write_rows(server, 5)
    scene.backup()
    write_rows(server, 1500, seconds=0)
    hole = position(server)
    write_rows(server, 1500, seconds=0)
    scene.backup()
    write_rows(server, 10)
    scene.store(line)
    times = commit_times(server)
    whole = scene.plan(Target.latest())
    lost = next(one for one in line.stored() if one.start <= hole < one.end)
    line.delete([lost])
    assert scene.plan(Target.latest()).target == whole.target
    assert scene.plan(Target.latest()).backup.backup == scene.manifests[1].backup
    assert scene.plan(Target.at_time(times[50])).backup.backup == scene.manifests[0].backup
    with pytest.raises(TargetUnreachable, match=f"lacks the WAL from {lost.start} on.* reachable: .*; .*"):
        scene.plan(Target.at_time(times[3000]))
    with pytest.raises(TargetUnreachable, match=r"the WAL behind backup .* ends at"):
        scene.plan(Target.at_lsn(Lsn(lost.end + 50)))
    # What lies behind the hole needs the second backup, even if it is damaged.
    failures = [ChecksumFailure("base/5/1259", [1])]
    scene.manifests[1] = replace(scene.manifests[1], checksum_failures=failures)
    damaged = scene.plan(Target.latest())
    assert (damaged.target, damaged.backup.damaged) == (whole.target, True)
    assert any("damaged" in one for one in damaged.warnings)


@pytest.mark.decision(4)
def test_a_backup_of_another_history_is_not_brought_on_with_this_wal(scene: Scene) -> None:
    server = scene.server
    line = scene.begin_line()
    write_rows(server, 5)
    scene.backup()
    write_rows(server, 50)
    scene.backup()
    write_rows(server, 5)
    scene.store(line)
    good = scene.plan(Target.latest())
    assert good.backup.backup == scene.manifests[1].backup
    # As if it had been taken of a machine that was put back afterwards: the archive has something else there.
    scene.manifests[1] = replace(scene.manifests[1], stop_lsn=str(Lsn(scene.manifests[1].stop + 48)))
    other = scene.plan(Target.latest())
    assert other.backup.backup == scene.manifests[0].backup
    assert other.target == good.target


@pytest.mark.pg("15")
@pytest.mark.decision(12)
def test_restores_on_both_sides_of_a_promotion_and_never_onto_an_abandoned_timeline(scene: Scene) -> None:
    server = scene.server
    first = scene.begin_line()
    write_rows(server, 5)
    scene.backup()
    write_rows(server, 60)
    scene.store(first)
    times = commit_times(server)
    second = scene.recover(scene.plan(Target.at_time(times[30])))
    line = scene.begin_line(2, second)
    second.sql("insert into rows (n) select 1000 + n from generate_series(1, 5) n")
    second.sql("insert into rows (n) values (2000)")
    scene.store(line, second)
    behind = commit_times(second)
    before = scene.plan(Target.at_time(times[20]))
    assert before.timeline == 1
    after = scene.plan(Target.at_time(behind[1001]))
    assert (after.timeline, after.backup.timeline) == (2, 1)
    assert after.next_commit == behind[2000]
    # What the first timeline went on with is not this history, and is there for who asks for it.
    aside = scene.plan(Target.at_time(times[50]))
    assert aside.last_commit == times[30]
    assert scene.plan(Target.at_time(times[50], timeline=1)).last_commit == times[50]
    assert rows(scene.recover(before)) == list(range(1, 21))
    assert rows(scene.recover(after)) == [*range(1, 31), *range(1001, 1006)]
    latest = scene.plan(Target.latest())
    assert latest.timeline == 2
    assert latest.target is not None
    undone = scene.plan(Target.latest(), abandoned=[line.id])
    assert (undone.timeline, undone.last_commit, undone.abandoned) == (1, times[65], False)
    assert scene.plan(Target.latest(timeline=2), abandoned=["2"]).abandoned
    third = scene.recover(latest)
    assert rows(third) == [*range(1, 31), *range(1001, 1006), 2000]
    scene.backup(third)
    scene.begin_line(3, third)
    scene.store(scene.archive.lines()[-1], third)
    newest = scene.plan(Target.latest())
    assert (newest.timeline, newest.backup.timeline) == (3, 3)
    assert scene.plan(Target.at_time(behind[1001])).timeline == 2
