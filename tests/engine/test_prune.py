"""Prune gives room back page by page; whatever exists before it as a backup restores after it, byte for byte."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from datamanager.base.errors import Busy, IntegrityError, StoreFull, UsageError
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.prune.run import CONDEMNED_SECONDS, PruneOptions, PruneResult, prune_repository
from datamanager.repository.condemned import condemned_packs, put_condemned, read_condemned
from datamanager.repository.format import Kind, manifest_keys, pack_generation, pack_key
from datamanager.repository.lease import RENEW_SECONDS, LeaseRecord
from datamanager.repository.manifest import Manifest
from datamanager.repository.mark import DELETED, PIN, UNDELETED
from datamanager.repository.repository import Repository
from datamanager.storage.memory import MemoryStorage
from tests.engine.synthetic_source import SyntheticCluster, make_cluster, tree
from tests.engine.test_materialize import expected, restore
from tests.repository.parts import SetClock, backup, flip, keys, new_repository, overwrite, reopen, verify
from tests.storage.faults import Call, FaultyStorage

DAY = 86_400.0


def prune(repository: Repository, **options: object) -> PruneResult:
    with StopToken() as stop:
        return prune_repository(repository, PruneOptions(**options), stop, ignore)  # type: ignore[arg-type]


def size(repository: Repository, prefix: str = "packs/") -> int:
    return sum(one.size for one in repository.storage.list(prefix))


class History:
    """A repository with some backups of a changing cluster, and what each must restore to."""

    def __init__(self, storage: MemoryStorage | None = None) -> None:
        self.clock = SetClock()
        self.repository = new_repository(storage or MemoryStorage(self.clock), self.clock)
        self.cluster = make_cluster(7, pages=120, tables=8)
        self.made: list[tuple[Manifest, SyntheticCluster]] = []

    def back_up(self, share: float = 0.0) -> Manifest:
        self.clock.advance(60)
        if share:
            self.cluster = self.cluster.with_changed_pages(len(self.made), share)
        manifest = backup(reopen(self.repository), self.cluster).manifest
        self.made.append((manifest, self.cluster))
        return manifest

    def delete(self, *manifests: Manifest) -> None:
        for manifest in manifests:
            self.repository.put_mark(manifest.backup, DELETED)

    def check(self, folder: Path, repository: Repository | None = None) -> None:
        """Every backup that is listed restores to what it was taken from."""
        used = reopen(repository or self.repository)
        names = set(used.backup_ids())
        folder.mkdir()
        for manifest, cluster in self.made:
            if manifest.backup in names:
                restore(used, manifest, folder / manifest.backup)
                assert tree(folder / manifest.backup) == expected(cluster)

    def generations(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for key in keys(self.repository.storage, "packs/"):
            place = pack_generation(key)
            assert place is not None
            found.setdefault(place[0].hex(), []).append(place[1])
        return found


@pytest.fixture
def history() -> History:
    return History()


def foreign_lease(history: History, **changes: object) -> str:
    """Somebody on another host is at work, as of now."""
    record = LeaseRecord("feedfeedfeedfeed", "elsewhere", "", "boot", 4711, "backup", "1", [], "2025-03-01T11:00:00")
    record = replace(record, **changes)  # type: ignore[arg-type]  # names are those of the fields
    key = f"leases/{record.writer}-{random.randrange(10**6):06d}"
    history.repository.objects.put_small(Kind.LEASE, key, [key], record.to_json())
    return key


def test_a_prune_of_nothing_deleted_leaves_every_object(history: History) -> None:
    history.back_up()
    history.back_up(0.01)
    before = keys(history.repository.storage, "")
    result = prune(history.repository)
    assert keys(history.repository.storage, "") == before
    assert (result.freed_bytes, result.later_bytes, result.objects_deleted, result.warnings) == (0, 0, 0, [])


@pytest.mark.decision(3)
def test_alone_on_a_local_store_everything_dead_goes_at_once(history: History, tmp_path: Path) -> None:
    for _ in range(6):
        history.back_up(0.15)
    last = history.back_up(0.15)
    fresh = History()
    fresh.cluster = history.cluster
    fresh.back_up()
    history.delete(*(manifest for manifest, _ in history.made[:-1]))
    before = size(history.repository, "")
    result = prune(history.repository)
    assert result.exclusive
    assert result.freed_bytes == before - size(history.repository, "")
    assert size(history.repository) <= 1.3 * size(fresh.repository)
    assert sorted(history.repository.backup_ids()) == [last.backup]
    assert keys(history.repository.storage, "condemned/") == []
    assert keys(history.repository.storage, "leases/") == []
    assert all(len(numbers) == 1 for numbers in history.generations().values())
    assert max(number for numbers in history.generations().values() for number in numbers) > 1
    for manifest, _ in history.made[:-1]:
        assert not {*manifest_keys(manifest.backup)} & {*keys(history.repository.storage, "")}
    history.check(tmp_path / "after")
    assert verify(reopen(history.repository)).ok


def test_a_worn_pack_keeps_exactly_the_pages_that_backups_show(history: History, tmp_path: Path) -> None:
    first = history.back_up()
    for _ in range(4):
        history.back_up(0.5)
    history.delete(first, *(manifest for manifest, _ in history.made[1:-1]))
    prune(history.repository)
    history.check(tmp_path / "after")
    again = prune(history.repository)
    assert (again.objects_deleted, again.packs_rewritten) == (0, 0)


def test_the_next_backup_builds_on_packs_that_were_written_again(history: History, tmp_path: Path) -> None:
    for _ in range(4):
        history.back_up(0.4)
    history.delete(*(manifest for manifest, _ in history.made[:-1]))
    prune(history.repository)
    history.back_up(0.05)
    history.back_up(0.05)
    history.check(tmp_path / "after")
    assert verify(reopen(history.repository)).ok


def test_nothing_is_written_again_beyond_the_limit(history: History) -> None:
    for _ in range(5):
        history.back_up(0.5)
    history.delete(*(manifest for manifest, _ in history.made[:-1]))
    result = prune(history.repository, max_repack_percent=0.0)
    assert result.packs_rewritten == 0
    assert result.plan.postponed
    assert prune(history.repository).packs_rewritten == len(result.plan.postponed)
    with pytest.raises(UsageError):
        prune(history.repository, max_repack_percent=101)


def test_a_dry_run_tells_what_would_go_and_changes_nothing(history: History) -> None:
    for _ in range(4):
        history.back_up(0.4)
    history.delete(*(manifest for manifest, _ in history.made[:-1]))
    before = keys(history.repository.storage, "")
    told = prune(history.repository, dry_run=True)
    assert keys(history.repository.storage, "") == before
    done = prune(history.repository)
    assert told.plan.backups == done.plan.backups
    assert told.plan.dead.keys() == done.plan.dead.keys()
    assert told.packs_rewritten == done.packs_rewritten
    assert told.freed_bytes == pytest.approx(done.freed_bytes, rel=0.15)


# -- two steps ------------------------------------------------------------------------------------------------------


@pytest.mark.decision(5)
def test_beside_another_at_work_nothing_goes_before_a_day(history: History, tmp_path: Path) -> None:
    for _ in range(3):
        history.back_up(0.6)
    history.delete(*(manifest for manifest, _ in history.made[:-1]))
    key = foreign_lease(history)
    before = set(keys(history.repository.storage, "packs/"))
    first = prune(history.repository)
    assert not first.exclusive
    assert before <= set(keys(history.repository.storage, "packs/"))
    assert first.objects_deleted == 0
    assert first.later_bytes > 0
    assert len(keys(history.repository.storage, "condemned/")) >= 1
    history.check(tmp_path / "between")
    history.repository.storage.delete(key)
    history.clock.advance(CONDEMNED_SECONDS + 10)
    key = foreign_lease(history, since=history.clock.now().timestamp())
    second = prune(history.repository)
    assert not second.exclusive
    assert second.freed_bytes > 0
    assert keys(history.repository.storage, "condemned/") == []
    assert len(set(keys(history.repository.storage, "packs/")) & before) < len(before)
    history.check(tmp_path / "after")
    history.repository.storage.delete(key)
    assert verify(reopen(history.repository)).ok


@pytest.mark.parametrize("since", [0.0, 1.0])
def test_a_lease_older_than_the_list_holds_everything_in_it(history: History, since: float) -> None:
    for _ in range(3):
        history.back_up(0.6)
    history.delete(*(manifest for manifest, _ in history.made[:-1]))
    foreign_lease(history)
    prune(history.repository)
    before = keys(history.repository.storage, "packs/")
    history.clock.advance(2 * DAY)
    foreign_lease(history, since=since)
    result = prune(history.repository)
    assert keys(history.repository.storage, "packs/") == before
    assert result.objects_deleted == 0


def test_a_backup_undeleted_between_the_steps_comes_back_whole(history: History, tmp_path: Path) -> None:
    for _ in range(4):
        history.back_up(0.5)
    victim = history.made[0][0]
    history.delete(*(manifest for manifest, _ in history.made[:-1]))
    key = foreign_lease(history)
    assert prune(history.repository).packs_rewritten > 0
    history.repository.put_mark(victim.backup, UNDELETED)
    history.check(tmp_path / "at_once")
    history.repository.storage.delete(key)
    history.clock.advance(CONDEMNED_SECONDS + 10)
    prune(history.repository)
    assert victim.backup in history.repository.backup_ids()
    history.check(tmp_path / "after")
    assert prune(history.repository).objects_deleted == 0
    assert verify(reopen(history.repository)).ok


def test_a_deleted_backup_that_a_lease_names_stays(history: History) -> None:
    first = history.back_up()
    history.back_up(0.9)
    history.delete(first)
    foreign_lease(history, parents=[first.backup])
    result = prune(history.repository)
    assert result.plan.backups == []
    assert result.later_bytes == 0
    assert keys(history.repository.storage, "condemned/") == []


def test_nobody_adopts_from_what_is_condemned(history: History) -> None:
    first = history.back_up()
    history.delete(first)
    foreign_lease(history)
    prune(history.repository)
    packs = {place[0] for key in keys(history.repository.storage, "packs/") if (place := pack_generation(key))}
    assert condemned_packs(history.repository) == packs
    (name,) = keys(history.repository.storage, "condemned/")
    flip(history.repository.storage, name, -1)
    assert condemned_packs(history.repository) == packs
    assert read_condemned(history.repository)[1] == [name]


def test_a_list_that_names_anything_but_packs_and_manifests_deletes_nothing(history: History) -> None:
    history.back_up()
    put_condemned(history.repository, ["config"])
    lists, unreadable = read_condemned(history.repository)
    assert (lists, len(unreadable)) == ([], 1)
    history.clock.advance(2 * DAY)
    prune(history.repository)
    assert history.repository.storage.stat("config")


# -- interrupted work -----------------------------------------------------------------------------------------------


def orphan(history: History) -> set[str]:
    """Packs of a backup that was interrupted before it was published."""
    before = set(keys(history.repository.storage, "packs/"))

    def hook(call: Call) -> None:
        if call.method == "put" and call.key.startswith("meta"):
            raise StoreFull("put: full")

    history.cluster = make_cluster(99, pages=60)
    dying = Repository(FaultyStorage(history.repository.storage, hook=hook), history.repository.ring, history.clock)
    with pytest.raises(StoreFull):
        backup(dying, history.cluster)
    return set(keys(history.repository.storage, "packs/")) - before


def test_packs_of_interrupted_backups_serve_a_week_and_go_then(history: History) -> None:
    history.back_up()
    left = orphan(history)
    assert left
    result = prune(history.repository)
    assert left <= set(keys(history.repository.storage, "packs/"))
    assert result.plan.kept_orphans > 0
    history.clock.advance(7 * DAY + 60)
    prune(history.repository)
    assert not left & set(keys(history.repository.storage, "packs/"))


@pytest.mark.parametrize("step", range(0, 60, 5))
def test_cut_off_at_any_write_a_prune_loses_nothing_and_the_next_ends_the_work(step: int, tmp_path: Path) -> None:
    history = History()
    for _ in range(3):
        history.back_up(0.6)
    history.delete(*(manifest for manifest, _ in history.made[:-1]))
    writes = 0

    def hook(call: Call) -> None:
        nonlocal writes
        writes += call.method in ("put", "delete")
        if writes > step:
            raise KeyboardInterrupt

    cut = Repository(FaultyStorage(history.repository.storage, hook=hook), history.repository.ring, history.clock)
    try:
        prune(cut)
    except KeyboardInterrupt:
        history.clock.advance(3600)  # until its lease is stale
    history.check(tmp_path / "cut")
    prune(history.repository)
    history.check(tmp_path / "after")
    whole = History()
    whole.cluster = history.cluster
    whole.back_up()
    assert size(history.repository) <= 1.35 * size(whole.repository)
    assert verify(reopen(history.repository)).ok


def test_a_new_generation_that_does_not_read_back_replaces_nothing(history: History, tmp_path: Path) -> None:
    for _ in range(3):
        history.back_up(0.6)
    history.delete(*(manifest for manifest, _ in history.made[:-1]))
    storage = history.repository.storage
    bad = FaultyStorage(storage)

    def hook(call: Call) -> None:
        place = pack_generation(call.key)
        if call.method == "put" and place and place[1] > 1:
            bad.flip_bit(call.key)

    bad = FaultyStorage(storage, hook=hook)
    result = prune(Repository(bad, history.repository.ring, history.clock))
    assert result.packs_rewritten == 0
    assert any("stays" in warning for warning in result.warnings)
    history.check(tmp_path / "after")


def test_a_damaged_pack_is_not_written_again(history: History) -> None:
    first = history.back_up()
    (key,) = keys(history.repository.storage, "packs/")
    history.back_up(0.6)
    history.delete(first)
    flip(history.repository.storage, key, 5000)
    result = prune(history.repository)
    assert key in keys(history.repository.storage, "packs/")
    assert any("stays as it is" in warning for warning in result.warnings)


# -- what is refused ------------------------------------------------------------------------------------------------


def test_an_unreadable_manifest_stops_everything(history: History) -> None:
    first, second = history.back_up(), history.back_up(0.5)
    history.delete(first)
    for key in manifest_keys(second.backup):
        flip(history.repository.storage, key, -1)
    before = keys(history.repository.storage, "packs/")
    with pytest.raises(IntegrityError, match=second.backup) as caught:
        prune(history.repository)
    assert "backup delete" in caught.value.hint
    assert keys(history.repository.storage, "packs/") == before
    history.delete(second)  # explicitly given up
    prune(history.repository)
    assert keys(history.repository.storage, "manifests/") == []


def test_an_unreadable_layer_stops_everything(history: History) -> None:
    first, second = history.back_up(), history.back_up(0.5)
    history.delete(first)
    for folder in ("meta/", "meta-b/"):
        for key in keys(history.repository.storage, folder):
            overwrite(history.repository.storage, key, b"nothing" * 100)
    before = keys(history.repository.storage, "packs/")
    with pytest.raises(IntegrityError, match=second.backup):
        prune(reopen(history.repository))
    assert keys(history.repository.storage, "packs/") == before


def test_a_delete_that_may_have_been_taken_back_counts_as_taken_back(history: History) -> None:
    first = history.back_up()
    history.back_up(0.9)
    history.delete(first)
    history.repository.put_mark(first.backup, UNDELETED)
    flip(history.repository.storage, keys(history.repository.storage, "marks/")[-1], -1)
    assert prune(history.repository).plan.backups == []
    assert first.backup in history.repository.backup_ids()


def test_a_prune_that_slept_stops_deleting(history: History) -> None:
    for _ in range(3):
        history.back_up(0.6)
    history.delete(*(manifest for manifest, _ in history.made[:-1]))
    deleted: list[str] = []

    def hook(call: Call) -> None:
        if call.method == "delete" and call.key.startswith(("manifests", "meta", "packs")):
            deleted.append(call.key)
            history.clock.advance(4 * RENEW_SECONDS)

    slow = Repository(FaultyStorage(history.repository.storage, hook=hook), history.repository.ring, history.clock)
    with pytest.raises(Busy, match="commit prune"):
        prune(slow)
    assert len(deleted) == 1


# -- small things ---------------------------------------------------------------------------------------------------


def test_superseded_marks_and_stale_leases_go(history: History) -> None:
    gone, kept = history.back_up(), history.back_up(0.2)
    for _ in range(3):
        history.repository.put_mark(kept.backup, "verified")
    history.repository.put_mark(kept.backup, PIN, "the year's end")
    history.repository.put_mark(gone.backup, "verified")
    history.delete(gone)
    stale = foreign_lease(history)
    history.clock.advance(3600)
    prune(history.repository)
    marks = [(mark.backup, mark.name) for mark in history.repository.marks()]
    assert sorted(marks) == sorted([(gone.backup, DELETED), (kept.backup, "verified"), (kept.backup, PIN)])
    assert history.repository.pinned()[kept.backup].note == "the year's end"
    assert stale not in keys(history.repository.storage, "leases/")


def test_a_pack_moved_while_somebody_reads_is_found_again(history: History, tmp_path: Path) -> None:
    for _ in range(4):
        history.back_up(0.5)
    history.delete(*(manifest for manifest, _ in history.made[:-1]))
    reader = reopen(history.repository)
    last, cluster = history.made[-1]
    for pack, _ in reader.contents(last).packs:
        reader.pack(pack)  # looked up before the prune
    assert prune(history.repository).packs_rewritten > 0
    restore(reader, last, tmp_path / "data")
    assert tree(tmp_path / "data") == expected(cluster)


def test_a_page_that_a_generation_lacks_is_an_error_and_never_zeros(history: History, tmp_path: Path) -> None:
    for _ in range(3):
        history.back_up(0.6)
    victim = history.made[0][0]
    saved = {key: history.repository.storage.get(key) for key in manifest_keys(victim.backup)}
    names = [*keys(history.repository.storage, "meta/"), *keys(history.repository.storage, "meta-b/")]
    meta = {key: history.repository.storage.get(key) for key in names}
    history.delete(*(manifest for manifest, _ in history.made[:-1]))
    prune(history.repository)
    for key, data in (saved | meta).items():  # somebody puts back what was deleted
        if key not in keys(history.repository.storage, ""):
            history.repository.storage.put(key, [data])
    history.repository.put_mark(victim.backup, UNDELETED)
    with pytest.raises((IntegrityError, Exception), match=r"lacks pages|no such object"):
        restore(reopen(history.repository), victim, tmp_path / "data")


def test_a_condemned_list_is_json_of_keys_and_a_time(history: History) -> None:
    key = put_condemned(history.repository, [pack_key(bytes(16)), pack_key(bytes(16), 2)])[0]
    plain, _ = history.repository.objects.get_small(Kind.CONDEMNED, key, [key])
    value = json.loads(plain)
    assert value["keys"] == ["packs/00/" + 32 * "0", "packs/00/" + 32 * "0" + ".2"]
    assert set(value) == {"keys", "time"}
