"""The contract on real volumes, and what happens when they fill up, turn read-only, vanish or lose power."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.base.errors import StoreDenied, StoreFull, StoreUnavailable, StoreUnplugged, UsageError
from datamanager.storage.base import Storage
from datamanager.storage.local import LocalStorage, sweep_temporaries

from . import mounts
from .contract import FOLDERS, StorageContract
from .mounts import MIB, Volume

pytestmark = pytest.mark.mounts


@pytest.fixture(scope="module", params=sorted(mounts.KINDS))
def shared_volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    with mounts.KINDS[request.param](tmp_path_factory.mktemp(request.param)) as volume:
        yield volume


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Volume]:
    with mounts.ext4(tmp_path / "ext4") as volume:
        yield volume


@pytest.fixture(params=sorted(mounts.KINDS))
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    with mounts.KINDS[request.param](tmp_path / "own") as volume:
        yield volume


class TestLocalStorageOnVolumes(StorageContract):
    _numbers = itertools.count()

    @pytest.fixture
    def store(self, shared_volume: Volume) -> Iterator[Storage]:
        store = LocalStorage.create(shared_volume.folder / f"store-{next(self._numbers)}", FOLDERS)
        yield store
        for found in store.list(""):
            store.delete(found.key)


def test_every_volume_here_survives_a_power_cut_and_says_so(shared_volume: Volume) -> None:
    store = LocalStorage.create(shared_volume.folder / "capable", FOLDERS)
    assert store.capabilities.power_safe


def test_a_new_drive_with_only_the_folders_of_its_system_counts_as_empty(ext4: Volume) -> None:
    assert (ext4.folder / "lost+found").is_dir()
    with pytest.raises(StoreUnplugged):
        LocalStorage(ext4.folder)
    store = LocalStorage.create(ext4.folder, FOLDERS)
    store.put("leases/a-1", [b"x"])
    assert [found.key for found in store.list("")] == ["leases/a-1"]


def test_what_was_put_is_there_after_plugging_in_again(volume: Volume) -> None:
    store = LocalStorage.create(volume.folder / "store", FOLDERS)
    store.put("packs/00/one", [b"x" * 100_000])
    store.barrier()
    volume.remount()
    assert LocalStorage(volume.folder / "store").get("packs/00/one") == b"x" * 100_000


@pytest.mark.parametrize("at_mount_point", [True, False], ids=["the-mount-point", "a-folder-below"])
def test_a_yanked_drive_is_unplugged_and_nothing_is_written_into_its_mount_point(
    volume: Volume, at_mount_point: bool
) -> None:
    root = volume.folder if at_mount_point else volume.folder / "store"
    store = LocalStorage.create(root, FOLDERS, growing=["leases"])
    store.put("packs/00/one", [b"x"])
    volume.yank()
    for call in (
        lambda: store.put("packs/00/two", [b"x"]),
        lambda: store.put("leases/new/two", [b"x"]),
        lambda: store.get("packs/00/one"),
        lambda: store.stat("packs/00/one"),
        lambda: store.delete("packs/00/one"),
        lambda: [*store.list("")],
        lambda: [*store.list("packs/00/")],
        store.barrier,
        store.space,
        lambda: sweep_temporaries(store),
        lambda: LocalStorage(root),
    ):
        with pytest.raises(StoreUnplugged, match=f"repository drive {root} is not there"):
            call()
    assert [*volume.folder.iterdir()] == []


def test_a_drive_yanked_while_threads_write_leaves_nothing_in_its_mount_point(ext4: Volume) -> None:
    store = LocalStorage.create(ext4.folder, FOLDERS)
    running = threading.Barrier(5)
    ended: list[BaseException] = []

    def write(thread: int) -> None:
        running.wait(10)
        try:
            for number in itertools.count():
                store.put(f"packs/00/{thread}-{number}", [bytes(20_000)])
                store.delete(f"packs/00/{thread}-{number}")
        except BaseException as error:  # noqa: BLE001 - looked at below
            ended.append(error)

    writers = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for writer in writers:
        writer.start()
    running.wait(10)
    ext4.yank()
    for writer in writers:
        writer.join(30)
    assert [type(error) for error in ended] == [StoreUnplugged] * 4
    assert [*ext4.folder.iterdir()] == []


def test_a_listing_is_not_cut_short_when_the_drive_goes(ext4: Volume) -> None:
    store = LocalStorage.create(ext4.folder, FOLDERS)
    for folder in ("packs/00", "packs/a7", "packs/ff", "leases", "manifests"):
        store.put(f"{folder}/one", [b"x"])
    listing = store.list("")
    next(listing)
    ext4.yank()
    with pytest.raises(StoreUnplugged):
        list(listing)


def test_another_volume_at_the_same_place_is_not_taken_for_the_first(tmp_path: Path, ext4: Volume) -> None:
    LocalStorage.create(ext4.folder, FOLDERS)
    ext4.unmount()
    below = LocalStorage.create(ext4.folder, FOLDERS)
    ext4.mount()
    with pytest.raises(StoreUnplugged):
        below.put("packs/00/one", [b"x"])
    assert [*LocalStorage(ext4.folder).list("")] == []


def test_a_store_is_not_made_where_the_drive_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(StoreUnplugged, match="is not there"):
        LocalStorage.create(tmp_path / "media" / "drive" / "store", FOLDERS)
    assert [*tmp_path.iterdir()] == []


def _fill(store: LocalStorage, part_bytes: int) -> list[str]:
    """Put objects until the store is full; returns those that were stored."""
    stored: list[str] = []
    full = False
    while not full:
        try:
            store.put(f"packs/00/{len(stored)}", [bytes(part_bytes)])
            stored.append(f"packs/00/{len(stored)}")
        except StoreFull:
            full = True
    with pytest.raises(StoreFull, match="put packs/00/more"):
        store.put("packs/00/more", [bytes(part_bytes)])
    return stored


@contextlib.contextmanager
def _small_volume(kind: str, base: Path) -> Iterator[Volume]:
    if kind == "tmpfs":
        with mounts.tmpfs(base, 4 * MIB) as volume:
            yield volume
    else:
        with mounts.KINDS[kind](base, 40 * MIB if kind == "fat32" else 8 * MIB) as volume:
            yield volume


@pytest.mark.parametrize("kind", ["tmpfs", *sorted(mounts.KINDS)])
def test_a_full_volume_keeps_nothing_of_the_last_put_and_works_again_after_a_delete(kind: str, tmp_path: Path) -> None:
    with _small_volume(kind, tmp_path / "small") as volume:
        store = LocalStorage.create(volume.folder / "store", FOLDERS)
        stored = _fill(store, 700_000)
        assert sorted(found.key for found in store.list("")) == sorted(stored)
        assert all(found.size == 700_000 for found in store.list(""))
        assert sorted(path.name for path in (store.root / "packs/00").iterdir()) == sorted(
            key.rpartition("/")[2] for key in stored
        )
        store.delete(stored[0])
        store.put("packs/ff/after", [b"x" * 600_000])
        store.barrier()
        assert store.stat("packs/ff/after").size == 600_000


def test_a_store_that_does_not_fit_is_not_half_made(tmp_path: Path) -> None:
    with mounts.tmpfs(tmp_path / "small", 4 * MIB) as volume:
        mounts.run("mount", "-o", "remount,nr_inodes=20", str(volume.folder))
        with pytest.raises(StoreFull):
            LocalStorage.create(volume.folder / "store", [f"packs/{number:02x}" for number in range(256)])
        assert [*volume.folder.iterdir()] == []


def test_a_read_only_volume_refuses_writes_and_still_reads(ext4: Volume) -> None:
    store = LocalStorage.create(ext4.folder / "store", FOLDERS)
    store.put("packs/00/one", [b"x"])
    mounts.run("mount", "-o", "remount,ro", str(ext4.folder))
    with pytest.raises(StoreDenied):
        store.put("packs/00/two", [b"x"])
    with pytest.raises(StoreDenied):
        store.delete("packs/00/one")
    with pytest.raises(StoreDenied):
        sweep_temporaries(store)
    with pytest.raises(StoreDenied):
        LocalStorage.create(ext4.folder / "other", FOLDERS)
    assert LocalStorage(ext4.folder / "store").get("packs/00/one") == b"x"


def test_after_a_power_cut_what_a_barrier_followed_is_whole_and_no_object_is_half(ext4: Volume) -> None:
    store = LocalStorage.create(ext4.folder / "store", FOLDERS, growing=["manifests"])
    safe = {f"packs/00/safe-{number}": bytes([number]) * (10_000 * number) for number in range(1, 9)}
    safe["manifests/deep/er/safe"] = b"in folders made on the way"
    for key, content in safe.items():
        store.put(key, [content])
    store.barrier()
    later = {f"packs/ff/later-{number}": bytes([number]) * 50_000 for number in range(8)}
    for key, content in later.items():
        store.put(key, [content])
    (ext4.folder / "store" / "packs/ff" / ".put-0123456789abcdef.tmp").write_bytes(b"begun")
    ext4.cut_power()
    with pytest.raises(StoreUnavailable):
        store.put("packs/00/too-late", [b"x"])
    with pytest.raises(StoreUnavailable):
        store.barrier()
    ext4.remount()
    again = LocalStorage(ext4.folder / "store")
    assert {key: again.get(key) for key in safe} == safe
    listed = {found.key for found in again.list("")} - safe.keys()
    assert listed <= later.keys()
    assert all(again.get(key) == later[key] for key in listed)


@pytest.mark.parametrize("kind", ["exfat", "fat32"])
def test_a_barrier_reaches_past_the_program_of_a_fuse_volume(kind: str, tmp_path: Path) -> None:
    with mounts.KINDS[kind](tmp_path / "own") as volume:
        store = LocalStorage.create(volume.folder / "store", FOLDERS, growing=["manifests"])
        safe = {f"packs/00/safe-{number}": bytes([number]) * (10_000 * number) for number in range(1, 9)}
        safe["manifests/deep/er/safe"] = b"in folders made on the way"
        for key, content in safe.items():
            store.put(key, [content])
        store.barrier()
        volume.kill_program()
        with pytest.raises(StoreUnplugged):
            store.put("packs/00/too-late", [b"x"])
        with pytest.raises(StoreUnplugged):
            store.get("packs/00/safe-1")
        volume.remount()
        again = LocalStorage(volume.folder / "store")
        assert {key: again.get(key) for key in safe} == safe


def test_folders_of_a_new_store_survive_a_power_cut(ext4: Volume) -> None:
    LocalStorage.create(ext4.folder / "store", [f"packs/{number:02x}" for number in range(256)])
    ext4.cut_power()
    ext4.remount()
    store = LocalStorage(ext4.folder / "store")
    store.put("packs/fe/one", [b"x"])
    assert len([*(ext4.folder / "store" / "packs").iterdir()]) == 256


def test_a_deletion_followed_by_a_barrier_survives_a_power_cut(ext4: Volume) -> None:
    store = LocalStorage.create(ext4.folder / "store", FOLDERS)
    store.put("leases/a-1", [b"x"])
    store.barrier()
    store.delete("leases/a-1")
    store.barrier()
    ext4.cut_power()
    ext4.remount()
    assert [*LocalStorage(ext4.folder / "store").list("")] == []


def test_a_store_cannot_be_made_over_another(ext4: Volume) -> None:
    LocalStorage.create(ext4.folder, FOLDERS)
    with pytest.raises(UsageError, match="taken"):
        LocalStorage.create(ext4.folder, FOLDERS)
