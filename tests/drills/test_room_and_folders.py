"""Refusals before a byte is written, folders in odd places, records that are not ours, damage in the repository."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from datamanager.base.errors import TargetTooSmall, TargetUnfit
from datamanager.drills.findings import Kind, remedy
from datamanager.drills.leftovers import remove_leftovers
from datamanager.drills.workplace import Workplace
from tests.drills.conftest import Drills
from tests.engine.conftest import account
from tests.servers import Server, hand_over


def test_a_volume_without_room_for_the_copy_and_a_tenth_is_refused_and_nothing_is_written(
    server: Server, drills: Drills
) -> None:
    manifest = drills.works.back_up(server).manifest
    free = psutil.disk_usage(str(drills.works.folder)).free
    for share in (1.2, 0.95):  # the second would fit, but leaves no tenth
        large = replace(manifest, volumes={"base": int(free * share)})
        with pytest.raises(TargetTooSmall, match=r"plan test restore: .*needs .* free") as refused:
            drills.plan(large)
        assert "--scratch" in refused.value.hint
        assert list(drills.scratch.iterdir()) == []
        assert list(drills.records.iterdir()) == []
    drills.plan(replace(manifest, volumes={"base": int(free * 0.85)}))


def test_a_scratch_folder_that_is_not_there_is_refused(server: Server, drills: Drills) -> None:
    manifest = drills.works.back_up(server).manifest
    with pytest.raises(TargetUnfit, match="there is no folder"):
        drills.plan(manifest, scratch=drills.works.folder / "nowhere")


def test_a_folder_with_a_long_path_and_odd_letters_is_good_enough(server: Server, drills: Drills) -> None:
    manifest = drills.works.back_up(server).manifest
    scratch = drills.works.folder / ('Dr. Müller\'s "scratch" & more ' * 4)
    scratch.mkdir()
    hand_over(scratch)
    plan = drills.plan(manifest, scratch=scratch)
    assert not plan.workplace.socket.is_relative_to(scratch)  # a socket's path may have 103 bytes
    result = drills.run(manifest, scratch=scratch)
    assert result.findings == []
    assert list(scratch.iterdir()) == []
    drills.assert_nothing_left()


def test_stored_bytes_that_went_bad_fail_the_proof(server: Server, drills: Drills) -> None:
    manifest = drills.works.back_up(server).manifest
    packs = [one for one in (drills.works.folder / "repository" / "packs").rglob("*") if one.is_file()]
    for path in packs:
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        path.write_bytes(data)
    result = drills.run(manifest)
    assert [one.kind for one in result.findings] == [Kind.RESTORE]
    assert "repo verify" in remedy(result.findings, manifest.backup)
    drills.assert_nothing_left()


def test_a_record_that_names_any_other_folder_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "data").mkdir(parents=True)
    records = tmp_path / "records"
    records.mkdir()
    value = {
        "folder": str(precious), "socket": str(precious / "socket"), "backup": "x", "machine": "", "pid": 1 << 30,
        "started": 0.0, "boot": "",
    }  # fmt: skip
    (records / "one.json").write_text(json.dumps(value))
    (records / "two.json").write_text("no record")
    told: list[str] = []
    assert remove_leftovers(records, told.append) == []
    assert (precious / "data").is_dir()
    assert len(told) == 2
    assert all("it was left alone" in one for one in told)


def test_a_link_in_place_of_a_leftover_folder_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "data").mkdir(parents=True)
    records = tmp_path / "records"
    records.mkdir()
    folder = tmp_path / "datamanager-drill-0123abcd"
    workplace = Workplace(folder, folder / "socket", records / "one.json")
    workplace.make("x", account())
    value = json.loads(workplace.record.read_text())
    workplace.record.write_text(json.dumps(value | {"started": value["started"] + 1}))  # a process that is gone
    (folder / "socket").rmdir()
    folder.rmdir()
    folder.symlink_to(precious)
    told: list[str] = []
    assert remove_leftovers(records, told.append) == []
    assert (precious / "data").is_dir()
    assert "could not be removed" in told[0]
