"""A restored directory that could touch a live cluster is refused before it is started (decision 1)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datamanager.base.errors import TargetUnfit
from datamanager.postgres.isolation import assert_tablespaces_isolated, running_data_directories
from tests.conftest import NewServer
from tests.servers import Server
from tests.servers.server import copy_data_directory

pytestmark = pytest.mark.decision(1)


class Restored:
    """A live server with one tablespace, and a copy of its files as a restore makes it: with links of its own."""

    def __init__(self, live: Server, folder: Path) -> None:
        self.live = live
        self.live_space = live.tablespace("space")
        live.sql("CREATE TABLE kept (x int) TABLESPACE space")
        self.oid = int(live.value("SELECT oid FROM pg_tablespace WHERE spcname = 'space'"))
        live.stop()
        self.data_directory = folder / "restored"
        copy_data_directory(live, self.data_directory)
        live.start()
        self.link = self.data_directory / "pg_tblspc" / str(self.oid)
        self.space = folder / "new-space"
        self.space.mkdir()
        self.lead_to(self.space)

    def lead_to(self, place: Path) -> None:
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(place)

    def check(self, planned: dict[int, Path] | None = None) -> None:
        plan = {self.oid: self.space} if planned is None else planned
        assert_tablespaces_isolated(self.data_directory, plan, running_data_directories())


@pytest.fixture
def restored(new_server: NewServer, open_folder: Path) -> Restored:
    return Restored(new_server(), open_folder)


@pytest.mark.pg("14,18")
def test_a_directory_with_its_own_links_may_start(restored: Restored) -> None:
    assert restored.live.data_directory in running_data_directories()
    restored.check()


@pytest.mark.pg("14,18")
def test_a_link_to_the_live_tablespace_is_refused_even_when_planned(restored: Restored) -> None:
    restored.lead_to(restored.live_space)
    with pytest.raises(TargetUnfit, match="the plan says"):
        restored.check()
    with pytest.raises(TargetUnfit, match="overlap"):
        restored.check({restored.oid: restored.live_space})
    inside = restored.live_space / "below"
    inside.mkdir()
    restored.lead_to(inside)
    with pytest.raises(TargetUnfit, match="overlap"):
        restored.check({restored.oid: inside})


def test_a_tablespace_map_is_refused(restored: Restored) -> None:
    (restored.data_directory / "tablespace_map").write_text(f"{restored.oid} {restored.live_space}\n")
    with pytest.raises(TargetUnfit, match="tablespace_map"):
        restored.check()


def test_a_tablespace_that_only_the_plan_or_only_the_directory_knows_is_refused(restored: Restored) -> None:
    with pytest.raises(TargetUnfit, match="not in the plan"):
        restored.check({})
    with pytest.raises(TargetUnfit, match="has no link"):
        restored.check({restored.oid: restored.space, 99999: restored.space})
    (restored.data_directory / "pg_tblspc" / "strange").mkdir()
    with pytest.raises(TargetUnfit, match="strange"):
        restored.check()


def test_a_relative_link_is_followed_from_where_it_stands(restored: Restored) -> None:
    restored.lead_to(Path(os.path.relpath(restored.space, restored.link.parent)))
    restored.check()
    restored.lead_to(Path(os.path.relpath(restored.live_space, restored.link.parent)))
    with pytest.raises(TargetUnfit):
        restored.check()


def test_an_in_place_tablespace_must_be_planned_where_it_is(restored: Restored) -> None:
    restored.link.unlink()
    restored.link.mkdir()
    with pytest.raises(TargetUnfit, match="the plan says"):
        restored.check()
    restored.check({restored.oid: restored.link})


def test_wal_and_the_directory_itself_must_not_be_live_either(restored: Restored) -> None:
    wal = restored.data_directory / "pg_wal"
    wal.rename(restored.data_directory / "pg_wal.own")
    wal.symlink_to(restored.live.data_directory / "pg_wal")
    with pytest.raises(TargetUnfit, match="overlap"):
        restored.check()
    with pytest.raises(TargetUnfit, match="overlap"):
        assert_tablespaces_isolated(
            restored.live.data_directory, {restored.oid: restored.live_space}, running_data_directories()
        )


def test_a_live_directory_within_ours_is_refused(restored: Restored, new_server: NewServer) -> None:
    inner = restored.space / "inner"
    (inner / "pg_tblspc").mkdir(parents=True)
    with pytest.raises(TargetUnfit, match="overlap"):
        assert_tablespaces_isolated(restored.data_directory, {restored.oid: restored.space}, [inner])


def test_a_directory_without_tablespaces_needs_no_plan(new_server: NewServer) -> None:
    server = new_server(start=False)
    assert_tablespaces_isolated(server.data_directory, {}, running_data_directories())
