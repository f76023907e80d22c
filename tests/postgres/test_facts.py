"""Facts: complete for a superuser, as much as the rights allow for a plain role, never a secret, always bounded."""

from __future__ import annotations

import json
import threading
from dataclasses import fields, replace

import pytest

from datamanager.base.errors import AuthenticationFailed, Cancelled, ServerUnreachable
from datamanager.base.pipeline import StopToken
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.connection_errors import quote_identifier
from datamanager.postgres.fact_queries import masked, verifier_digest
from datamanager.postgres.facts import ServerFacts, SettingFact, build_target, collect_facts
from datamanager.postgres.facts_model import MOST_BYTES, DatabaseFact, ExtensionFact, RoleFact
from tests.conftest import NewServer
from tests.servers import Server

ODD_NAME = 'Praxis "Müller" & O\'Neil – 医院'
SPACE_NAME = "Räume – 医院"
KEY = bytes(range(32))


def collect(dsn: str, said: list[str] | None = None) -> ServerFacts:
    with StopToken() as stop:
        return collect_facts(ServerAddress(dsn), stop, KEY, (said if said is not None else []).append)


@pytest.mark.pg("14-18,15-debian")
def test_a_superuser_learns_everything(new_server: NewServer, pg_version: str) -> None:
    server = new_server(config={"max_connections": "33", "max_prepared_transactions": "7"})
    odd = quote_identifier(ODD_NAME)
    place = server.tablespace(SPACE_NAME)
    server.sql(f"CREATE ROLE {odd} LOGIN CREATEDB PASSWORD 'first' CONNECTION LIMIT 5 VALID UNTIL '2031-01-01'")
    server.sql(f"ALTER ROLE {odd} SET work_mem = '7MB'")
    server.sql(f"GRANT pg_monitor TO {odd} WITH ADMIN OPTION")
    server.sql(f"CREATE DATABASE {odd} OWNER {odd}")
    server.sql("CREATE DATABASE closed ALLOW_CONNECTIONS false")
    server.sql("CREATE EXTENSION pg_trgm", database=ODD_NAME)
    said: list[str] = []
    facts = collect(server.dsn, said)
    assert facts.warnings == ()
    assert facts.major == server.major
    assert facts.version == server.value("SHOW server_version")
    assert facts.system_identifier == server.value("SELECT system_identifier FROM pg_control_system()")
    assert (facts.operating_system, facts.architecture) == ("linux", "x86_64")
    assert (facts.timeline, facts.in_recovery, facts.data_checksums) == (1, False, True)
    assert (facts.block_size, facts.wal_block_size) == (8192, 8192)
    assert (facts.segment_size, facts.wal_segment_size) == (1 << 30, 16 << 20)
    assert (facts.max_connections, facts.max_prepared_transactions) == (33, 7)
    assert facts.data_directory == str(server.data_directory)
    assert facts.files_outside == ()
    assert facts.rights["superuser"]
    databases = {database.name: database for database in facts.databases}
    assert set(databases) == {"postgres", "template0", "template1", "closed", ODD_NAME}
    mine = databases[ODD_NAME]
    assert (mine.owner, mine.encoding, mine.locale_provider, mine.collate) == (ODD_NAME, "UTF8", "libc", "C")
    assert mine.looked_into
    assert mine.size_bytes is not None
    assert mine.size_bytes > 1_000_000
    assert [one.name for one in mine.extensions] == ["pg_trgm", "plpgsql"]
    assert mine.extensions[0].version == mine.extensions[0].default_version
    assert mine.enabled_subscriptions == 0
    assert not databases["closed"].looked_into
    spaces = {space.name: space for space in facts.tablespaces}
    assert spaces[SPACE_NAME].location == str(place)
    roles = {role.name: role for role in facts.roles}
    role = roles[ODD_NAME]
    assert (role.login, role.create_database, role.superuser, role.connection_limit) == (True, True, False, 5)
    assert role.settings == ("work_mem=7MB",)
    assert [(one.role, one.admin) for one in role.member_of] == [("pg_monitor", True)]
    assert (role.member_of[0].inherit is not None) == (server.major >= 16)
    assert (role.valid_until or "").startswith("2031-01-01")
    assert role.verifier_method == "scram-sha-256"
    verifier = server.value("SELECT rolpassword FROM pg_authid WHERE rolname = %s", ODD_NAME)
    assert role.verifier_digest == verifier_digest(verifier, KEY)
    assert verifier.encode() not in facts.to_json()
    assert {"name": "max_connections", "value": "33"}.items() <= {
        "name": next(one.name for one in facts.settings if one.name == "max_connections"),
        "value": next(one.value for one in facts.settings if one.name == "max_connections"),
    }.items()
    assert "application_name" not in {one.name for one in facts.settings}
    assert any("pg_database" in one for one in said)
    assert ServerFacts.from_json(facts.to_json()) == facts


@pytest.mark.pg("14-18")
def test_a_changed_password_changes_the_digest_and_an_equal_key_repeats_it(new_server: NewServer) -> None:
    server = new_server()
    server.sql("CREATE ROLE carol LOGIN PASSWORD 'one'")

    def digest() -> str | None:
        return next(role.verifier_digest for role in collect(server.dsn).roles if role.name == "carol")

    first = digest()
    assert first == digest()
    assert len(first or "") == 32
    server.sql("ALTER ROLE carol PASSWORD 'two'")
    assert digest() != first


@pytest.mark.pg("14-18,15-debian")
@pytest.mark.decision(21)
def test_a_replication_role_learns_what_it_may_and_is_told_which_grant_gives_the_rest(new_server: NewServer) -> None:
    server = new_server()
    odd = quote_identifier(ODD_NAME)
    server.sql(f"CREATE ROLE {odd} LOGIN REPLICATION")
    server.sql("CREATE DATABASE private")
    server.sql("REVOKE CONNECT ON DATABASE private FROM PUBLIC")
    facts = collect(server.make_dsn(user=ODD_NAME))
    assert facts.data_directory is None
    assert facts.system_identifier == server.value("SELECT system_identifier FROM pg_control_system()")
    assert (facts.rights["replication"], facts.rights["superuser"], facts.rights["pg_monitor"]) == (True, False, False)
    assert {database.name for database in facts.databases} >= {"postgres", "private"}
    assert next(one for one in facts.databases if one.name == "private").size_bytes is None
    assert all(role.verifier_digest is None for role in facts.roles)
    text = "\n".join(facts.warnings)
    assert f"GRANT pg_monitor TO {odd};" in text
    assert f'GRANT CONNECT ON DATABASE "private" TO {odd};' in text
    server.sql(f"GRANT pg_monitor TO {odd}")
    server.sql(f'GRANT CONNECT ON DATABASE "private" TO {odd}')
    better = collect(server.make_dsn(user=ODD_NAME))
    assert "pg_monitor" not in "\n".join(better.warnings)
    assert next(one for one in better.databases if one.name == "private").looked_into
    assert better.config_file == str(server.data_directory / "postgresql.conf")


@pytest.mark.pg("14-18")
@pytest.mark.decision(21)
def test_a_role_that_gets_only_replication_sessions_still_describes_the_cluster(new_server: NewServer) -> None:
    server = new_server()
    server.sql("CREATE ROLE streams LOGIN REPLICATION")
    server.hba_first("local replication streams trust", "local all streams reject")
    facts = collect(server.make_dsn(user="streams"))
    assert facts.major == server.major
    assert facts.system_identifier == server.value("SELECT system_identifier FROM pg_control_system()")
    assert facts.data_directory is None
    assert (facts.in_recovery, facts.timeline) == (False, 1)
    assert facts.databases == ()
    assert "only a replication session" in facts.warnings[0]
    assert 'GRANT pg_monitor TO "streams";' in facts.warnings[1]
    server.sql("GRANT pg_monitor TO streams")
    assert collect(server.make_dsn(user="streams")).data_directory == str(server.data_directory)


def test_without_any_session_the_refusal_is_raised(new_server: NewServer) -> None:
    server = new_server()
    server.hba_first("local all,replication all reject")
    with pytest.raises(AuthenticationFailed):
        collect(server.dsn)
    server.stop()
    with pytest.raises(ServerUnreachable):
        collect(server.dsn)


@pytest.mark.pg("14,18")
def test_configuration_outside_the_data_directory_is_noticed(new_server: NewServer) -> None:
    server = new_server()
    outside = server.folder / "pg_hba.conf"
    outside.write_text("local all,replication all trust\n")
    server.configure(hba_file=str(outside))
    server.restart()
    assert collect(server.dsn).files_outside == (str(outside),)


@pytest.mark.pg("14,18")
def test_names_that_are_not_utf8_are_shown_and_their_databases_looked_into(new_server: NewServer) -> None:
    server = new_server()
    server.sql("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
    script = server.folder / "latin1.sql"
    script.write_bytes("SET client_encoding='SQL_ASCII';\nCREATE DATABASE \"caf\xe9\";\n".encode("latin-1"))
    script.chmod(0o644)
    server.run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "ascii", "-f", str(script))
    for database in ("ascii", "postgres"):
        facts = collect(server.make_dsn(database=database))
        cafe = next(one for one in facts.databases if one.name.startswith("caf"))
        assert cafe.name == "caf\\xe9"
        assert cafe.looked_into
        facts.to_json().decode("ascii")


@pytest.mark.pg("14-18")
def test_secrets_in_settings_are_masked(new_server: NewServer) -> None:
    server = new_server(
        config={
            "primary_conninfo": "host=elsewhere user=u password='top geheim'",
            "ssl_passphrase_command": "echo geheim",
            "archive_command": "push --password=geheim %p",
            "my.api_key": "geheim",
        }
    )
    server.sql("CREATE ROLE keyed")
    server.sql("ALTER ROLE keyed SET my.api_token = 'geheim'")
    facts = collect(server.dsn)
    assert b"geheim" not in facts.to_json()
    assert "elsewhere" in next(one.value for one in facts.settings if one.name == "primary_conninfo")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("primary_conninfo", "host=a password", "***"),
        ("restore_command", "get postgres://u:geheim@h/x %f", "get postgres://u:***@h/x %f"),
        ("archive_command", "s3 key=geheim cp %p", "s3 key=*** cp %p"),
        ("password_encryption", "scram-sha-256", "scram-sha-256"),
        ("work_mem", "64", "64"),
    ],
)
def test_values_are_masked_by_name_and_by_content(name: str, value: str, shown: str) -> None:
    assert masked(name, value) == shown


def test_stopping_ends_the_collection(server: Server) -> None:
    with StopToken() as stop:
        stop.stop("enough")
        with pytest.raises(Cancelled):
            collect_facts(ServerAddress(server.dsn), stop, KEY, lambda text: None)


def test_stopping_midway_ends_the_collection(server: Server) -> None:
    with StopToken() as stop:
        seen: list[str] = []

        def stop_at_roles(text: str) -> None:
            seen.append(text)
            if "pg_authid" in text:
                threading.Thread(target=stop.stop, args=("enough",)).start()
                stop.wait(5)

        with pytest.raises(Cancelled):
            collect_facts(ServerAddress(server.dsn), stop, KEY, stop_at_roles)
    assert not any("pg_extension" in text for text in seen)


def test_an_empty_fingerprint_key_is_refused() -> None:
    with StopToken() as stop, pytest.raises(ValueError, match="32 bytes"):
        collect_facts(ServerAddress("host=/nowhere"), stop, b"", lambda text: None)


def many() -> ServerFacts:
    plain = ServerFacts(version="18.6", version_number=180006, major=18, system_identifier=1)
    extensions = tuple(ExtensionFact(f"extension_{number}", "1.0") for number in range(400))
    database = DatabaseFact(1, "x" * 60, "o", "UTF8", "libc", "C", "C", extensions=extensions)
    return replace(
        plain,
        databases=tuple(replace(database, oid=number) for number in range(3000)),
        roles=tuple(RoleFact(f"role {number}") for number in range(9000)),
        settings=tuple(SettingFact(f"s{number}", "v" * 5000) for number in range(900)),
    )


def test_a_huge_cluster_is_cut_to_two_mebibytes_with_counts_and_a_warning() -> None:
    whole = many()
    cut = whole.bounded()
    assert len(cut.to_json()) <= MOST_BYTES
    assert ServerFacts.from_json(cut.to_json()) == cut
    for name in ("databases", "roles", "settings"):
        assert len(getattr(cut, name)) + cut.left_out.get(name, 0) == len(getattr(whole, name))
    assert cut.left_out["databases"] > 0
    assert cut.left_out["extensions or collations of databases"] == 3000
    assert any("databases" in warning for warning in cut.warnings)


def test_facts_that_fit_are_left_alone() -> None:
    plain = ServerFacts(version="18.6", version_number=180006, major=18, system_identifier=2**63)
    assert plain.bounded() is not None
    assert plain.bounded() == plain


def test_facts_of_another_release_are_read() -> None:
    values = json.loads(ServerFacts(version="18.6", version_number=180006, major=18, system_identifier=3).to_json())
    values["something_new"] = [1]
    del values["roles"]
    facts = ServerFacts.from_json(json.dumps(values).encode())
    assert facts.system_identifier == 3
    assert facts.roles == ()
    assert "something_new" not in {one.name for one in fields(facts)}


@pytest.mark.parametrize("data", [b"[]", b"{}", b"null", b"{", b'{"version": 1, "databases": [3]}'])
def test_what_is_not_such_a_record_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        ServerFacts.from_json(data)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("PostgreSQL 18.6 on x86_64-pc-linux-gnu, compiled by gcc, 64-bit", ("linux", "x86_64")),
        ("PostgreSQL 16.1 (Homebrew) on aarch64-apple-darwin23.0, compiled by clang", ("darwin", "aarch64")),
        ("PostgreSQL 16.1, compiled by Visual C++ build 1937, 64-bit", ("windows", "x86_64")),
        ("PostgreSQL 17.2 on x86_64-windows, compiled by msvc-19.42.34435, 64-bit", ("windows", "x86_64")),
        ("PostgreSQL 15.1 on x86_64-w64-mingw32, compiled by gcc", ("windows", "x86_64")),
        ("PostgreSQL 99", ("", "")),
    ],
)
def test_the_build_target_is_read_from_the_version(text: str, target: tuple[str, str]) -> None:
    assert build_target(text) == target
