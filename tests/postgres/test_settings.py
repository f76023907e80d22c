"""Settings changed by ALTER SYSTEM on real servers: planned, changed without a restart, put back, or refused."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from datamanager.base.errors import DataManagerError, RightMissing, ServerUnfit, ServerUnreachable
from datamanager.base.pipeline import StopToken
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.settings import PutBack, SettingChange, alter, apply_settings, plan_settings, put_back
from tests.conftest import NewServer
from tests.servers import Server

WANTED = {"summarize_wal": "on", "wal_summary_keep_time": "60d"}


def plan(server: Server, wanted: Mapping[str, str], user: str = "") -> list[SettingChange]:
    with StopToken() as stop:
        return plan_settings(ServerAddress(server.make_dsn(user=user)), stop, lambda text: None, wanted)


def apply(server: Server, planned: list[SettingChange], user: str = "") -> list[SettingChange]:
    with StopToken() as stop:
        return apply_settings(ServerAddress(server.make_dsn(user=user)), stop, lambda text: None, planned)


def undo(server: Server, changes: list[SettingChange], user: str = "") -> PutBack:
    with StopToken() as stop:
        return put_back(ServerAddress(server.make_dsn(user=user)), stop, lambda text: None, changes)


def own_file(server: Server) -> list[str]:
    text = (server.data_directory / "postgresql.auto.conf").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def statements_of(error: DataManagerError) -> list[str]:
    """What a hint says to run."""
    return error.hint.split("`")[1::2]


@pytest.mark.pg("17-18")
def test_settings_come_into_force_without_a_restart_and_go_back_without_a_trace(new_server: NewServer) -> None:
    server = new_server()
    pid = server.postmaster_pid
    planned = plan(server, WANTED)
    assert own_file(server) == []
    assert planned == [
        SettingChange("summarize_wal", None, "on", "off"),
        SettingChange("wal_summary_keep_time", None, "60d", "10d"),
    ]
    done = apply(server, planned)
    assert [one.shown_after for one in done] == ["on", "60d"]
    assert (server.value("show summarize_wal"), server.value("show wal_summary_keep_time")) == ("on", "60d")
    assert plan(server, WANTED) == []
    assert undo(server, done) == PutBack(tuple(done), ())
    assert own_file(server) == []
    assert server.postmaster_pid == pid


@pytest.mark.pg("14,18")
def test_an_earlier_line_comes_back_and_what_somebody_changed_since_stays(new_server: NewServer) -> None:
    server = new_server()
    server.sql("alter system set log_min_duration_statement = '7s'")
    server.sql("alter system set log_line_prefix = 'it''s \\%p '")
    server.reload()
    wait_until_shown(server, "", "log_line_prefix", "it's \\%p ")
    before = own_file(server)
    wanted = {"log_min_duration_statement": "3s", "log_line_prefix": "%m ", "log_lock_waits": "on"}
    done = apply(server, plan(server, wanted))
    assert [one.before for one in done] == ["7s", "it's \\%p ", None]
    server.sql("alter system set log_lock_waits = 'off'")
    result = undo(server, done)
    assert [one.name for one in result.restored] == ["log_min_duration_statement", "log_line_prefix"]
    assert [one.name for one in result.left] == ["log_lock_waits"]
    assert sorted(own_file(server)) == sorted([*before, "log_lock_waits = 'off'"])


@pytest.mark.pg("14,17,18")
@pytest.mark.requirement("R32")
def test_a_role_without_the_right_is_told_the_statements_which_suffice(new_server: NewServer) -> None:
    server = new_server()
    server.sql("create role plain login replication")
    wanted = {"log_min_duration_statement": "3s", "log_checkpoints": "off" if server.major >= 15 else "on"}
    with pytest.raises(RightMissing, match="the role plain may not") as refused:
        plan(server, wanted, user="plain")
    assert own_file(server) == []
    for statement in statements_of(refused.value):
        server.sql(statement)
    assert plan(server, wanted, user="plain") == []


@pytest.mark.pg("17")
def test_a_role_that_was_granted_the_settings_may_change_them_and_put_them_back(new_server: NewServer) -> None:
    server = new_server()
    server.sql("create role agent login replication")
    server.sql("grant alter system on parameter summarize_wal, wal_summary_keep_time to agent")
    with pytest.raises(RightMissing):  # it may not reload yet
        plan(server, WANTED, user="agent")
    server.sql("grant execute on function pg_reload_conf() to agent")
    done = apply(server, plan(server, WANTED, user="agent"), user="agent")
    assert server.value("show summarize_wal") == "on"
    server.sql("alter system set wal_summary_keep_time = '90d'")
    server.reload()
    # It may not see the file, so what is in force decides.
    wait_until_shown(server, "agent", "wal_summary_keep_time", "90d")
    result = undo(server, done, user="agent")
    assert ([one.name for one in result.restored], [one.name for one in result.left]) == (
        ["summarize_wal"], ["wal_summary_keep_time"],
    )  # fmt: skip
    assert own_file(server) == ["wal_summary_keep_time = '90d'"]


def wait_until_shown(server: Server, user: str, name: str, value: str) -> None:
    ends = time.monotonic() + 10
    while server.value(f"show {name}", user=user) != value:
        assert time.monotonic() < ends


@pytest.mark.pg("17-18")
def test_where_alter_system_is_not_allowed_the_lines_for_the_file_are_given_and_suffice(new_server: NewServer) -> None:
    server = new_server(config={"allow_alter_system": "off"})
    with pytest.raises(ServerUnfit, match="allow_alter_system is off") as refused:
        plan(server, WANTED)
    *lines, reload = statements_of(refused.value)
    with open(server.data_directory / "postgresql.conf", "a") as file:
        file.write("\n".join(lines) + "\n")
    server.sql(reload)
    wait_until_shown(server, "", "wal_summary_keep_time", "60d")
    assert plan(server, WANTED) == []


def test_what_needs_a_restart_or_cannot_be_changed_here_is_refused_before_anything_changes(
    new_server: NewServer,
) -> None:
    server = new_server(start=False)
    server.start_config["summarize_wal"] = "off"
    server.start()
    with pytest.raises(ServerUnfit, match="a reload does not change it") as restart:
        plan(server, {"log_lock_waits": "on", "max_wal_senders": "5"})
    assert "ALTER SYSTEM SET max_wal_senders = '5';" in restart.value.hint
    assert "restart" in restart.value.hint
    with pytest.raises(ServerUnfit) as never:
        plan(server, {"block_size": "4096"})
    assert never.value.hint == "It cannot be set at all."
    with pytest.raises(ServerUnfit, match="does not have it"):
        plan(server, {"no_such_setting": "1"})
    with pytest.raises(ServerUnfit, match="server command line"):
        plan(server, {"summarize_wal": "on"})
    assert own_file(server) == []


def test_when_one_value_is_refused_the_others_are_taken_back(new_server: NewServer) -> None:
    server = new_server()
    with pytest.raises(ServerUnfit, match="wal_summary_keep_time"):
        apply(server, plan(server, {"summarize_wal": "on", "wal_summary_keep_time": "a while"}))
    assert own_file(server) == []
    assert server.value("show summarize_wal") == "off"
    server.stop()
    with pytest.raises(ServerUnreachable):
        plan(server, WANTED)


def test_statements_quote_names_and_values() -> None:
    assert alter("summarize_wal", "on") == "ALTER SYSTEM SET summarize_wal = 'on';"
    assert alter("auto_explain.log_format", None) == "ALTER SYSTEM RESET auto_explain.log_format;"
    assert alter('a"; drop', "it's") == "ALTER SYSTEM SET \"a\"\"; drop\" = 'it''s';"
