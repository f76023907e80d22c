"""Two folders change places in one step, and mount points are seen for what they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from datamanager.system.exchange import exchange, is_mount_point, mount_points


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is sure to have it")
def test_two_folders_change_places(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "the other"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).touch()
    assert exchange(one, other)
    assert (one / "the other").exists()
    assert (other / "one").exists()
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "missing")
    assert (one / "the other").exists()


@pytest.mark.mounts
def test_a_bind_mount_of_the_same_volume_is_a_mount_point(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "with a blank"
    source.mkdir()
    place.mkdir()
    assert not is_mount_point(place)
    subprocess.run(["mount", "--bind", str(source), str(place)], check=True)
    try:
        assert place in mount_points()
        assert is_mount_point(place)
        with pytest.raises(OSError, match="busy"):
            exchange(source, place)
    finally:
        subprocess.run(["umount", str(place)], check=True)
