"""Configuration that lay outside the data directory: kept in the manifest, written beside a restored one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from datamanager.base.errors import IntegrityError, TargetUnfit
from datamanager.engine.restore.outside import check_outside_folder, outside_folder, start_options, write_outside_files
from datamanager.postgres.outside_model import OutsideFile
from datamanager.repository.format import canonical_json
from datamanager.repository.manifest import LayerReference, Manifest

EVERY_BYTE = bytes(range(256))


def manifest_of(*files: OutsideFile) -> Manifest:
    return Manifest(
        backup="20261123T150412Z-1a2b3c4d",
        sequence=1,
        previous=None,
        cluster="office",
        label="office",
        program="tests",
        started="2026-11-23T15:04:12+00:00",
        ended="2026-11-23T15:04:13+00:00",
        system_identifier="1",
        version="18.6",
        major=18,
        page_size=8192,
        segment_size=1 << 30,
        wal_segment_size=16 << 20,
        checksums=True,
        timeline=1,
        start_lsn="0/1",
        stop_lsn="0/2",
        method="full",
        parent=None,
        layers=[LayerReference([("00" * 16, 0, 3)], 1, 1, 1, 1, 1)],
        tablespaces=[],
        volumes={"base": 1},
        files=1,
        bytes_read=1,
        bytes_stored=1,
        bytes_reused=0,
        server={},
        outside=list(files),
    )


def kept(path: str, data: bytes = EVERY_BYTE, role: str = "config_file", mode: int = 0o640) -> OutsideFile:
    return OutsideFile(path, role, mode, len(data), data.decode("latin-1"), "disk")


def test_every_byte_survives_the_manifest() -> None:
    one = manifest_of(kept("/etc/x.conf"))
    read = Manifest.from_json(one.to_json(), "it")
    assert read == one
    assert read.outside[0].data == EVERY_BYTE


def test_a_manifest_from_before_has_neither_control_nor_outside() -> None:
    value = json.loads(manifest_of(kept("/etc/x.conf")).to_json())
    for name in ("outside", "control"):
        value.pop(name, None)
    read = Manifest.from_json(canonical_json(value), "it")
    assert (read.outside, read.control, read.cold) == ([], {}, False)


def test_files_land_below_the_folder_with_their_mode_and_contents(tmp_path: Path) -> None:
    files = (
        kept("/etc/postgresql/postgresql.conf"),
        kept("/etc/postgresql/pg_hba.conf", b"local\n", "hba_file", 0o400),
        OutsideFile("/etc/ssl/private.key", "private_key", 0o600, 0, None, "", "it is a private key"),
        kept("C:\\Program Files\\data\\x.conf", b"w", "included"),
    )
    folder = outside_folder(tmp_path / "new")
    done = write_outside_files(manifest_of(*files), folder, None)
    assert folder == tmp_path / "new.outside"
    assert (folder / "etc/postgresql/postgresql.conf").read_bytes() == EVERY_BYTE
    assert (folder / "etc/postgresql/postgresql.conf").stat().st_mode & 0o777 == 0o640
    assert (folder / "etc/postgresql/pg_hba.conf").stat().st_mode & 0o777 == 0o600
    assert (folder / "C/Program Files/data/x.conf").read_bytes() == b"w"
    assert {one.stat().st_mode & 0o777 for one in (folder, folder / "etc", folder / "etc/postgresql")} == {0o700}
    assert [(one.path, one.place is None) for one in done] == [(one.path, one.content is None) for one in files]
    assert start_options(done, tmp_path / "new") == {
        "config_file": f"{folder}/etc/postgresql/postgresql.conf",
        "data_directory": f"{tmp_path}/new",
        "hba_file": f"{folder}/etc/postgresql/pg_hba.conf",
    }


@pytest.mark.root
def test_files_and_folders_belong_to_the_owner(tmp_path: Path) -> None:
    folder = tmp_path / "new.outside"
    write_outside_files(manifest_of(kept("/etc/deep/x.conf")), folder, (12345, 23456))
    for one in (folder, folder / "etc", folder / "etc/deep", folder / "etc/deep/x.conf"):
        assert (one.stat().st_uid, one.stat().st_gid) == (12345, 23456)
    assert tmp_path.stat().st_uid != 12345


@pytest.mark.parametrize("path", ["/etc/../../x", "etc/x", "", "/", "../x", "/etc/\0x", "C:x", "/etc/./../x"])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "new.outside"
    with pytest.raises(IntegrityError):
        write_outside_files(manifest_of(kept(path)), folder, None)
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == []


def test_content_that_cannot_be_is_refused(tmp_path: Path) -> None:
    file = replace(kept("/etc/x"), content="€")
    with pytest.raises(IntegrityError):
        write_outside_files(manifest_of(file), tmp_path / "new.outside", None)


def test_a_folder_that_holds_something_or_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    one = manifest_of(kept("/etc/x"))
    full, link = tmp_path / "full.outside", tmp_path / "link.outside"
    full.mkdir()
    check_outside_folder(one, full)
    (full / "mine").touch()
    link.symlink_to(tmp_path / "elsewhere")
    for folder in (full, link):
        with pytest.raises(TargetUnfit):
            write_outside_files(one, folder, None)
    check_outside_folder(manifest_of(), full)
