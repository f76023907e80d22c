"""What a restore in place refuses before anything is touched, and what its plan says."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from datamanager.base.errors import IntegrityError, NotFound, ServerMismatch, TargetTooSmall, TargetUnfit
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.configuration import (
    announce_history,
    carry_over,
    configuration_of,
    copy_configuration,
    copy_label,
)
from datamanager.engine.in_place.kept import list_kept, remove_tree
from datamanager.engine.in_place.plan import InPlaceOptions, plan_in_place
from datamanager.engine.in_place.run import run_in_place
from tests.conftest import NewServer
from tests.engine.conftest import Heard
from tests.engine.in_place.conftest import Production
from tests.storage.mounts import tmpfs


def test_what_cannot_be_restored_in_place_is_refused_with_the_alternative(
    production: Callable[..., Production], stop: StopToken
) -> None:
    one = production()
    place = one.place
    options = one.options()
    plan = one.plan()
    said = "\n".join(plan.lines())
    assert f"in place of {place}" in said
    assert "pg_ctl" in said
    assert all(str(path) in said for path in (plan.incoming, plan.outgoing, *plan.tablespaces.values()))

    with pytest.raises(ServerMismatch, match="is of system") as mismatch:
        one.plan(system_identifier=1)
    assert "--target" in mismatch.value.hint
    with pytest.raises(ServerMismatch, match="the backup of 14"):
        one.plan(major=14)
    with pytest.raises(TargetTooSmall, match="free"):
        one.plan(needs={"base": 1 << 60})
    with pytest.raises(NotFound):
        one.plan(data_directory=place.parent)
    (place / "patroni.dynamic.json").touch()
    with pytest.raises(TargetUnfit, match="Patroni manages") as managed:
        one.plan()
    assert "patronictl" in managed.value.hint
    assert one.plan(managed=True).options == replace(options, managed=True)
    (place / "patroni.dynamic.json").unlink()
    (place / "standby.signal").touch()
    with pytest.raises(TargetUnfit, match="is a standby"):
        one.plan()
    (place / "standby.signal").unlink()
    inner = place / "wandering"
    inner.mkdir()
    (place / "pg_tblspc" / "99999").symlink_to(inner)
    with pytest.raises(TargetUnfit, match="lies in the data directory"):
        one.plan()
    (place / "pg_tblspc" / "99999").unlink()
    assert one.server.running


@pytest.mark.mounts
def test_a_mount_point_inside_the_data_directory_is_refused(new_server: NewServer, open_folder: Path) -> None:
    server = new_server()
    with tmpfs(server.data_directory / "volume", 1 << 20):
        system = int(server.value("select system_identifier from pg_control_system()"))
        with pytest.raises(TargetUnfit, match="is a mount point inside"):
            plan_in_place(InPlaceOptions(server.data_directory, system, server.major, "backup", {}))


def test_what_was_prepared_must_be_a_whole_cluster_on_a_timeline_of_its_own(
    production: Callable[..., Production], stop: StopToken
) -> None:
    one = production()
    one.make_golden()
    begun = one.server.postmaster_pid
    plan = one.plan()

    def same_timeline(target: Path, tablespaces: object, pg_wal: Path | None) -> None:
        one.copied()(target, {str(oid): path for oid, path in plan.tablespaces.items()}, pg_wal)
        (one.place / "pg_wal" / "00000002.history").write_text("1\t0/1\tsomebody else's\n")

    def unfinished(target: Path, tablespaces: object, pg_wal: Path | None) -> None:
        one.copied()(target, {}, pg_wal)

    for prepare, why in ((unfinished, "tablespaces"), (same_timeline, "timeline 2 exists already")):
        with pytest.raises(IntegrityError, match=why):
            run_in_place(plan, prepare, stop, Heard())
        assert not plan.incoming.exists()
    assert one.server.postmaster_pid == begun
    assert list_kept(one.place) == []


def test_the_configuration_of_now_stays_and_that_of_the_backup_is_kept(tmp_path: Path) -> None:
    now, then, kept = tmp_path / "now", tmp_path / "then", tmp_path / "kept"
    for root, text in ((now, "of now"), (then, "of then")):
        (root / "extra").mkdir(parents=True)
        (root / "orioledb_data").mkdir()
        (root / "base").mkdir()
        for name in ("PG_VERSION", "server.key", "base/1", "orioledb_data/1"):
            (root / name).write_text(text)
        (root / "postgresql.conf").write_text(f"include_dir 'extra'\nport = 1 # {text}\n")
    (now / "extra" / "a.conf").write_text("work_mem = '1MB'\n")
    (now / "server.key").chmod(0o600)
    (now / "huge").write_bytes(bytes(5 << 20))
    (now / "linked.conf").symlink_to("/nowhere")
    assert configuration_of(now) == ["extra/a.conf", "postgresql.conf", "server.key"]
    changed = carry_over(now, then, kept, None)
    assert changed == ["extra/a.conf", "postgresql.conf", "server.key"]
    assert (then / "server.key").read_text() == "of now"
    assert (then / "server.key").stat().st_mode & 0o777 == 0o600
    assert {str(path.relative_to(kept)) for path in kept.rglob("*")} == {"postgresql.conf", "server.key"}
    assert (kept / "server.key").read_text() == "of then"
    assert (then / "base" / "1").read_text() == (then / "orioledb_data" / "1").read_text() == "of then"
    assert carry_over(now, then, kept, None) == []


def test_what_a_killed_copy_of_the_configuration_left_is_gone_after_the_next(tmp_path: Path) -> None:
    """It may be of a mode that keeps the server from reading it, and then no base backup succeeds any more."""
    saved, data = tmp_path / "saved", tmp_path / "data"
    for root in (saved, data):
        root.mkdir()
    (saved / "pg_hba.conf").write_text("kept")
    (data / ".pg_hba.conf.0381b260.tmp").touch(mode=0)
    copy_configuration(saved, data, ["pg_hba.conf"], None)
    assert [one.name for one in data.iterdir()] == ["pg_hba.conf"]


def test_the_history_of_the_new_timeline_is_left_for_the_archive(tmp_path: Path) -> None:
    (tmp_path / "pg_wal").mkdir()
    announce_history(tmp_path, 5, None)
    assert not (tmp_path / "pg_wal" / "archive_status").exists()
    (tmp_path / "pg_wal" / "00000005.history").touch()
    announce_history(tmp_path, 5, None)
    assert (tmp_path / "pg_wal" / "archive_status" / "00000005.history.ready").exists()


@pytest.mark.mounts  # the right to set such a label is the one to mount
def test_a_security_label_goes_from_the_old_directory_to_all_of_the_new_one(open_folder: Path) -> None:
    old, new = open_folder / "old", open_folder / "new"
    (new / "base").mkdir(parents=True)
    (new / "base" / "1").touch()
    old.mkdir()
    assert not copy_label(old, [new])
    label = b"system_u:object_r:postgresql_db_t:s0\0"
    os.setxattr(old, "security.selinux", label)
    assert copy_label(old, [new])
    assert {os.getxattr(one, "security.selinux") for one in (new, new / "base", new / "base" / "1")} == {label}
    assert not copy_label(old, [new])


def test_only_what_a_restore_made_is_ever_deleted(tmp_path: Path) -> None:
    (tmp_path / "clinic").mkdir()
    with pytest.raises(IntegrityError, match="no restore made it"):
        remove_tree(tmp_path / "clinic")
    (tmp_path / "x.datamanager-00000000").symlink_to(tmp_path / "clinic")
    remove_tree(tmp_path / "x.datamanager-00000000")
    assert (tmp_path / "clinic").is_dir()
