"""Writing files so that a power cut leaves the old one or the new one."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from datamanager.base.files import (
    HAS_SYNCFS,
    remove_leftovers,
    sync_directory,
    sync_folder,
    sync_tree,
    sync_volume,
    write_durably,
)

posix = pytest.mark.skipif(os.name == "nt", reason="Windows keeps no such modes")


def test_a_new_file_and_a_replaced_one_hold_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    for content in (b"one", b"", b"three" * 100_000):
        write_durably(path, content)
        assert path.read_bytes() == content
    assert [member.name for member in tmp_path.iterdir()] == ["settings.toml"]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_the_mode_is_set_whatever_the_old_file_had(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o666)
    write_durably(path, b"secret", mode=mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_failure_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    (path / "inside").write_bytes(b"x")
    with pytest.raises(OSError, match="taken"):
        write_durably(path, b"new")
    assert [member.name for member in tmp_path.iterdir()] == ["taken"]
    assert (path / "inside").read_bytes() == b"x"


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_durably(tmp_path / "absent" / "file", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_the_old_or_the_new_file_and_never_a_part(tmp_path: Path) -> None:
    path = tmp_path / "state"
    contents = {b"a" * 200_000, b"b" * 100_000}
    write_durably(path, next(iter(contents)))
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(15):
        for content in contents:
            write_durably(path, content)
    done.set()
    reader.join()
    assert seen <= contents


def test_many_writers_of_one_file_leave_one_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "state"
    contents = [bytes([number]) * 50_000 for number in range(8)]
    threads = [threading.Thread(target=write_durably, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert [member.name for member in tmp_path.iterdir()] == ["state"]


def test_a_tree_and_a_folder_can_be_synced(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x")
    sync_tree(tmp_path)
    sync_directory(tmp_path)


def test_syncing_a_tree_that_is_not_there_is_an_error_and_a_folder_is_not(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        sync_tree(tmp_path / "absent")
    sync_directory(tmp_path / "absent")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that syncs no folders")
def test_a_folder_that_cannot_be_synced_says_so_and_one_that_is_gone_is_an_error(tmp_path: Path) -> None:
    assert sync_folder(tmp_path) is True
    assert sync_folder(Path("/proc/self")) is False
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "absent")


@pytest.mark.skipif(not HAS_SYNCFS, reason="only Linux syncs one volume")
def test_a_volume_is_synced_by_any_open_file_of_it(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x")
        sync_volume(file.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync_volume(-1)


def test_what_a_killed_write_left_goes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "pg_hba.conf"
    write_durably(path, b"kept")
    for name in (".pg_hba.conf.0381b260.tmp", ".pg_hba.conf.0381b26.tmp", ".pg_hba_conf.0381b260.tmp", "x.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(path)
    assert {one.name for one in tmp_path.iterdir()} == {
        "pg_hba.conf", ".pg_hba.conf.0381b26.tmp", ".pg_hba_conf.0381b260.tmp", "x.tmp",
    }  # fmt: skip
