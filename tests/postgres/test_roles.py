"""The table of rights: before its statements a task is refused, after them it is done, on every major."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from datamanager.postgres.connection_errors import quote_identifier
from datamanager.postgres.roles import right_for, rights_table
from tests.conftest import NewServer
from tests.servers import Server

ODD_NAME = 'Dr. "Ö" O\'Neil'
Task = Callable[[Server], object]


def _replicate(server: Server) -> object:
    with psycopg.connect(server.make_dsn(user=ODD_NAME) + " replication=true", autocommit=True) as connection:
        return connection.execute("IDENTIFY_SYSTEM").fetchall()


def _read_outside(server: Server) -> object:
    outside = Path(server.folder) / "outside.conf"
    outside.write_text("x = 1\n")
    outside.chmod(0o644)
    return server.sql("SELECT pg_read_file(%s)", str(outside), user=ODD_NAME)


def _maintain(server: Server) -> object:
    notices: list[str] = []
    with server.connect(user=ODD_NAME) as connection:
        connection.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary or ""))
        connection.execute("VACUUM of_others")
    if notices:
        raise psycopg.errors.InsufficientPrivilege(notices[0])
    return None


def _end_session(server: Server) -> object:
    server.sql("DROP ROLE IF EXISTS other")
    server.sql("CREATE ROLE other LOGIN")
    with server.connect(user="other") as connection:
        pid = connection.info.backend_pid
        return server.sql("SELECT pg_terminate_backend(%s::int)", pid, user=ODD_NAME)


def _change_log(server: Server) -> object:
    server.sql("ALTER SYSTEM SET log_filename = 'x-%%Y.log'".replace("%%", "%"), user=ODD_NAME)
    return server.sql("SELECT pg_reload_conf()", user=ODD_NAME)


TASKS: dict[str, Task] = {
    "backup": _replicate,
    "settings": lambda server: server.sql("SHOW data_directory", user=ODD_NAME),
    "outside_files": _read_outside,
    "restore_point": lambda server: server.sql("SELECT pg_create_restore_point('x')", user=ODD_NAME),
    "wal_switch": lambda server: server.sql("SELECT pg_switch_wal()", user=ODD_NAME),
    "maintenance": _maintain,
    "log_settings": _change_log,
    "drain": _end_session,
    "verifiers": lambda server: server.sql("SELECT rolpassword FROM pg_authid", user=ODD_NAME),
}


@pytest.mark.pg("14-18")
@pytest.mark.decision(21)
@pytest.mark.requirement("R32")
def test_each_right_is_refused_before_its_statements_and_given_by_them(new_server: NewServer) -> None:
    server = new_server()
    server.sql("CREATE TABLE of_others (x int)")
    table = rights_table(server.major, ODD_NAME, client="[local]")
    assert {right.task for right in table} == set(TASKS)
    for right in table:
        server.sql(f"CREATE ROLE {quote_identifier(ODD_NAME)} LOGIN PASSWORD 'x'")
        with pytest.raises(psycopg.Error):
            TASKS[right.task](server)
        for statement in right.statements:
            server.sql(statement)
        TASKS[right.task](server)
        server.sql(f"DROP OWNED BY {quote_identifier(ODD_NAME)}")
        server.sql(f"DROP ROLE {quote_identifier(ODD_NAME)}")


def test_the_remedy_is_one_sentence_with_the_statement_and_the_line() -> None:
    remedy = right_for("backup", 18, "carol", client="10.0.0.7").remedy()
    assert remedy.startswith('Run `ALTER ROLE "carol" REPLICATION;` as a superuser, then add `host replication "carol"')
    assert remedy.endswith("pg_reload_conf();`.")
