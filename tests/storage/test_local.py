"""What is particular to folders: temporaries, killed processes, folders that put makes or does not, error numbers."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from datamanager.base.errors import (
    ObjectExists,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StoreUnplugged,
    UsageError,
)
from datamanager.storage import volume
from datamanager.storage.local import LocalStorage, sweep_temporaries

from .contract import FOLDERS

_DAY = 86_400.0


@pytest.fixture
def store(tmp_path: Path) -> LocalStorage:
    return LocalStorage.create(tmp_path / "store", FOLDERS)


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_create_makes_every_folder_and_its_parents(tmp_path: Path) -> None:
    store = LocalStorage.create(tmp_path / "store", ["packs/00", "packs/01", "leases"])
    made = sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*"))
    assert made == ["leases", "packs", "packs/00", "packs/01"]


def test_create_takes_an_empty_folder_and_refuses_one_in_use(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    LocalStorage.create(tmp_path / "empty", FOLDERS)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="taken") as refusal:
        LocalStorage.create(tmp_path / "used", FOLDERS)
    assert "empty" in refusal.value.hint
    assert _files(tmp_path / "used") == ["letter.txt"]
    with pytest.raises(UsageError, match="taken"):
        LocalStorage.create(tmp_path / "used" / "letter.txt", FOLDERS)


@pytest.mark.parametrize("folders", [[], ["../out"], ["/abs"], ["a//b"]])
def test_create_refuses_folders_that_no_key_could_name(tmp_path: Path, folders: list[str]) -> None:
    with pytest.raises(ValueError):
        LocalStorage.create(tmp_path / "store", folders)
    assert not (tmp_path / "store").exists()


def test_opening_an_absent_or_an_empty_folder_says_that_the_drive_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "mount-point").mkdir()
    for root in (tmp_path / "mount-point", tmp_path / "nowhere", tmp_path / "nowhere" / "deeper"):
        with pytest.raises(StoreUnplugged, match=f"repository drive {root} is not there") as unplugged:
            LocalStorage(root)
        assert "Plug the drive in" in unplugged.value.hint


def test_opening_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not a folder"):
        LocalStorage(tmp_path / "file")


def test_put_makes_no_folder(store: LocalStorage) -> None:
    for key in ("packs/77/one", "newly/one", "leases/deep/one"):
        with pytest.raises(StoreUnplugged, match="folder is missing"):
            store.put(key, [b"x"])
    assert _files(store.root) == []
    assert not (store.root / "newly").exists()
    assert not (store.root / "leases/deep").exists()


def test_put_makes_subfolders_only_inside_growing_top_level_folders(tmp_path: Path) -> None:
    LocalStorage.create(tmp_path / "store", [*FOLDERS, "wal"])
    store = LocalStorage(tmp_path / "store", growing=["wal", "marks"])
    store.put("wal/main/1/00000000/000000010000000000000001", [b"x"])
    store.put("wal/main/1/00000000/000000010000000000000002", [b"y"])
    store.put("wal/timeline", [b"z"])
    store.barrier()
    assert len([*store.list("wal/main/")]) == 2
    with pytest.raises(StoreUnplugged):
        store.put("marks/one/1", [b"x"])
    assert not (tmp_path / "store" / "marks").exists()


def test_a_root_that_was_removed_or_emptied_is_unplugged(store: LocalStorage) -> None:
    root = store.root
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(StoreUnplugged):
        store.put("packs/00/one", [b"x"])
    root.mkdir()
    with pytest.raises(StoreUnplugged):
        store.get("packs/00/one")
    with pytest.raises(StoreUnplugged):
        store.put("packs/00/one", [b"x"])
    with pytest.raises(StoreUnplugged):
        store.list("")
    with pytest.raises(StoreUnplugged):
        store.barrier()
    assert [*root.iterdir()] == []


def test_temporaries_and_foreign_files_are_not_listed(store: LocalStorage) -> None:
    store.put("packs/00/one", [b"x"])
    (store.root / "packs/00/.put-0123456789abcdef.tmp").write_bytes(b"begun")
    (store.root / "packs/00/.DS_Store").write_bytes(b"x")
    (store.root / "System Volume Information").mkdir()
    (store.root / "System Volume Information" / "data").write_bytes(b"x")
    (store.root / "packs/00/link").symlink_to(store.root / "packs/00/one")
    assert [found.key for found in store.list("")] == ["packs/00/one"]


def test_a_put_leaves_one_file_and_no_temporary(store: LocalStorage) -> None:
    store.put("packs/00/one", [b"x"])
    with pytest.raises(ObjectExists):
        store.put("packs/00/one", [b"y"])
    assert _files(store.root) == ["one"]


def test_other_accounts_cannot_read_what_is_stored(store: LocalStorage) -> None:
    store.put("packs/00/one", [b"x"])
    for path in (store.root, *store.root.rglob("*")):
        assert path.stat().st_mode & 0o007 == 0


def test_sweeping_removes_only_old_temporaries_of_ours(store: LocalStorage) -> None:
    folder = store.root / "packs/00"
    names = (".put-0123456789abcdef.tmp", ".put-fedcba9876543210.tmp", ".put-short.tmp", ".other.tmp")
    for name in names:
        (folder / name).write_bytes(b"begun")
    store.put("packs/00/one", [b"x"])
    long_ago = time.time() - _DAY - 60
    for name in (names[0], names[2], names[3], "one"):
        os.utime(folder / name, (long_ago, long_ago))
    assert sweep_temporaries(store, _DAY) == 1
    assert _files(store.root) == sorted([*names[1:], "one"])
    assert sweep_temporaries(store, _DAY) == 0


_WRITER = """
import itertools, sys
from pathlib import Path
from datamanager.storage.local import LocalStorage
store = LocalStorage(Path(sys.argv[1]))
for number in itertools.count():
    store.put(f"packs/00/{number:08d}", [bytes([number % 251]) * 65_536] * 16)
    print(number, flush=True)
"""


def test_a_killed_process_leaves_no_half_object_visible(store: LocalStorage) -> None:
    for pause_seconds in (0.0, 0.004, 0.011):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(store.root)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        with writer.stdout:
            for _ in range(3):
                assert writer.stdout.readline()
            time.sleep(pause_seconds)
            writer.send_signal(signal.SIGKILL)
            writer.wait(10)
        found = [*store.list("")]
        assert len(found) >= 3
        for each in found:
            number = int(each.key.rpartition("/")[2])
            assert store.get(each.key) == bytes([number % 251]) * (16 << 16)
            store.delete(each.key)
    sweep_temporaries(store, -60.0)
    assert _files(store.root) == []


def test_processes_racing_for_a_name_have_one_winner(store: LocalStorage) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom datamanager.base.errors import ObjectExists\n"
        "from datamanager.storage.local import LocalStorage\n"
        "store = LocalStorage(Path(sys.argv[1]))\nwon = 0\nsys.stdin.read()\n"
        "for number in range(200):\n"
        "    try:\n        store.put(f'leases/{number}', [sys.argv[2].encode()])\n        won += 1\n"
        "    except ObjectExists:\n        pass\n"
        "print(won)\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(store.root), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two", "six")
    ]
    time.sleep(0.3)
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
    won = []
    for racer in racers:
        assert racer.stdout is not None
        with racer.stdout:
            won.append(int(racer.stdout.read()))
        assert racer.wait(30) == 0
    contents = [store.get(f"leases/{number}") for number in range(200)]
    assert won == [contents.count(name) for name in (b"one", b"two", b"six")]
    assert len(_files(store.root)) == 200


@pytest.mark.parametrize(
    ("number", "expected", "retryable"),
    [
        (errno.ENOSPC, StoreFull, False),
        (errno.EDQUOT, StoreFull, False),
        (errno.EROFS, StoreDenied, False),
        (errno.EACCES, StoreDenied, False),
        (errno.EPERM, StoreDenied, False),
        (errno.ENODEV, StoreUnplugged, False),
        (errno.ENXIO, StoreUnplugged, False),
        (errno.ENOTCONN, StoreUnplugged, False),
        (errno.EIO, StoreUnavailable, True),
        (errno.ESTALE, StoreUnavailable, True),
        (errno.EMFILE, StoreUnavailable, True),
    ],
)
def test_an_error_number_becomes_what_the_caller_can_do(
    number: int, expected: type[StoreError], retryable: bool
) -> None:
    error = volume.store_error(OSError(number, os.strerror(number), "/secret/path"), "put packs/00/one")
    assert type(error) is expected
    assert error.retryable is retryable
    assert error.message == f"put packs/00/one: {os.strerror(number).lower()}"
    assert error.hint


class _WindowsError(OSError):
    """What Windows raises, on any system."""

    def __init__(self, number: int, winerror: int) -> None:
        super().__init__(number, "the system's words")
        self.winerror = winerror


@pytest.mark.parametrize(
    ("number", "winerror", "expected"),
    [
        (errno.EACCES, 21, StoreUnplugged),
        (errno.ENOENT, 3, StoreUnplugged),
        (errno.EINVAL, 1167, StoreUnplugged),
        (errno.ENOSPC, 112, StoreFull),
        (errno.EACCES, 39, StoreFull),
        (errno.EACCES, 19, StoreDenied),
        (errno.EACCES, 5, StoreDenied),
        (errno.EACCES, 32, StoreUnavailable),
    ],
)
def test_a_windows_error_is_told_by_its_own_number(number: int, winerror: int, expected: type[StoreError]) -> None:
    assert type(volume.store_error(_WindowsError(number, winerror), "put packs/00/one")) is expected


def test_renaming_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("new")
    (tmp_path / "taken").write_text("old")
    with pytest.raises(FileExistsError):
        volume.rename_to_free_name(tmp_path / "source", tmp_path / "taken")
    volume.rename_to_free_name(tmp_path / "source", tmp_path / "free")
    assert (tmp_path / "taken").read_text() == "old"
    assert (tmp_path / "free").read_text() == "new"


def test_space_is_that_of_the_volume(store: LocalStorage) -> None:
    space = store.space()
    statistics = os.statvfs(store.root)
    assert space is not None
    assert space.device == store.root.stat().st_dev
    assert space.total == statistics.f_blocks * statistics.f_frsize
    assert abs(space.free - statistics.f_bavail * statistics.f_frsize) < 1 << 30


@pytest.mark.root
def test_an_account_without_the_right_is_denied_and_told_so() -> None:
    if os.geteuid() != 0:
        pytest.skip("changing the account needs root")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store = LocalStorage.create(Path(folder) / "store", FOLDERS)
        store.put("packs/00/one", [b"x"])
        store.root.chmod(0o755)
        _assert_denied_to_others(store)


def _assert_denied_to_others(store: LocalStorage) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from datamanager.base.errors import StoreDenied\nfrom datamanager.storage.local import LocalStorage\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "store = LocalStorage(Path(sys.argv[1]))\n"
        "for call in (lambda: store.put('packs/00/two', [b'x']), lambda: store.get('packs/00/one')):\n"
        "    try:\n        call()\n    except StoreDenied as error:\n        print(error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(store.root)], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.count("Give this account the right") == 2
