"""Addresses: paths, file URLs, and those that nobody knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamanager.base.errors import StoreUnplugged, UsageError
from datamanager.storage.local import LocalStorage
from datamanager.storage.registry import create_storage, file_url_path, local_path, open_storage

from .contract import FOLDERS


def test_a_store_opens_by_its_path_and_by_its_own_url(tmp_path: Path) -> None:
    root = tmp_path / "büro drive #1 50%"
    made = create_storage(root, FOLDERS)
    made.put("leases/a-1", [b"x"])
    assert made.url.startswith("file:///")
    for address in (root, str(root), made.url):
        opened = open_storage(address)
        assert isinstance(opened, LocalStorage)
        assert opened.get("leases/a-1") == b"x"


def test_a_relative_path_is_fixed_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_storage(tmp_path / "store", FOLDERS)
    monkeypatch.chdir(tmp_path)
    store = open_storage("store")
    monkeypatch.chdir("/")
    store.put("leases/a-1", [b"x"])
    assert (tmp_path / "store/leases/a-1").read_bytes() == b"x"


def test_growing_folders_reach_the_store(tmp_path: Path) -> None:
    create_storage(tmp_path / "store", [*FOLDERS, "wal"])
    store = open_storage(tmp_path / "store", growing=["wal"])
    store.put("wal/main/1/one", [b"x"])
    assert store.get("wal/main/1/one") == b"x"


def test_an_absent_drive_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnplugged, match=r"drive .*nowhere is not there"):
        open_storage(f"file://{tmp_path}/nowhere")


@pytest.mark.parametrize(
    ("url", "windows", "path"),
    [
        ("file:///mnt/usb%20drive", False, "/mnt/usb drive"),
        ("file:///mnt/%23%3F%25", False, "/mnt/#?%"),
        ("file:///b%C3%BCro", False, "/büro"),
        ("FILE://localhost/mnt", False, "/mnt"),
        ("file:/mnt/drive", False, "/mnt/drive"),
        ("file:///C:/backup", False, "/C:/backup"),
        ("file:///C:/back%20up", True, "C:/back up"),
        ("file:///E:", True, "E:"),
        ("file://server/share/x", True, "//server/share/x"),
    ],
)
def test_a_file_url_means_a_path(url: str, windows: bool, path: str) -> None:
    assert file_url_path(url, windows=windows) == path


@pytest.mark.parametrize(
    "url", ["file://server/share", "file://mnt", "file:relative", "file:///a?b", "file:///a#b", "file:///a%00b"]
)
def test_a_file_url_without_a_local_absolute_path_is_refused_with_a_remedy(url: str) -> None:
    with pytest.raises(UsageError) as refusal:
        open_storage(url)
    assert refusal.value.hint


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_every_path_survives_the_way_through_its_url(name: str) -> None:
    path = Path("/mnt") / name
    assert local_path(path.as_uri()) == path


@pytest.mark.parametrize("address", [r"C:\backup", "C:/backup", "d:", "/mnt/a:b", "./host:x", r"\\server\share"])
def test_a_windows_drive_or_a_colon_further_on_is_not_a_scheme(address: str) -> None:
    assert local_path(address) == Path(address).absolute()


@pytest.mark.parametrize("address", ["swift://user:geheim@host/x", "SWIFT:container", "swift+x.1-2://geheim"])
def test_an_unknown_scheme_names_the_known_ones_and_repeats_no_secret(address: str) -> None:
    with pytest.raises(UsageError, match="scheme swift") as refusal:
        open_storage(address)
    assert "file" in refusal.value.hint
    assert "geheim" not in f"{refusal.value} {refusal.value.hint}"
    with pytest.raises(UsageError):
        create_storage(address, FOLDERS)
    assert local_path(address) is None


@pytest.mark.parametrize("address", ["", "a\0b"])
def test_an_address_that_is_no_path_is_refused(address: str) -> None:
    with pytest.raises(UsageError):
        open_storage(address)
