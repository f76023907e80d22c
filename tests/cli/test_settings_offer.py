"""The offer to switch WAL summaries on: taken, declined, printed, refused; written down; put back with the cluster."""

from __future__ import annotations

import getpass
import json
import re
import sys
from typing import Any

import pytest

from tests.cli.caller import Installation
from tests.conftest import NewServer
from tests.servers import Server

if sys.platform != "win32":
    from tests.cli.test_terminal import at_terminal


def own_file(server: Server) -> list[str]:
    text = (server.data_directory / "postgresql.auto.conf").read_text()
    return sorted(line for line in text.splitlines() if line and not line.startswith("#"))


def journal(installation: Installation) -> list[dict[str, Any]]:
    path = installation.home / "server-settings.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summarizing(server: Server) -> tuple[str, str]:
    return server.value("show summarize_wal"), server.value("show wal_summary_keep_time")


@pytest.mark.pg("17-18")
@pytest.mark.decision(20)
def test_yes_switches_summaries_on_writes_it_down_and_remove_puts_it_back(
    installation: Installation, new_server: NewServer
) -> None:
    server = new_server()
    added = installation.result("cluster", "add", "office", server.dsn, "--yes")
    assert summarizing(server) == ("on", "60d")
    assert [(one["name"], one["before"], one["shown_after"]) for one in added["settings_changed"]] == [
        ("summarize_wal", None, "on"), ("wal_summary_keep_time", None, "60d"),
    ]  # fmt: skip
    lines = journal(installation)
    assert [line["action"] for line in lines] == ["begun", "begun", "set", "set"]
    assert {line["account"] for line in lines} == {getpass.getuser()}
    assert lines[2] | {"time": "", "host": ""} == {
        "time": "", "action": "set", "account": getpass.getuser(), "host": "", "cluster": "office",
        "server": lines[2]["server"],
        "system_identifier": str(server.value("select system_identifier from pg_control_system()")),
        "name": "summarize_wal", "before": None, "after": "on", "shown_before": "off", "shown_after": "on",
    }  # fmt: skip
    log = next(path for path in installation.logs() if path.name.startswith("cluster-add")).read_text()
    assert "executed: ALTER SYSTEM SET summarize_wal = 'on';" in log
    assert "executed: SELECT pg_reload_conf();" in log

    removed = installation.result("cluster", "remove", "office")
    assert [one["name"] for one in removed["settings_put_back"]] == ["summarize_wal", "wal_summary_keep_time"]
    assert own_file(server) == []
    assert [line["action"] for line in journal(installation)[4:]] == ["put back", "put back"]


@pytest.mark.pg("17-18")
@pytest.mark.decision(20)
def test_without_a_terminal_the_command_is_printed_and_does_it(
    installation: Installation, new_server: NewServer
) -> None:
    server = new_server()
    said = installation.ok("cluster", "add", "office", server.dsn).out
    assert "summarize_wal is off on this server: each backup reads all." in said
    assert own_file(server) == []
    check = installation.ok("cluster", "check", "office").out
    assert "The next backup reads everything: the server keeps no WAL summaries (summarize_wal is off)." in check
    (command,) = set(re.findall(r"`datamanager (cluster check [^`]*)`", said + check))
    assert "summarize_wal is now on (was off)" in installation.ok(*command.split()).out
    assert summarizing(server) == ("on", "60d")
    assert "is now" not in installation.ok(*command.split()).out


@pytest.mark.decision(20)
def test_declined_nothing_is_said_or_changed_and_contradictions_are_refused(
    installation: Installation, new_server: NewServer
) -> None:
    server = new_server()
    said = installation.ok("cluster", "add", "office", server.dsn, "--no-settings").out
    assert "summar" not in said
    assert own_file(server) == []
    assert installation.run("cluster", "add", "two", server.dsn, "--no-settings", "--yes").code == 2
    assert installation.run("cluster", "add", "two", server.dsn, "--no-check", "--yes").code == 2
    assert journal(installation) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
@pytest.mark.decision(20)
def test_at_a_terminal_it_is_asked_and_enter_means_no(installation: Installation, new_server: NewServer) -> None:
    server = new_server()
    code, shown = at_terminal(installation, ["cluster", "add", "one", server.dsn], [("[y/N]", "")])
    assert code == 0, shown
    assert "datamanager cluster check one --enable-increments" in shown
    assert own_file(server) == []
    code, shown = at_terminal(installation, ["cluster", "add", "two", server.dsn], [("[y/N]", "y")])
    assert code == 0, shown
    assert summarizing(server) == ("on", "60d")
    code, shown = at_terminal(installation, ["cluster", "add", "three", server.dsn], [])
    assert "[y/N]" not in shown


@pytest.mark.decision(20)
@pytest.mark.requirement("R32")
def test_a_role_without_the_right_is_told_what_a_superuser_runs(
    installation: Installation, new_server: NewServer
) -> None:
    server = new_server()
    server.sql("create role plain login replication")
    said = installation.ok("cluster", "add", "office", server.make_dsn(user="plain")).out
    statements = re.findall(r"`((?:ALTER SYSTEM|SELECT)[^`]*)`", said)
    asked = installation.run("cluster", "add", "again", server.make_dsn(user="plain"), "--yes")
    assert asked.code == 3
    assert statements == re.findall(r"`((?:ALTER SYSTEM|SELECT)[^`]*)`", asked.out)
    assert installation.run("cluster", "check", "office", "--enable-increments").code == 22
    assert journal(installation) == []
    for statement in statements:
        server.sql(statement)
    assert "WAL summaries" not in installation.ok("cluster", "check", "office").out


@pytest.mark.decision(20)
def test_with_wal_level_minimal_what_comes_first_is_said_and_nothing_is_changed(
    installation: Installation, new_server: NewServer
) -> None:
    """With both settings the server would not start again."""
    server = new_server(config={"wal_level": "minimal", "max_wal_senders": "0"})
    added = installation.run("cluster", "add", "office", server.dsn, "--yes")
    assert added.code == 3
    assert "First run `ALTER SYSTEM SET wal_level = replica;` and restart" in added.out
    assert own_file(server) == []
    server.restart()


@pytest.mark.decision(20)
def test_summaries_that_go_too_soon_are_told_of_with_the_statements(
    installation: Installation, new_server: NewServer
) -> None:
    server = new_server(config={"summarize_wal": "on"})
    assert "summar" not in installation.ok("cluster", "add", "office", server.dsn, "--yes").out
    said = installation.ok("cluster", "check", "office").out
    assert "WAL summaries are kept for 10 days only" in said
    for statement in re.findall(r"`((?:ALTER SYSTEM|SELECT)[^`]*)`", said):
        server.sql(statement)
    assert "are kept for" not in installation.ok("cluster", "check", "office").out


@pytest.mark.decision(20)
def test_what_somebody_changed_since_stays_and_so_do_settings_that_are_to_be_kept(
    installation: Installation, new_server: NewServer
) -> None:
    server = new_server()
    server.sql("alter system set wal_summary_keep_time = '20d'")
    server.reload()
    installation.ok("cluster", "add", "one", server.dsn, "--yes")
    installation.ok("cluster", "add", "two", server.dsn, "--yes")
    shared = installation.ok("cluster", "remove", "one").out
    assert "stay as they were set from here" in shared
    assert "cluster two is the same server" in shared
    installation.ok("cluster", "remove", "two")
    assert own_file(server) == ["summarize_wal = 'on'", "wal_summary_keep_time = '60d'"]

    server.sql("alter system reset summarize_wal")
    server.sql("alter system set wal_summary_keep_time = '20d'")
    server.reload()
    installation.ok("cluster", "add", "three", server.dsn, "--yes")
    server.sql("alter system set summarize_wal = 'off'")
    server.reload()
    left = installation.ok("cluster", "remove", "three").out
    assert "changed these settings of its server since, so they stay: summarize_wal" in left
    assert "wal_summary_keep_time (20d again)" in left
    assert own_file(server) == ["summarize_wal = 'off'", "wal_summary_keep_time = '20d'"]

    installation.ok("cluster", "add", "four", server.dsn, "--yes")
    kept = installation.result("cluster", "remove", "four", "--keep-settings")
    assert [one["name"] for one in kept["settings_left"]] == ["summarize_wal", "wal_summary_keep_time"]
    assert summarizing(server) == ("on", "60d")


@pytest.mark.decision(20)
def test_a_cluster_whose_server_is_gone_is_removed_and_the_statements_are_printed(
    installation: Installation, new_server: NewServer
) -> None:
    server = new_server()
    installation.ok("cluster", "add", "office", server.dsn, "--yes")
    server.stop()
    removed = installation.run("cluster", "remove", "office")
    assert removed.code == 3
    statements = re.findall(r"`((?:ALTER SYSTEM|SELECT)[^`]*)`", removed.out)
    assert installation.result("cluster", "list")["clusters"] == []
    server.start()
    for statement in statements:
        server.sql(statement)
    assert own_file(server) == []


@pytest.mark.decision(20)
def test_a_change_that_cannot_be_written_down_is_not_made(installation: Installation, new_server: NewServer) -> None:
    server = new_server()
    installation.ok("cluster", "add", "office", server.dsn)
    (installation.home / "server-settings.jsonl").mkdir()
    assert installation.run("cluster", "check", "office", "--enable-increments").code == 10
    assert own_file(server) == []


@pytest.mark.decision(20)
def test_a_line_that_a_power_cut_left_unfinished_is_passed_over(
    installation: Installation, new_server: NewServer
) -> None:
    server = new_server()
    installation.home.mkdir(parents=True)
    path = installation.home / "server-settings.jsonl"
    path.write_text('{"time": "2026-11-23T10:00:00Z", "action": "se')
    installation.ok("cluster", "add", "office", server.dsn, "--yes")
    assert len(path.read_text().splitlines()) == 5
    installation.ok("cluster", "remove", "office")
    assert own_file(server) == []


@pytest.mark.pg("14,16")
def test_older_servers_are_offered_nothing(installation: Installation, new_server: NewServer) -> None:
    server = new_server()
    said = installation.ok("cluster", "add", "office", server.dsn, "--yes").out
    assert "summar" not in said
    check = installation.run("cluster", "check", "office").out
    assert f"PostgreSQL {server.major} cannot tell what changed (17 and newer can)" in check
