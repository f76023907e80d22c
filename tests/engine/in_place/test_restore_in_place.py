"""A server's data are replaced by a backup's, and come back: real servers with data outside of their directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from datamanager.base.errors import Cancelled, ServerDidNotStart
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.kept import forget_kept, list_kept
from datamanager.engine.in_place.roles import read_all_roles, role_changes
from datamanager.engine.in_place.run import run_in_place
from datamanager.engine.in_place.undo import run_undo
from datamanager.postgres.connection import ServerAddress
from tests.engine.conftest import Heard
from tests.engine.in_place.conftest import AFTER, BEFORE, Production

KEY = bytes(32)


def names_beside(production: Production) -> set[str]:
    """What lies beside data directory, tablespaces and pg_wal and has a name of ours, but for the lock."""
    folder = production.place.parent
    return {one.name for one in folder.rglob("*datamanager-*") if not one.name.endswith(".lock")}


@pytest.mark.pg("15,18")
@pytest.mark.decision(11)
@pytest.mark.requirement("R80", missing="the safety backup and the typed name, which the command asks for")
def test_a_restore_in_place_can_be_undone_and_the_undo_undone(
    production: Callable[..., Production], open_folder: Path, stop: StopToken
) -> None:
    one = production(wal=open_folder / "wal", config={"track_commit_timestamp": "on", "archive_mode": "on"})
    server = one.server
    server.sql("create role kept login password 'a'")
    server.sql("create role newer login")
    server.sql("select pg_create_physical_replication_slot('standby')")
    server.configure(work_mem="7MB")
    server.hba_first("# of now")
    locations = dict(server.sql("select spcname, pg_tablespace_location(oid) from pg_tablespace where oid > 16000"))
    now = read_all_roles(one.address, KEY, stop)
    plan = one.plan()
    assert any("standby" in line for line in plan.lines())
    result = run_in_place(plan, one.from_backup(plan), stop, Heard(), address=one.address)
    assert one.rows() == BEFORE
    assert [str(change) for change in role_changes(now, read_all_roles(one.address, KEY, stop))] == [
        "kept: will not exist any more",
        "newer: will not exist any more",
    ]
    assert server.value("show work_mem") == "7MB"
    assert (one.place / "pg_hba.conf").read_text().startswith("# of now")
    assert "postgresql.conf" in result.configuration
    assert "7MB" not in (plan.places.configuration(plan.identity) / "postgresql.conf").read_text()
    assert (one.place / "pg_wal").resolve() == plan.pg_wal
    assert server.value("select timeline_id from pg_control_checkpoint()") == 2
    status = one.place / "pg_wal" / "archive_status"
    assert [path.name for path in status.glob("00000002.history.*")]
    newer = dict(server.sql("select spcname, pg_tablespace_location(oid) from pg_tablespace where oid > 16000"))
    assert set(newer.values()) == {str(path) for path in plan.tablespaces.values()}
    assert [kept.place for kept in list_kept(one.place)] == [plan.outgoing]

    server.sql("insert into rows values (3)")
    undo = one.plan_undo()
    assert undo.set_aside.wal_bytes
    assert undo.set_aside.last_commit is not None
    began = time.monotonic()
    undone = run_undo(undo, stop, Heard(), address=one.address)
    assert time.monotonic() - began < 60
    assert one.rows() == AFTER
    assert server.sql("select slot_name from pg_replication_slots") == [("standby",)]
    assert dict(server.sql("select spcname, pg_tablespace_location(oid) from pg_tablespace where oid > 16000")) == (
        locations
    )
    assert [kept.place for kept in list_kept(one.place)] == [undone.kept.place]

    again = run_undo(one.plan_undo(), stop, Heard(), address=one.address)
    assert one.rows() == ([1, 3], [1], [1])
    (kept,) = list_kept(one.place)
    assert kept == again.kept
    assert not kept.may_be_offered(datetime.now(UTC))
    assert kept.may_be_offered(datetime.now(UTC) + timedelta(days=8))
    forget_kept(kept)
    assert list_kept(one.place) == []
    assert not kept.place.exists()
    assert not [path for path in locations.values() if any(Path(path).iterdir())]
    server.restart()
    assert one.rows() == ([1, 3], [1], [1])


@pytest.mark.pg("18")
@pytest.mark.decision(12)
def test_a_second_restore_after_an_undo_begins_a_timeline_of_its_own(
    production: Callable[..., Production], stop: StopToken
) -> None:
    one = production()
    for timeline, rows in ((2, BEFORE), (3, BEFORE)):
        plan = one.plan()
        run_in_place(plan, one.from_backup(plan), stop, Heard())
        assert one.server.value("select timeline_id from pg_control_checkpoint()") == timeline
        assert one.rows() == rows
        run_undo(one.plan_undo(), stop, Heard())
        assert one.server.value("select timeline_id from pg_control_checkpoint()") == 1
    assert len(list_kept(one.place)) == 2


@pytest.mark.pg("18")
@pytest.mark.requirement("R80", missing="undo and deletion, which tests of their own show")
def test_cancelling_before_the_exchange_leaves_production_untouched(
    production: Callable[..., Production], stop: StopToken
) -> None:
    one = production()
    one.make_golden()
    begun = one.server.postmaster_pid
    before = names_beside(one)
    with StopToken() as asked:

        def prepare_and_ask(target: Path, tablespaces: Mapping[str, Path], pg_wal: Path | None) -> None:
            one.copied()(target, tablespaces, pg_wal)
            asked.stop("cancelled by Ada")

        with pytest.raises(Cancelled):
            run_in_place(one.plan(), prepare_and_ask, asked, Heard())
    assert one.server.postmaster_pid == begun
    assert names_beside(one) == before
    with StopToken() as asked:

        class AskedWhenStopped(Heard):
            def __call__(self, event: object) -> None:
                if "keeping the configuration" in str(event):
                    asked.stop("cancelled by Ada")

        with pytest.raises(Cancelled):
            run_in_place(one.plan(), one.copied(), asked, AskedWhenStopped())
    assert one.rows() == AFTER
    assert names_beside(one) == before  # requirement R80
    assert one.server.postmaster_pid != begun


@pytest.mark.pg("18")
@pytest.mark.parametrize(
    "lost",
    [
        # It starts and lets nobody in, which is looked at for a minute.
        pytest.param("global/pg_filenode.map", marks=pytest.mark.slow),
        "pg_wal",
    ],
)
def test_a_server_that_does_not_start_or_answer_on_the_new_data_gets_its_own_back(
    production: Callable[..., Production], stop: StopToken, lost: str
) -> None:
    one = production()
    one.make_golden()

    def broken(target: Path, tablespaces: Mapping[str, Path], pg_wal: Path | None) -> None:
        one.copied()(target, tablespaces, pg_wal)
        (target / lost).rename(target / "lost")

    before = names_beside(one)
    with pytest.raises(ServerDidNotStart, match="in force again"):
        run_in_place(one.plan(), broken, stop, Heard(), address=ServerAddress(one.server.dsn))
    assert one.rows() == AFTER
    assert names_beside(one) == before
