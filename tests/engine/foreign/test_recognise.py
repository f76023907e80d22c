"""Files are told by their content, and those that are no backups by what they look like."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.base.errors import DataManagerError, IntegrityError, NotFound, UsageError
from datamanager.base.pipeline import StopToken
from datamanager.engine.foreign.recognise import recognise
from datamanager.engine.foreign.script import Lines, Place
from datamanager.engine.foreign.statements import database_attributes, roles_named, with_location
from datamanager.engine.foreign.tar import TarReader
from datamanager.repository.format import folders

STRANGE = {
    "SQL Server (.bak)": b"TAPE\0\0\3\0" + bytes(1000),
    "MySQL": b"-- MySQL dump 10.13  Distrib 8.0.36\n--\n",
    "MariaDB": b"/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump",
    "empty": b"",
    "file of zeros": bytes(5000),
    "web page": b"\n<!DOCTYPE html>\n<html><title>404 Not Found</title>",
    "SQLite": b"SQLite format 3\0" + bytes(90),
    "pg_dump did not write": b"CREATE TABLE a (b int);\n",
    "UTF-16": "--\r\n-- PostgreSQL database dump\r\n".encode("utf-16"),
    "no SQL": b"Dear madam, please find attached our backup",
    "nothing known": bytes(range(256)) * 4,
    "packed by gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\3\x03\0\0\0\0\0\0\0\0\0",
}


@pytest.fixture
def stop() -> Iterator[StopToken]:
    with StopToken() as token:
        yield token


@pytest.mark.requirement("R75")
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_backup_is_refused_with_what_it_looks_like(kind: str, tmp_path: Path, stop: StopToken) -> None:
    file = tmp_path / "backup.dump"
    file.write_bytes(STRANGE[kind])
    with pytest.raises(UsageError) as caught:
        recognise(file, stop)
    assert kind.lower() in caught.value.message.lower()
    assert caught.value.hint


def test_a_folder_of_a_repository_is_pointed_to_its_option(tmp_path: Path, stop: StopToken) -> None:
    for name in folders():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "config").write_bytes(b"x")
    with pytest.raises(UsageError) as caught:
        recognise(tmp_path, stop)
    assert f"--repo {tmp_path}" in caught.value.hint


def test_what_is_not_there_and_an_empty_folder_are_named(tmp_path: Path, stop: StopToken) -> None:
    with pytest.raises(NotFound):
        recognise(tmp_path / "not there", stop)
    with pytest.raises(UsageError, match="an empty directory"):
        recognise(tmp_path, stop)


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("base/../../outside"),
        member("/etc/passwd"),
        member("C:/outside"),
        member("base\\..\\outside"),
        member("null", tarfile.CHRTYPE),
        member("disk", tarfile.BLKTYPE),
        member("pipe", tarfile.FIFOTYPE),
        member("twin", tarfile.LNKTYPE, "/etc/passwd"),
        member("/" + "long/" * 40 + "name"),
    ],
    ids=lambda info: info.name[:20],
)
def test_a_tar_that_leads_outside_is_refused(bad: tarfile.TarInfo, tmp_path: Path) -> None:
    data = tar_of((member("PG_VERSION"), b"18\n"), (bad, b""))
    with pytest.raises(IntegrityError, match="refused as a tar archive"):
        list(TarReader(io.BytesIO(data), tmp_path).members())


def test_a_tar_is_read_with_long_names_and_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    name = "base/" + "n" * 200
    files = [(member("PG_VERSION"), b"18\n"), (member(name), b"x" * 3000), (member("zeros"), bytes(4096))]
    data = tar_of(*files)
    reader = TarReader(io.BytesIO(data), tmp_path)
    assert [(one.path, one.size) for one in reader.members()] == [("PG_VERSION", 3), (name, 3000), ("zeros", 4096)]
    end = len(data.rstrip(b"\0")) // 512 * 512
    last = data.rindex(b"ustar") // 512 * 512 + 512 + 4096  # behind the zeros that are data
    for size in [*range(0, end, 256), last, last + 512]:
        with pytest.raises(DataManagerError):
            list(TarReader(io.BytesIO(data[:size]), tmp_path).members())
    with pytest.raises(IntegrityError, match="follows its end"):
        list(TarReader(io.BytesIO(data + b"more"), tmp_path).members())


def test_statements_are_told_from_literals_and_rows() -> None:
    script = rb"""SELECT 'a
DROP DATABASE x;
it''s' || E'\'
\connect y
';
/* --
\! rm */ SELECT $a$
$b$ \restrict
$a$, "a'b";
-- Data for Name: t; Type: TABLE DATA; Schema: public; Owner: x
COPY t FROM stdin;
\.x
DROP TABLE t;
\.
SELECT 1;
"""
    places = [(line.decode().split()[0], place) for line, place in Lines(io.BytesIO(script))]
    statements = [word for word, place in places if place is Place.STATEMENT]
    assert statements == ["SELECT", "/*", "--", "COPY", "SELECT"]
    assert sum(place is Place.ROWS for _, place in places) == 1


@pytest.mark.parametrize(
    ("statement", "roles"),
    [
        ("ALTER TABLE public.t OWNER TO alice;", ["alice"]),
        ('ALTER FUNCTION f() OWNER TO "A ""b""";', ['A "b"']),
        ("GRANT SELECT,INSERT ON TABLE t TO alice WITH GRANT OPTION;", ["alice"]),
        ("GRANT ALL ON SCHEMA public TO PUBLIC;", []),
        ("REVOKE ALL ON TABLE t FROM bob;", ["bob"]),
        ("ALTER DEFAULT PRIVILEGES FOR ROLE a IN SCHEMA s GRANT SELECT ON TABLES TO b;", ["b", "a"]),
        ("CREATE POLICY p ON t FOR SELECT TO a, \"b c\" USING (true);", ["a", "b c"]),
        ("SET SESSION AUTHORIZATION 'carol';", ["carol"]),
        ("CREATE TABLE t (a int);", []),
    ],
)  # fmt: skip
def test_roles_are_read_from_statements(statement: str, roles: list[str]) -> None:
    assert list(roles_named(statement)) == roles


def test_what_a_database_and_a_tablespace_were_made_with() -> None:
    statement = "CREATE DATABASE \"a b\" WITH TEMPLATE = template0 ENCODING = 'UTF8' LOCALE = 'C' TABLESPACE = \"x y\";"
    assert database_attributes(statement) == "TEMPLATE = template0 ENCODING = 'UTF8' LOCALE = 'C'"
    moved = with_location("CREATE TABLESPACE fast OWNER a LOCATION '/live';", "/it's/new")
    assert moved == "CREATE TABLESPACE fast OWNER a LOCATION '/it''s/new';"
