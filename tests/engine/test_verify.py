"""verify finds every damage, says which backups it affects, and writes nothing but what it found and read."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from datamanager.base.errors import Cancelled, NotFound, StoreDenied, StoreUnavailable, StoreUnplugged, UsageError
from datamanager.base.events import Event, Progress, Warned, ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.verify.run import Damage, VerifyOptions, VerifyResult, verify_repository
from datamanager.repository.checked import save_checked
from datamanager.repository.damaged import DamagedItem, record
from datamanager.repository.format import HEADER, TRAILER, Kind, manifest_keys, meta_keys, pack_key, ring_keys
from datamanager.repository.repository import Repository
from tests.engine.synthetic_source import SyntheticCluster, make_cluster
from tests.repository.parts import backup, copy_of, flip, keys, new_repository, overwrite, reopen, verify
from tests.storage.faults import Call, FaultyStorage

PRESENT = VerifyOptions(depth="present")


@pytest.fixture(scope="module")
def two_backups() -> Repository:
    """Two backups with a pack each; the second one uses most of the first one's pack too."""
    repository = new_repository()
    cluster = make_cluster(pages=60, tables=2)
    backup(repository, cluster)
    backup(repository, cluster.with_changed_pages(1, 0.05))
    return repository


@pytest.fixture
def repository(two_backups: Repository) -> Repository:
    """The same, free to be spoilt."""
    return reopen(two_backups, copy_of(two_backups.storage))


def packs_of(repository: Repository) -> tuple[str, str]:
    """Keys of the older and of the newer pack."""
    first, second = repository.manifests()
    old = {pack for pack, _ in repository.contents(first).packs}
    new = {pack for pack, _ in repository.contents(second).packs} - old
    return pack_key(old.pop()), pack_key(new.pop())


def only_damage(result: VerifyResult) -> Damage:
    (damage,) = result.damages
    return damage


def test_a_whole_repository_passes_at_every_depth(repository: Repository) -> None:
    for options in (PRESENT, VerifyOptions(depth="sample"), VerifyOptions(depth="full")):
        result = verify(repository, options)
        assert result.ok
        assert all(verdict.ok for verdict in result.backups)
        assert len(result.backups) == 2
        assert result.warnings == []
        assert result.unreferenced_packs == []


def test_full_reads_every_byte_of_the_repository_once(repository: Repository) -> None:
    total = sum(one.size for one in repository.storage.list(""))
    seen: list[Event] = []
    with StopToken() as stop:
        result = verify_repository(repository, VerifyOptions(), stop, seen.append)
    progress = [event for event in seen if isinstance(event, Progress)]
    assert 0 < result.bytes - total < 600  # its own lease is read as well
    assert progress[-1].done_bytes == progress[-1].total_bytes == result.bytes
    assert [event.done_bytes for event in progress] == sorted(event.done_bytes for event in progress)
    assert result.packs_read == result.packs == 2


def test_only_full_marks_the_backups_that_passed_and_changes_nothing_else(repository: Repository) -> None:
    before = set(keys(repository.storage, ""))
    verify(repository, PRESENT)
    verify(repository, VerifyOptions(depth="sample", sample_percent=100))
    assert set(keys(repository.storage, "")) == before
    verify(repository)
    added = set(keys(repository.storage, "")) - before
    assert {key.split("/")[0] for key in added} == {"marks", "checked"}
    assert {(mark.backup, mark.name) for mark in repository.marks()} == {
        (manifest.backup, "verified") for manifest in repository.manifests()
    }


def test_only_the_newest_mark_of_a_backup_stays_and_none_of_one_that_is_damaged_since(repository: Repository) -> None:
    first, second = (manifest.backup for manifest in repository.manifests())
    repository.put_mark(first, "pin")
    verify(repository)
    verify(repository)
    found = {(mark.backup, mark.sequence, mark.name) for mark in repository.marks()}
    assert found == {(first, 1, "pin"), (first, 3, "verified"), (second, 2, "verified")}
    _, newer = packs_of(repository)
    flip(repository.storage, newer, HEADER.size + 10)
    verify(repository)
    found = {(mark.backup, mark.sequence, mark.name) for mark in repository.marks()}
    assert found == {(first, 1, "pin"), (first, 4, "verified")}


def test_a_damaged_backup_gets_no_mark_and_the_other_one_does(repository: Repository) -> None:
    _, newer = packs_of(repository)
    flip(repository.storage, newer, HEADER.size + 10)
    verify(repository)
    assert [mark.backup for mark in repository.marks()] == [repository.manifests()[0].backup]


def test_a_sample_reads_that_share_of_the_packs(repository: Repository) -> None:
    assert verify(repository, VerifyOptions(depth="sample", sample_percent=50)).packs_read == 1
    assert verify(repository, VerifyOptions(depth="sample", sample_percent=1)).packs_read == 1
    assert verify(repository, VerifyOptions(depth="sample", sample_percent=100)).packs_read == 2


def test_a_damaged_chunk_affects_only_the_backups_that_use_it(repository: Repository) -> None:
    older, newer = packs_of(repository)
    first, second = repository.manifests()
    flip(repository.storage, newer, HEADER.size)
    damage = only_damage(verify(repository))
    assert (damage.key, damage.backups_affected, damage.redundant) == (newer, [second.backup], False)
    assert "1 of its" in damage.what

    used = reopen(repository, copy_of(repository.storage))
    flip(used.storage, newer, HEADER.size)  # whole again
    untouched = used.contents(second).find(b"global/pg_control")
    assert untouched is not None
    chunk = int(untouched.rows.position[0]) // 32
    offset = int(used.pack(bytes.fromhex(older[-32:])).directory.offsets[chunk])
    flip(used.storage, older, offset + 3)
    result = verify(used)
    assert only_damage(result).backups_affected == sorted([first.backup, second.backup])
    assert [verdict.ok for verdict in result.backups] == [False, False]


def test_every_damaged_pack_is_found_not_only_the_first(repository: Repository) -> None:
    older, newer = packs_of(repository)
    flip(repository.storage, older, HEADER.size + 5)
    repository.storage.delete(newer)
    result = verify(repository)
    assert {damage.key for damage in result.damages} == {older, newer}
    assert [verdict.ok for verdict in result.backups] == [False, False]


@pytest.mark.parametrize("depth", ["present", "full"])
def test_a_missing_pack_is_named_with_the_backups_that_need_it(repository: Repository, depth: str) -> None:
    older, _ = packs_of(repository)
    repository.storage.delete(older)
    damage = only_damage(verify(repository, PRESENT if depth == "present" else VerifyOptions()))
    assert (damage.key, damage.what) == (older, "it is missing")
    assert len(damage.backups_affected) == 2


def test_a_pack_cut_to_nothing_is_found_without_reading_it(repository: Repository) -> None:
    older, _ = packs_of(repository)
    overwrite(repository.storage, older, repository.storage.get(older)[:60])
    assert only_damage(verify(repository, PRESENT)).key == older


@pytest.mark.parametrize("keep", [0.3, 0.9, -1])
def test_a_pack_cut_short_is_found(repository: Repository, keep: float) -> None:
    older, _ = packs_of(repository)
    content = repository.storage.get(older)
    overwrite(repository.storage, older, content[: int(len(content) * keep)] if keep > 0 else content[:-1])
    assert only_damage(verify(repository)).key == older


def test_a_pack_in_another_ones_place_is_found(repository: Repository) -> None:
    older, newer = packs_of(repository)
    overwrite(repository.storage, newer, repository.storage.get(older))
    damage = only_damage(verify(repository))
    assert (damage.key, damage.what) == (newer, "holds another object")


def test_an_unreferenced_pack_is_reported_and_its_damage_is_only_worth_a_warning(repository: Repository) -> None:
    _, newer = packs_of(repository)
    second = repository.manifests()[1].backup
    for key in manifest_keys(second):
        repository.storage.delete(key)
    result = verify(repository)
    assert result.ok
    assert result.unreferenced_packs == [newer]
    assert result.warnings == []
    flip(repository.storage, newer, HEADER.size + 1)
    result = verify(repository)
    assert result.ok
    assert any(newer in warning for warning in result.warnings)


def test_only_the_backups_asked_for_are_read(repository: Repository) -> None:
    _, newer = packs_of(repository)
    first, second = (manifest.backup for manifest in repository.manifests())
    flip(repository.storage, newer, HEADER.size + 1)
    result = verify(repository, VerifyOptions(backups=[first]))
    assert [(verdict.backup, verdict.ok) for verdict in result.backups] == [(first, True)]
    assert result.packs_read == 1
    assert not verify(repository, VerifyOptions(backups=[second])).ok


def test_a_backup_that_is_not_there_cannot_be_asked_for(repository: Repository) -> None:
    with pytest.raises(NotFound, match="20000101T000000Z-00000000"):
        verify(repository, VerifyOptions(backups=["20000101T000000Z-00000000"]))


def test_a_deleted_backup_is_not_judged_and_its_packs_count_as_unreferenced(repository: Repository) -> None:
    _, newer = packs_of(repository)
    first, second = (manifest.backup for manifest in repository.manifests())
    repository.put_mark(second, "deleted")
    result = verify(repository)
    assert [verdict.backup for verdict in result.backups] == [first]
    assert result.unreferenced_packs == [newer]


# -- twins -----------------------------------------------------------------------------------------------------------


def twins(repository: Repository) -> Iterator[tuple[str, str]]:
    storage = repository.storage
    yield tuple(keys(storage, "keys/"))  # type: ignore[misc]  # one slot: two copies
    yield ring_keys(1)
    for manifest in repository.manifests():
        yield manifest_keys(manifest.backup)
        yield meta_keys(bytes.fromhex(manifest.layers[0].spans[0][0]))


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("spoil", ["flip", "delete", "cut"])
def test_damage_to_one_copy_is_found_and_loses_nothing(repository: Repository, copy: int, spoil: str) -> None:
    for pair in list(twins(repository)):
        spoilt = reopen(repository, copy_of(repository.storage))
        content = spoilt.storage.get(pair[copy])
        if spoil == "flip":
            flip(spoilt.storage, pair[copy], len(content) * 2 // 3, 3)
        elif spoil == "delete":
            spoilt.storage.delete(pair[copy])
        else:
            overwrite(spoilt.storage, pair[copy], content[:-7])
        result = verify(spoilt, PRESENT)
        damage = only_damage(result)
        assert damage.key in pair
        assert damage.redundant
        assert not result.ok
        assert all(verdict.ok for verdict in result.backups)


def test_damage_to_both_copies_of_a_manifest_or_layer_fails_its_backup_alone(repository: Repository) -> None:
    first, second = repository.manifests()
    for pair in (manifest_keys(second.backup), meta_keys(bytes.fromhex(second.layers[0].spans[0][0]))):
        spoilt = reopen(repository, copy_of(repository.storage))
        for key in pair:
            flip(spoilt.storage, key, HEADER.size + 30)
        result = verify(spoilt, PRESENT)
        assert {verdict.backup: verdict.ok for verdict in result.backups} == {first.backup: True, second.backup: False}
        assert set(pair) <= {damage.key for damage in result.damages if not damage.redundant}


def test_copies_that_are_whole_but_differ_are_found(repository: Repository) -> None:
    name = repository.manifests()[0].backup
    first, second = manifest_keys(name)
    plain, _ = repository.objects.get_small(Kind.MANIFEST, first, [first])
    repository.storage.delete(second)
    repository.objects.put_small(Kind.MANIFEST, first, [second], plain)
    damage = only_damage(verify(repository, PRESENT))
    assert damage == Damage(first, f"it differs from its second copy {second}", [name], redundant=True)


# -- the line of manifests -------------------------------------------------------------------------------------------


def three_backups() -> Repository:
    repository = new_repository()
    cluster = make_cluster(pages=4, tables=1)
    for seed in range(3):
        backup(repository, cluster.with_changed_pages(seed, 0.5))
    return repository


def test_a_manifest_that_vanished_is_named() -> None:
    repository = three_backups()
    _, gone, last = (manifest.backup for manifest in repository.manifests())
    for key in manifest_keys(gone):
        repository.storage.delete(key)
    result = verify(repository, PRESENT)
    assert result.ok
    (warning,) = result.warnings
    assert gone in warning
    assert last in warning


def test_a_manifest_that_was_deleted_by_us_is_not_missed() -> None:
    repository = three_backups()
    _, gone, _ = (manifest.backup for manifest in repository.manifests())
    repository.put_mark(gone, "deleted")
    for key in manifest_keys(gone):
        repository.storage.delete(key)
    assert verify(repository, PRESENT).warnings == []


def test_a_manifest_that_was_replaced_by_an_authentic_one_is_named() -> None:
    repository = three_backups()
    names = [manifest.backup for manifest in repository.manifests()]
    plain, _ = repository.objects.get_small(Kind.MANIFEST, f"manifests/{names[1]}", [f"manifests/{names[1]}"])
    for key in manifest_keys(names[1]):
        repository.storage.delete(key)
    repository.objects.put_small(Kind.MANIFEST, f"manifests/{names[1]}", manifest_keys(names[1]), plain)
    (warning,) = verify(repository, PRESENT).warnings
    assert warning == f"backup {names[2]} follows another {names[1]} than the one stored here"


def test_objects_that_do_not_belong_there_are_named(repository: Repository) -> None:
    strangers = ["keys/notes.txt", "manifests/copy-of-backup", "packs/00/desktop.ini", "ring/old", "meta/thumbs"]
    for key in strangers:
        repository.storage.put(key, [b"?"])
    result = verify(repository)
    assert result.ok
    assert sorted(result.warnings) == sorted(f"{key} does not belong to the repository" for key in strangers)


# -- every byte of every object --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Repository:
    """The smallest repository with an object of every kind."""
    repository = new_repository()
    cluster = SyntheticCluster(1024, {b"PG_VERSION": b"18\n", b"base/1": bytes(range(256)) * 9}, (b"base",))
    backup(repository, cluster)
    repository.put_mark(repository.manifests()[0].backup, "pin")
    record(repository, [DamagedItem("packs/ab/" + "ab" * 16, (1,), "1 of its 2 chunks are damaged")])
    save_checked(repository, {"ab": 1.7e9}, 1.7e9)
    lease = repository.take_lease("backup", "7")
    stored = copy_of(repository.storage)
    lease.release()
    return reopen(repository, stored)


def detects(repository: Repository) -> bool:
    result = verify(repository)
    return not result.ok or bool(result.warnings)


@pytest.mark.parametrize(
    "kind",
    [
        "config",
        "keys/",
        "ring/",
        "manifests/",
        "manifests-b/",
        "meta/",
        "meta-b/",
        "packs/",
        "marks/",
        "leases/",
        "damaged/",
        "checked/",
    ],
)
def test_a_flipped_bit_at_every_place_of_every_kind_of_object_is_found(tiny: Repository, kind: str) -> None:
    repository = reopen(tiny, copy_of(tiny.storage))
    storage = repository.storage
    chance = random.Random(kind)
    key = "config" if kind == "config" else keys(storage, kind)[0]
    content = storage.get(key)
    # Every byte of small objects; of packs the header, the chunks, the directory and the trailer, and a share of the
    # padding.
    positions = set(range(len(content))) if len(content) < 2000 else set(range(HEADER.size + 600))
    positions |= set(range(len(content) - 200, len(content)))
    positions |= {chance.randrange(len(content)) for _ in range(200)}
    missed = []
    for position in sorted(positions):
        flip(storage, key, position, chance.randrange(8))
        if not detects(repository):
            missed.append(position)
        for written in keys(storage, ""):
            if written == key or written not in keys(tiny.storage, ""):
                storage.delete(written)
        for deleted in set(keys(tiny.storage, "")).difference(keys(storage, "")):
            storage.put(deleted, [tiny.storage.get(deleted)])
    assert missed == []


def test_every_bit_of_every_header_field_and_of_the_trailer_matters(tiny: Repository) -> None:
    repository = reopen(tiny, copy_of(tiny.storage))
    storage = repository.storage
    (pack,) = keys(storage, "packs/")
    size = storage.stat(pack).size
    missed = []
    for position in [0, 7, 8, 9, 10, 11, 12, 15, 16, 31, 32, 63, *range(size - TRAILER.size, size)]:
        for bit in range(8):
            before = flip(storage, pack, position, bit)
            if verify(repository, VerifyOptions(depth="sample", sample_percent=100)).ok:
                missed.append((position, bit))
            overwrite(storage, pack, before)
            for written in keys(storage, "damaged/"):
                storage.delete(written)
    assert missed == []


def test_a_config_that_only_looks_the_same_is_found(repository: Repository) -> None:
    content = repository.storage.get("config")
    overwrite(repository.storage, "config", content.replace(b'"format":1', b'"format": 1'))
    assert only_damage(verify(repository, PRESENT)).key == "config"


# -- stores that fail ------------------------------------------------------------------------------------------------


def failing(repository: Repository, fails: Callable[[Call], Exception | None]) -> Repository:
    def hook(call: Call) -> None:
        error = fails(call)
        if error is not None:
            raise error

    return reopen(repository, FaultyStorage(repository.storage, hook=hook))


def test_a_bad_sector_is_a_damage_and_the_rest_is_still_read(two_backups: Repository) -> None:
    older, _ = packs_of(two_backups)

    def fails(call: Call) -> Exception | None:
        bad = call.method == "get" and call.key == older
        return StoreUnavailable(f"get {call.key}: input/output error") if bad else None

    result = verify(failing(reopen(two_backups, copy_of(two_backups.storage)), fails))
    damage = only_damage(result)
    assert (damage.key, damage.what) == (older, "input/output error")
    assert result.packs_read == 2


def test_a_bad_sector_in_a_first_copy_loses_nothing(two_backups: Repository) -> None:
    name = two_backups.manifests()[0].backup

    def fails(call: Call) -> Exception | None:
        bad = call.method == "get" and call.key == manifest_keys(name)[0]
        return StoreUnavailable(f"get {call.key}: input/output error") if bad else None

    damage = only_damage(verify(failing(reopen(two_backups, copy_of(two_backups.storage)), fails)))
    assert (damage.key, damage.redundant) == (manifest_keys(name)[0], True)


@pytest.mark.parametrize("error", [StoreUnplugged, StoreUnavailable])
def test_a_store_that_goes_away_is_an_error_and_not_a_thousand_damages(
    two_backups: Repository, error: type[Exception]
) -> None:
    older, newer = packs_of(two_backups)
    gone = False

    def fails(call: Call) -> Exception | None:
        nonlocal gone
        gone = gone or call.key in (older, newer)
        return error("the drive is not there") if gone else None

    with pytest.raises(error):
        verify(failing(reopen(two_backups, copy_of(two_backups.storage)), fails))


def test_a_read_only_store_is_verified_with_a_warning(two_backups: Repository) -> None:
    def fails(call: Call) -> Exception | None:
        return StoreDenied("put: read-only file system") if call.method == "put" else None

    result = verify(failing(two_backups, fails))
    assert result.ok
    assert len(result.warnings) == 2  # neither the lease nor the marks could be written


def test_a_lease_is_held_meanwhile_and_names_the_backups(two_backups: Repository) -> None:
    repository = reopen(two_backups, copy_of(two_backups.storage))
    older, _ = packs_of(repository)
    seen: list[tuple[str, list[str]]] = []

    def fails(call: Call) -> Exception | None:
        if call.method == "get" and call.key == older:
            for key in keys(repository.storage, "leases/"):
                record = repository.lease_record(key)
                seen.append((record.kind, record.parents))
        return None

    verify(failing(repository, fails))
    assert seen[0] == ("verify", sorted(manifest.backup for manifest in repository.manifests()))
    assert keys(repository.storage, "leases/") == []


def test_stopping_ends_it_without_a_mark_and_without_a_lease(two_backups: Repository) -> None:
    repository = reopen(two_backups, copy_of(two_backups.storage))
    with StopToken() as stop:

        def fails(call: Call) -> Exception | None:
            if call.key.startswith("packs/"):
                stop.stop("enough")
            return None

        with pytest.raises(Cancelled, match="enough"):
            verify_repository(failing(repository, fails), VerifyOptions(), stop, ignore)
    assert keys(repository.storage, "leases/") == []
    assert keys(repository.storage, "marks/") == []


def test_warnings_are_told_to_the_listener_as_well(repository: Repository) -> None:
    repository.storage.put("packs/stray", [b"?"])
    seen: list[Event] = []
    with StopToken() as stop:
        result = verify_repository(repository, PRESENT, stop, seen.append)
    assert [event.message for event in seen if isinstance(event, Warned)] == result.warnings != []


@pytest.mark.parametrize(
    "options",
    [
        VerifyOptions(threads=0),
        VerifyOptions(depth="sample", sample_percent=0),
        VerifyOptions(depth="rolling", rolling_days=0),
        VerifyOptions(depth="rolling", backups=["20000101T000000Z-00000000"]),
    ],
)
def test_impossible_options_are_refused(repository: Repository, options: VerifyOptions) -> None:
    with pytest.raises(UsageError):
        verify(repository, options)
