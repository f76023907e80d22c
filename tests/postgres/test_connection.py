"""Connecting: every refusal is told apart on real servers, its remedy works, and no message holds the password."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from datamanager.base.errors import (
    AuthenticationFailed,
    Cancelled,
    ConfigurationError,
    DataManagerError,
    NotFound,
    RightMissing,
    ServerUnfit,
    ServerUnreachable,
)
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Secret
from datamanager.postgres.connection import KEEPALIVES, ServerAddress, cancelled_by, connect, server_errors
from datamanager.postgres.connection_errors import Refusal, error_of_refusal, hba_line, quote_identifier
from tests.conftest import NewServer
from tests.servers import Proxy, Server, hand_over

ODD_NAME = 'Praxis "Müller" & O\'Neil – 医院'
PASSWORD = "Geheim-4711'ß"


def test_an_address_never_shows_its_password() -> None:
    inside = ServerAddress(f"host=db user=u password='{PASSWORD.replace(chr(39), chr(92) + chr(39))}'")
    beside = ServerAddress("host=db user=u", Secret(PASSWORD))
    assert inside.secrets() == beside.secrets() == (PASSWORD,)
    for address in (inside, beside):
        assert "Geheim" not in repr(address) + str(address) + address.describe()
        assert "host=db" in repr(address)


def test_an_unreadable_connection_string_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        connect(ServerAddress("host=db geheim"))
    assert "geheim" not in caught.value.message + caught.value.hint
    assert caught.value.__suppress_context__
    assert "geheim" not in repr(ServerAddress("host=db geheim"))


@pytest.mark.pg("14-18")
@pytest.mark.decision(22)
def test_dead_peers_are_noticed_unless_the_connection_string_says_otherwise(server: Server) -> None:
    with connect(ServerAddress(server.tcp_dsn + " keepalives_idle=77 connect_timeout=4")) as connection:
        used = connection.info.get_parameters()
        assert connection.execute("SHOW search_path").fetchall() == [("",)]
        assert connection.autocommit
    assert used["keepalives_idle"] == "77"
    assert used["connect_timeout"] == "4"
    for name in ("keepalives_interval", "keepalives_count", "tcp_user_timeout"):
        assert used[name] == KEEPALIVES[name]


@pytest.mark.pg("14-18,15-debian")
def test_a_wrong_and_a_missing_password_are_failed_authentications(new_server: NewServer) -> None:
    server = new_server()
    server.sql(f"CREATE ROLE {quote_identifier(ODD_NAME)} LOGIN PASSWORD 'right'")
    server.password_only(ODD_NAME.replace('"', '""'))
    dsn = server.make_dsn(user=ODD_NAME, host="127.0.0.1")
    with pytest.raises(AuthenticationFailed) as wrong:
        connect(ServerAddress(dsn, Secret(PASSWORD)))
    assert PASSWORD not in wrong.value.message + wrong.value.hint
    with pytest.raises(AuthenticationFailed, match="for a password"):
        connect(ServerAddress(dsn + " passfile=/nonexistent"))
    with connect(ServerAddress(dsn, Secret("right"))) as connection:
        assert connection.execute("SELECT current_user::text").fetchall() == [(ODD_NAME,)]


def test_a_password_that_the_server_repeats_is_blotted_out(server: Server) -> None:
    server.sql("CREATE ROLE hunter2 LOGIN PASSWORD 'x'")
    try:
        with pytest.raises(NotFound) as caught:
            connect(ServerAddress(server.make_dsn(user="hunter2", database="is-hunter2"), Secret("hunter2")))
        assert "hunter2" not in caught.value.message
    finally:
        server.sql("DROP ROLE hunter2")


@pytest.mark.pg("14-18,15-debian")
@pytest.mark.decision(21)
@pytest.mark.requirement("R32")
@pytest.mark.parametrize("replication", [False, True])
def test_a_missing_pg_hba_line_is_named_and_helps(new_server: NewServer, replication: bool) -> None:
    server = new_server()
    server.sql(f"CREATE ROLE {quote_identifier(ODD_NAME)} LOGIN REPLICATION PASSWORD 'right'")
    server.sql(f"CREATE DATABASE {quote_identifier(ODD_NAME)}")
    (server.data_directory / "pg_hba.conf").write_text("local all postgres trust\n")
    server.reload()
    for host in ("127.0.0.1", ""):
        address = ServerAddress(server.make_dsn(user=ODD_NAME, database=ODD_NAME, host=host), Secret("right"))
        with pytest.raises(AuthenticationFailed) as refused:
            connect(address, replication=replication)
        line = refused.value.hint.split("`")[1]
        server.hba_first(line)
        with connect(address, replication=replication) as connection:
            assert connection.info.user == ODD_NAME


@pytest.mark.pg("14-18,15-debian")
@pytest.mark.decision(21)
@pytest.mark.requirement("R32")
def test_a_role_without_replication_is_told_the_statement_that_helps(server: Server) -> None:
    quoted = quote_identifier(ODD_NAME)
    server.sql(f"CREATE ROLE {quoted} LOGIN")
    try:
        address = ServerAddress(server.make_dsn(user=ODD_NAME))
        with pytest.raises(RightMissing) as refused:
            connect(address, replication=True)
        server.sql(refused.value.hint.split("`")[1])
        with connect(address, replication=True) as connection:
            assert len(connection.execute("IDENTIFY_SYSTEM").fetchall()) == 1
    finally:
        server.sql(f"DROP ROLE {quoted}")


@pytest.mark.pg("14-18")
def test_a_database_that_one_may_not_enter_is_a_missing_right(server: Server) -> None:
    server.sql(f"CREATE DATABASE {quote_identifier(ODD_NAME)}")
    server.sql(f"REVOKE CONNECT ON DATABASE {quote_identifier(ODD_NAME)} FROM PUBLIC")
    server.sql("CREATE ROLE plain LOGIN")
    try:
        address = ServerAddress(server.make_dsn(user="plain"))
        with pytest.raises(RightMissing) as refused:
            connect(address, database=ODD_NAME)
        server.sql(refused.value.hint.split("`")[1])
        with connect(address, database=ODD_NAME) as connection:
            assert connection.info.dbname == ODD_NAME
    finally:
        server.sql(f"DROP DATABASE {quote_identifier(ODD_NAME)}")
        server.sql("DROP ROLE plain")


@pytest.mark.pg("14-18,15-debian")
def test_senders_used_up_name_max_wal_senders(new_server: NewServer) -> None:
    server = new_server(config={"max_wal_senders": "1"})
    address = ServerAddress(server.dsn)
    with connect(address, replication=True), pytest.raises(ServerUnfit) as refused:
        connect(address, replication=True)
    assert "max_wal_senders" in refused.value.hint


@pytest.mark.pg("14-18")
def test_a_role_at_its_connection_limit_is_told_apart_from_a_full_server(new_server: NewServer) -> None:
    server = new_server(config={"max_connections": "5", "superuser_reserved_connections": "2", "max_wal_senders": "0",
                                "wal_level": "minimal"})  # fmt: skip
    server.sql("CREATE ROLE one LOGIN CONNECTION LIMIT 1")
    server.sql("CREATE ROLE many LOGIN")
    with connect(ServerAddress(server.make_dsn(user="one"))):
        with pytest.raises(ServerUnfit) as limited:
            connect(ServerAddress(server.make_dsn(user="one")))
        assert "CONNECTION LIMIT" in limited.value.hint
    held = [connect(ServerAddress(server.make_dsn(user="many"))) for _ in range(3)]
    try:
        with pytest.raises(ServerUnfit) as full:
            connect(ServerAddress(server.make_dsn(user="many")))
        assert "max_connections" in full.value.hint
    finally:
        for connection in held:
            connection.close()


@pytest.mark.pg("14-18")
def test_a_missing_database_and_a_missing_role_are_told_apart(server: Server) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        connect(ServerAddress(server.make_dsn(database="nowhere")))
    with pytest.raises(AuthenticationFailed) as missing:
        connect(ServerAddress(server.make_dsn(user="nobody-here")))
    assert 'CREATE ROLE "nobody-here"' in missing.value.hint


def test_a_stopped_server_is_unreachable_and_worth_another_try(new_server: NewServer) -> None:
    server = new_server()
    server.stop()
    for dsn in (server.dsn, server.tcp_dsn):
        with pytest.raises(ServerUnreachable) as refused:
            connect(ServerAddress(dsn))
        assert refused.value.retryable


def test_an_unknown_host_and_a_port_that_speaks_something_else_are_unreachable() -> None:
    with pytest.raises(ServerUnreachable, match=r"name\.invalid"):
        connect(ServerAddress("host=name.invalid user=u"))


def test_the_next_host_is_tried_when_one_does_not_answer(server: Server, new_server: NewServer) -> None:
    gone = new_server(start=False)
    dsn = f"host=127.0.0.1,localhost port={gone.port},{server.port} user=postgres"
    with connect(ServerAddress(dsn)) as connection:
        assert connection.info.port == server.port
    with pytest.raises(ServerUnreachable) as refused:
        connect(ServerAddress(f"host=127.0.0.1,127.0.0.2 port={gone.port} user=postgres"))
    assert "127.0.0.1:" in refused.value.message
    assert "127.0.0.2:" in refused.value.message


def test_a_silent_server_is_given_up_after_connect_timeout(server: Server, proxy: Callable[[Server], Proxy]) -> None:
    through = proxy(server)
    through.stall()
    began = time.monotonic()
    with pytest.raises(ServerUnreachable, match="timed out"):
        connect(ServerAddress(through.dsn + " connect_timeout=2"))
    assert 1.5 < time.monotonic() - began < 6


def test_stopping_ends_the_wait_for_a_silent_server(server: Server, proxy: Callable[[Server], Proxy]) -> None:
    through = proxy(server)
    through.stall()
    with StopToken() as stop:
        timer = threading.Timer(0.3, stop.stop, ["enough"])
        timer.start()
        began = time.monotonic()
        with pytest.raises(Cancelled, match="enough"):
            connect(ServerAddress(through.dsn), stop=stop)
        timer.join()
    assert time.monotonic() - began < 3


def test_stopping_cancels_the_statement_that_runs(server: Server) -> None:
    with StopToken() as stop, connect(ServerAddress(server.dsn)) as connection:
        timer = threading.Timer(0.3, stop.stop, ["enough"])
        timer.start()
        began = time.monotonic()
        with pytest.raises(Cancelled, match="enough"), cancelled_by(stop, connection):
            connection.execute("SELECT pg_sleep(30)")
        timer.join()
    assert time.monotonic() - began < 5


def test_failed_statements_become_errors_of_ours(server: Server, proxy: Callable[[Server], Proxy]) -> None:
    server.sql("CREATE ROLE plain LOGIN")
    try:
        with (
            connect(ServerAddress(server.make_dsn(user="plain"))) as connection,
            pytest.raises(RightMissing, match="read settings: "),
            server_errors("read settings"),
        ):
            connection.execute("SHOW data_directory")
    finally:
        server.sql("DROP ROLE plain")
    through = proxy(server)
    with connect(ServerAddress(through.dsn)) as connection:
        through.cut()
        with pytest.raises(ServerUnreachable), server_errors("read settings"):
            connection.execute("SELECT 1")


@pytest.mark.pg("15-debian")
def test_a_server_that_speaks_german_is_understood(
    new_server: NewServer, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    localedef = shutil.which("localedef")
    if localedef is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        pytest.skip("needs localedef and its sources (package locales) to make a German locale")
    subprocess.run([localedef, "-i", "de_DE", "-f", "UTF-8", str(open_folder / "de_DE.UTF-8")], check=True)
    hand_over(open_folder)
    monkeypatch.setenv("LOCPATH", str(open_folder))
    server = new_server(config={"lc_messages": "de_DE.UTF-8", "max_wal_senders": "1"})
    server.sql("CREATE ROLE plain LOGIN PASSWORD 'right'")
    address = ServerAddress(server.dsn)
    plain = ServerAddress(server.make_dsn(user="plain", host="127.0.0.1"), Secret("wrong"))
    with pytest.raises(NotFound, match="existiert nicht"):
        connect(address, database="nowhere")
    with connect(address, replication=True), pytest.raises(ServerUnfit) as full:
        connect(address, replication=True)
    assert "max_wal_senders" in full.value.hint
    while server.value("SELECT count(*) FROM pg_stat_replication"):
        time.sleep(0.01)  # the place becomes free a moment after the session ends
    with pytest.raises(RightMissing) as right:
        connect(plain, replication=True)
    assert "REPLICATION" in right.value.hint
    server.password_only("plain")
    with pytest.raises(AuthenticationFailed, match="Passwort"):
        connect(plain)
    server.hba_first("host all all 127.0.0.1/32 reject")
    with pytest.raises(AuthenticationFailed) as rejected:
        connect(plain)
    assert hba_line("plain", replication=False, database="postgres", client="127.0.0.1") in rejected.value.hint


@pytest.mark.parametrize(
    ("text", "kind", "hint"),
    [
        ('FATAL:  28P01: ユーザー"u"のパスワード認証に失敗しました\nLOCATION:  auth_failed, auth.c:334\n',
         AuthenticationFailed, "password"),
        ('FATAL:  28000: aucune entrée dans pg_hba.conf pour l\'hôte « 10.0.0.7 », utilisateur « u »\n'
         "LOCATION:  ClientAuthentication, auth.c:543\n", AuthenticationFailed, '"u" 10.0.0.7/32 scram'),
        ("ВАЖНО:  57P03: система баз данных запускается\nLOCATION:  x, y.c:1\n", ServerUnreachable, "wait"),
        ("FATAL:  53300: troppi client già connessi\nLOCATION:  InitProcess, proc.c:1\n",
         ServerUnfit, "max_wal_senders"),
        ("FATAL:  must be superuser or replication role to start walsender", RightMissing, "REPLICATION"),
        ("FATAL:  permission denied to start WAL sender\nDETAIL:  Only roles…", RightMissing, "REPLICATION"),
        ("FATAL:  the database system is shutting down", ServerUnreachable, "wait"),
        ("SSL error: certificate verify failed", ServerUnfit, "sslrootcert"),
        ("received invalid response to SSL negotiation: H", ServerUnreachable, "not a PostgreSQL"),
    ],
)  # fmt: skip
def test_refusals_are_understood_with_and_without_codes(text: str, kind: type[DataManagerError], hint: str) -> None:
    whole = f'connection to server at "10.0.0.1", port 5432 failed: {text}'
    refusal = Refusal(whole, "10.0.0.1:5432", "u", "", replication=True, needs_password=False, used_password=False)
    error = error_of_refusal(refusal)
    assert type(error) is kind
    assert hint in error.hint
    assert "LOCATION" not in error.message


@pytest.mark.parametrize(
    ("client", "line"),
    [
        ("10.0.0.7", 'host replication "a ""b""" 10.0.0.7/32 scram-sha-256'),
        ("fe80::1%eth0", 'host replication "a ""b""" fe80::1/128 scram-sha-256'),
        ("[local]", 'local replication "a ""b""" scram-sha-256'),
        ("", 'host replication "a ""b""" samenet scram-sha-256'),
    ],
)
def test_the_pg_hba_line_fits_the_client(client: str, line: str) -> None:
    assert hba_line('a "b"', replication=True, client=client) == line
