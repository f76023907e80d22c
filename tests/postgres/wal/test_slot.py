"""The receiver's slot on real servers: none without a limit, what it shows, and the settings that are planned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from datamanager.base.errors import RightMissing, ServerUnfit
from datamanager.base.pipeline import StopToken
from datamanager.base.units import GIB, MIB
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.settings import apply_settings
from datamanager.postgres.wal.slot import SlotKeeper, limit_for, plan_limit, receiver_name, slot_name
from tests.conftest import NewServer
from tests.servers import Server

NAME = "datamanager_tests"


@contextlib.contextmanager
def keeper(server: Server, name: str = NAME, user: str = "") -> Iterator[SlotKeeper]:
    address = ServerAddress(server.make_dsn(user=user))
    with StopToken() as stop, SlotKeeper.opened(address, name, stop, lambda text: None) as found:
        yield found


def test_names_are_the_clusters_own_for_each_repository() -> None:
    one, other = slot_name("Clinic-1 Süd", b"\1" * 16), slot_name("Clinic-1 Süd", b"\2" * 16)
    assert one != other
    assert one.startswith("datamanager_clinic_1_s_d_")
    assert slot_name("Clinic-1 Süd", b"\1" * 16) == one
    assert slot_name("clinic_1 süd", b"\1" * 16) != one
    assert len(slot_name("x" * 200, b"\1" * 16)) == len(receiver_name("x" * 200)) == 63
    assert receiver_name("Clinic-1") == "datamanager_clinic_1"


def test_the_limit_proposed_is_a_quarter_of_what_is_free_within_bounds() -> None:
    assert limit_for(None) == "10GB"
    assert limit_for(20 * GIB) == "5GB"
    assert limit_for(5000 * GIB) == "50GB"
    assert limit_for(2 * GIB) == "512MB"
    assert limit_for(3 * MIB) == "1MB"


@pytest.mark.pg("14,15,18")
@pytest.mark.decision(10)
def test_a_slot_needs_a_limit_which_a_plan_proposes_and_a_reload_sets(new_server: NewServer) -> None:
    server = new_server()
    with keeper(server) as slot:
        assert slot.state() is None
        with pytest.raises(ServerUnfit, match="max_slot_wal_keep_size is not set") as refused:
            slot.create()
        assert "`ALTER SYSTEM SET max_slot_wal_keep_size = '10GB';` `SELECT pg_reload_conf();`" in refused.value.hint
        assert slot.state() is None
    with StopToken() as stop:
        address = ServerAddress(server.dsn)
        (change,) = planned = plan_limit(address, stop, lambda text: None, str(server.data_directory))
        assert (change.before, change.shown_before) == (None, "-1")
        assert server.value("show max_slot_wal_keep_size") == "-1"
        apply_settings(address, stop, lambda text: None, planned)
        assert server.value("show max_slot_wal_keep_size") == change.after
        assert plan_limit(address, stop, lambda text: None) == []
    with keeper(server) as slot:
        made = slot.create()
        assert made == slot.state()
        assert (made.active, made.wal_status, made.lost) == (False, "reserved", False)
        assert made.restart_lsn
        assert made.safe_wal_size
        server.sql("select pg_switch_wal(), pg_logical_emit_message(false, 'x', 'y')")
        after = slot.state()
        assert after is not None
        assert after.retained > made.retained
        assert slot.drop()
        assert slot.state() is None


@pytest.mark.pg("18")
def test_whoever_may_not_is_told_what_a_superuser_runs(new_server: NewServer) -> None:
    server = new_server()
    server.sql("create role carol login replication")
    server.sql("create role dave login")
    with StopToken() as stop, pytest.raises(RightMissing) as refused:
        plan_limit(ServerAddress(server.make_dsn(user="carol")), stop, lambda text: None)
    assert "`ALTER SYSTEM SET max_slot_wal_keep_size = '10GB';` `SELECT pg_reload_conf();`" in refused.value.hint
    server.configure(max_slot_wal_keep_size="1GB")
    with keeper(server, user="dave") as slot, pytest.raises(RightMissing):
        slot.create()
    # A role that may replicate needs nothing more.
    with keeper(server, user="carol") as slot:
        slot.create()
        assert slot.state() is not None
        assert slot.oldest(1, 16 * MIB) is None  # but may not list the files
        slot.drop()


def test_a_name_that_a_logical_slot_has_is_refused(new_server: NewServer) -> None:
    server = new_server(config={"wal_level": "logical", "max_slot_wal_keep_size": "1GB"})
    server.sql("select pg_create_logical_replication_slot(%s, 'pgoutput')", NAME)
    with keeper(server) as slot, pytest.raises(ServerUnfit, match="not a physical one"):
        slot.state()
