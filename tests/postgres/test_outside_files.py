"""Configuration outside the data directory, as Debian has it: found with its includes, by every way there is to it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

import pytest

from datamanager.base.pipeline import StopToken
from datamanager.postgres.conf_syntax import Include, IncludeKind, hba_includes, settings_of
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.facts import ServerFacts, collect_facts
from datamanager.postgres.file_access import DiskAccess, FileAccess, ServerAccess
from datamanager.postgres.outside_files import Collected, Wanted, collect_outside
from datamanager.postgres.outside_model import MOST_OUTSIDE_BYTES
from datamanager.postgres.roles import right_for
from tests.conftest import NewServer
from tests.servers import Server, hand_over

PLAIN = "plain"
UMLAUT = "# für Dr. Müller\n"


def as_debian(new_server: NewServer, version: str) -> tuple[Server, Path]:
    """A server whose configuration lies in a folder of its own, with every kind of include."""
    server = new_server(version, start=False)
    etc = server.folder / "etc" / "15" / "main"
    (etc / "conf.d").mkdir(parents=True)
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (server.data_directory / name).rename(etc / name)
    common = server.folder / "etc" / "common.conf"
    common.write_text(UMLAUT + "work_mem = '5MB'\n")
    (etc / "conf.d" / "10 clinic.conf").write_text("maintenance_work_mem = 17MB # include 'no.conf'\n")
    (etc / "conf.d" / ".hidden.conf").write_text("nonsense\n")
    (etc / "conf.d" / "notes.txt").write_text("nonsense\n")
    with (etc / "postgresql.conf").open("a") as file:
        file.write("include_dir 'conf.d'\ninclude = '../../common.conf'\ninclude_if_exists 'absent.conf'\n")
    (etc / "admins").write_text("postgres, carol\n@more\n")
    (etc / "more").write_text("dave\n")
    hba = etc / "pg_hba.conf"
    lines = "include hba_extra.conf\n" if server.major >= 16 else ""
    (etc / "hba_extra.conf").write_text("local all erin trust\n")
    hba.write_text(f'{lines}local all @admins trust\nlocal all,replication "@none",all trust # @no\n{hba.read_text()}')
    hand_over(server.folder / "etc")
    names = {"config_file": "postgresql.conf", "hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"}
    server.start_config = {setting: str(etc / name) for setting, name in names.items()}
    return server.start(), etc


def expected(server: Server, etc: Path) -> list[str]:
    names = ["postgresql.conf", "conf.d/10 clinic.conf", "../../common.conf", "pg_hba.conf", "admins", "more"]
    names += ["hba_extra.conf"] if server.major >= 16 else []
    return sorted(os.path.normpath(etc / name) for name in [*names, "pg_ident.conf"])


def facts_of(dsn: str) -> ServerFacts:
    with StopToken() as stop:
        return collect_facts(ServerAddress(dsn), stop, bytes(32), lambda text: None)


def wanted_of(facts: ServerFacts, **more: object) -> Wanted:
    settings: Mapping[str, str] = {"hba_file": facts.hba_file or "", "ident_file": facts.ident_file or ""}
    known = [one.source_file for one in facts.settings if one.source_file]
    return Wanted(facts.data_directory or "", facts.config_file, settings, known, **more)  # type: ignore[arg-type]


def by_server(dsn: str, wanted: Wanted) -> tuple[Collected, list[str]]:
    told: list[str] = []
    with StopToken() as stop:
        access = ServerAccess(ServerAddress(dsn), stop, told.append)
        try:
            return collect_outside(wanted, [access]), told
        finally:
            access.close()


@pytest.mark.pg("15-debian,16,18")
def test_every_file_is_read_from_the_disk_and_through_a_superuser_alike(new_server: NewServer, pg_version: str) -> None:
    server, etc = as_debian(new_server, pg_version)
    facts = facts_of(server.dsn)
    assert set(facts.files_outside) == set(server.start_config.values())
    wanted = wanted_of(facts)
    disk = collect_outside(wanted, [DiskAccess()])
    assert (sorted(one.path for one in disk.files), disk.warnings) == (expected(server, etc), ())
    for one in disk.files:
        assert one.data == Path(one.path).read_bytes()
        assert (one.mode, one.size) == (Path(one.path).stat().st_mode & 0o777, Path(one.path).stat().st_size)
    assert (disk.settings["work_mem"], disk.settings["maintenance_work_mem"]) == ("5MB", "17MB")
    asked, told = by_server(server.dsn, wanted)
    assert {one.path: one.content for one in asked.files} == {one.path: one.content for one in disk.files}
    assert (asked.warnings, {one.read for one in asked.files}) == ((), {"server"})
    assert any("pg_read_binary_file" in statement for statement in told)


@pytest.mark.pg("15-debian,18")
def test_a_role_with_the_rights_of_the_table_reads_every_file(new_server: NewServer, pg_version: str) -> None:
    server, etc = as_debian(new_server, pg_version)
    server.sql(f"create role {PLAIN} login replication")
    dsn = server.make_dsn(user=PLAIN)
    server.sql(f"grant pg_monitor to {PLAIN}")
    remedy = right_for("outside_files", server.major, PLAIN).remedy()
    facts = facts_of(dsn)
    refused, _ = by_server(dsn, wanted_of(facts, remedy=remedy))
    assert refused.files == ()
    (warning,) = refused.warnings
    assert f"{etc}/postgresql.conf" in warning
    assert warning.endswith("as a superuser")
    for statement in remedy.split("`")[1].split(";")[:-1]:
        server.sql(statement)
    found, _ = by_server(dsn, wanted_of(facts_of(dsn), remedy=remedy))
    assert (sorted(one.path for one in found.files), found.warnings) == (expected(server, etc), ())
    assert all(one.data == Path(one.path).read_bytes() for one in found.files)


def test_a_folder_that_cannot_be_listed_gives_the_files_that_are_known_and_a_warning(new_server: NewServer) -> None:
    server, etc = as_debian(new_server, new_server.version)
    server.sql(f"create role {PLAIN} login replication")
    server.sql(f"grant pg_monitor, pg_read_server_files to {PLAIN}")
    for signature in ("text", "text, bigint, bigint"):
        server.sql(f"grant execute on function pg_read_file({signature}) to {PLAIN}")
    dsn = server.make_dsn(user=PLAIN)
    found, _ = by_server(dsn, wanted_of(facts_of(dsn)))
    assert sorted(one.path for one in found.files) == expected(server, etc)
    (warning,) = found.warnings
    assert f"{etc}/conf.d (permission denied for function pg_ls_dir)" in warning


@pytest.mark.root
def test_what_this_account_may_not_read_is_read_through_the_server(new_server: NewServer) -> None:
    server, etc = as_debian(new_server, new_server.version)
    for name in ("postgresql.conf", "pg_ident.conf"):
        (etc / name).chmod(0o644)
    (etc / "pg_hba.conf").chmod(0o600)
    wanted = wanted_of(facts_of(server.dsn), remedy="Do this.")
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        alone = collect_outside(wanted, [DiskAccess()])
        with StopToken() as stop:
            access = ServerAccess(ServerAddress(server.dsn), stop, lambda text: None)
            both = collect_outside(wanted, [DiskAccess(), access])
            access.close()
    finally:
        os.seteuid(0)
    (warning,) = alone.warnings
    assert f"{etc}/pg_hba.conf (Permission denied). Do this" in warning
    assert both.warnings == ()
    assert {one.path: one.read for one in both.files}[str(etc / "pg_hba.conf")] == "server"
    assert {one.read for one in both.files} == {"disk", "server"}


@pytest.mark.pg("14,18")
def test_a_cluster_with_everything_in_its_directory_has_nothing_outside(server: Server) -> None:
    wanted = wanted_of(facts_of(server.dsn))
    for found in (
        collect_outside(wanted, [DiskAccess()]),
        collect_outside(wanted, []),
        by_server(server.dsn, wanted)[0],
    ):
        assert (found.files, found.warnings) == ((), ())


def conf(folder: Path, text: str) -> tuple[Path, Wanted]:
    data = folder / "data"
    data.mkdir()
    for name in ("pg_hba.conf", "pg_ident.conf"):
        (data / name).touch()
    file = folder / "etc" / "postgresql.conf"
    file.parent.mkdir()
    file.write_text(text)
    return data, Wanted(str(data), str(file))


def test_certificates_come_along_and_private_keys_are_only_named(tmp_path: Path) -> None:
    _, wanted = conf(
        tmp_path,
        f"ssl_cert_file='{tmp_path}/cert.pem'\nssl_key_file = '{tmp_path}/private.key'\nssl_ca_file = 'inside.crt'\n",
    )
    (tmp_path / "cert.pem").write_bytes(bytes(range(256)))
    (tmp_path / "private.key").write_text("SECRET")
    found = collect_outside(wanted, [DiskAccess()])
    cert, key = found.files[1:]
    assert (cert.path, cert.role, cert.data) == (f"{tmp_path}/cert.pem", "certificate", bytes(range(256)))
    assert (key.path, key.content, key.left_out) == (f"{tmp_path}/private.key", None, "it is a private key")
    assert (found.warnings, "SECRET" in repr(found)) == ((), False)


def test_a_file_linked_into_the_data_directory_counts_as_outside(tmp_path: Path) -> None:
    data, _ = conf(tmp_path, "port = 5433\n")
    (data / "postgresql.conf").symlink_to(tmp_path / "etc" / "postgresql.conf")
    found = collect_outside(Wanted(str(data), str(data / "postgresql.conf")), [DiskAccess()])
    assert [(one.path, one.data) for one in found.files] == [(f"{data}/postgresql.conf", b"port = 5433\n")]


def test_a_file_in_the_data_directory_leads_to_one_outside(tmp_path: Path) -> None:
    data, _ = conf(tmp_path, "port = 5433\n")
    (data / "postgresql.conf").write_text(f"include '{tmp_path}/etc/postgresql.conf'\n")
    found = collect_outside(Wanted(str(data), str(data / "postgresql.conf")), [DiskAccess()])
    assert [one.path for one in found.files] == [f"{tmp_path}/etc/postgresql.conf"]


def test_includes_in_a_circle_end(tmp_path: Path) -> None:
    _, wanted = conf(tmp_path, "include 'postgresql.conf'\ninclude 'second.conf'\n")
    (tmp_path / "etc" / "second.conf").write_text("include_dir '.'\n")
    found = collect_outside(wanted, [DiskAccess()])
    assert [Path(one.path).name for one in found.files] == ["postgresql.conf", "second.conf"]


def test_more_than_a_mebibyte_is_named_and_left_out(tmp_path: Path) -> None:
    _, wanted = conf(tmp_path, "include 'big.conf'\ninclude 'small.conf'\n")
    (tmp_path / "etc" / "big.conf").write_text("# " + "x" * MOST_OUTSIDE_BYTES)
    (tmp_path / "etc" / "small.conf").write_text("port = 1\n")
    found = collect_outside(wanted, [DiskAccess()])
    big = found.files[1]
    assert (big.size, big.content) == (MOST_OUTSIDE_BYTES + 2, None)
    assert "1 MiB" in big.left_out
    assert found.files[2].data == b"port = 1\n"
    assert found.warnings == (f"{tmp_path}/etc/big.conf is too large to be kept with the backup",)


def test_a_file_that_is_missing_is_told_unless_it_may_be(tmp_path: Path) -> None:
    _, wanted = conf(tmp_path, "include 'gone.conf'\ninclude_if_exists 'maybe.conf'\ninclude_dir 'nowhere'\n")
    found = collect_outside(wanted, [DiskAccess()])
    assert found.warnings == (f"{tmp_path}/etc/gone.conf, which the configuration names, is not there",)


def test_paths_of_windows_are_understood(tmp_path: Path) -> None:
    class Disk(DiskAccess):
        def read(self, path: str):  # type: ignore[no-untyped-def]
            return super().read(str(tmp_path / path.replace("\\", "_").replace(":", "")))

    (tmp_path / "D_etc_postgresql.conf").write_text("include 'more.conf'\ninclude 'E:/x.conf'\n")
    (tmp_path / "D_etc_more.conf").touch()
    (tmp_path / "E_x.conf").touch()
    for name in ("pg_hba.conf", "pg_ident.conf"):
        (tmp_path / f"C_Data_{name}").touch()
    found = collect_outside(Wanted("C:/Data", "D:\\etc\\postgresql.conf", windows=True), [Disk()])
    assert [one.path for one in found.files] == ["D:\\etc\\postgresql.conf", "D:\\etc\\more.conf", "E:\\x.conf"]
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("port = 5433", ("port", "5433")),
        ("  Port 5433 # five", ("port", "5433")),
        ("hba_file = '/etc/it''s \\'here\\''", ("hba_file", "/etc/it's 'here'")),
        ("name='a#b'", ("name", "a#b")),
        ("name = 'Dr. M\xc3\xbcller'", ("name", "Dr. Müller")),
        ("name = 'tab\\there \\101'", ("name", "tab\there A")),
        ("include_dir 'conf.d'", Include(IncludeKind.FOLDER, "conf.d")),
        ("INCLUDE='x.conf'", Include(IncludeKind.FILE, "x.conf")),
    ],
)
def test_lines_of_postgresql_conf_are_read_as_the_server_reads_them(line: str, meant: object) -> None:
    assert list(settings_of(line.encode("latin-1"))) == [meant]


def test_the_server_agrees_on_the_values(new_server: NewServer) -> None:
    lines = ["cluster_name = 'it''s \\'a\\' \\\\ \\101#b' # no", "Application_Name 'plain'", "search_path = public"]
    server = new_server(start=False)
    with (server.data_directory / "postgresql.conf").open("a") as file:
        file.write("\n".join(lines) + "\n")
    server.start()
    found = dict(item for item in settings_of("\n".join(lines).encode()) if isinstance(item, tuple))
    for name, value in found.items():
        assert server.value("select reset_val from pg_settings where lower(name) = %s", name) == value


def test_names_and_includes_of_pg_hba_are_found() -> None:
    text = (
        '# @comment\nlocal all @one,"@not one",@"two words" trust # @no\ninclude "extra file.conf"\n'
        "include_dir hba.d\ninclude_if_exists x\nhost include all 10.0.0.0/8 trust\n"
    )
    assert list(hba_includes(text.encode())) == [
        Include(IncludeKind.FILE, "one"),
        Include(IncludeKind.FILE, "two words"),
        Include(IncludeKind.FILE, "extra file.conf"),
        Include(IncludeKind.FOLDER, "hba.d"),
        Include(IncludeKind.IF_EXISTS, "x"),
    ]


def test_a_server_that_is_gone_is_a_warning_and_no_failure(tmp_path: Path) -> None:
    _, wanted = conf(tmp_path, "port = 1\n")
    with StopToken() as stop:
        accesses: list[FileAccess] = [ServerAccess(ServerAddress(f"host={tmp_path}"), stop, lambda text: None)]
        found = collect_outside(wanted, accesses)
    assert found.files == ()
    assert len(found.warnings) == 1
