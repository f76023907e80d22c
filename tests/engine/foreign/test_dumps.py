"""Dumps of one database come back into a new database, whole or not at all."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from datamanager.base.errors import (
    DataManagerError,
    IntegrityError,
    RestoreFailed,
    ServerMismatch,
    TargetTooSmall,
    UsageError,
)
from datamanager.base.pipeline import StopToken
from datamanager.engine.foreign.recognise import Kind, recognise
from tests.conftest import NewServer
from tests.engine.conftest import Heard
from tests.engine.foreign.dumps import Clinic, clinic_of, databases_of, into, state_of
from tests.servers import Server

FORMS = {
    "custom": ("-Fc",),
    "directory": ("-Fd",),
    "directory plain": ("-Fd", "-Z0"),
    "tar": ("-Ft",),
    "script": (),
    "script that creates": ("-C",),
    "script that cleans": ("-c", "-C"),
    "inserts": ("--inserts",),
}


@pytest.fixture
def clinic(server: Server, tmp_path: Path) -> Iterator[Clinic]:
    with clinic_of(server, tmp_path) as made:
        yield made


@pytest.fixture
def stop() -> Iterator[StopToken]:
    with StopToken() as token:
        yield token


@pytest.mark.pg("15,18")
@pytest.mark.requirement("R75")
def test_every_form_of_a_dump_comes_back_with_owners_and_rights(clinic: Clinic, stop: StopToken) -> None:
    server = clinic.server
    before = state_of(server, "clinic")
    for name, words in FORMS.items():
        file = clinic.dump(name, *words)
        foreign = recognise(file, stop)
        assert foreign.kind is (Kind.SCRIPT if "script" in name or name == "inserts" else Kind.ARCHIVE)
        assert foreign.version.startswith(str(server.major))
        into(server, foreign, f"new {name}")
        assert state_of(server, f"new {name}") == before
    # The dump's own database was not touched by what the scripts say of it.
    assert server.value("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'clinic'")
    assert databases_of(server) >= {"clinic", *(f"new {name}" for name in FORMS)}
    assert not [name for name in databases_of(server) if "restoring" in name]


@pytest.mark.requirement("R75")
def test_a_compressed_script_comes_back_whatever_it_is_called(clinic: Clinic) -> None:
    text = clinic.dump("script").read_bytes()
    for number, packed in enumerate(
        (gzip.compress(text), bz2.compress(text), lzma.compress(text), zstandard.compress(text), zipped(clinic, text))
    ):
        file = clinic.folder / "backup.doc"
        file.write_bytes(packed)
        into(clinic.server, file, f"new {number}")
        assert state_of(clinic.server, f"new {number}") == state_of(clinic.server, "clinic")


def zipped(clinic: Clinic, text: bytes) -> bytes:
    with zipfile.ZipFile(clinic.folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dump.sql", text)
    return (clinic.folder / "x.zip").read_bytes()


@pytest.mark.pg("15")
def test_dumps_of_15_go_into_18(clinic: Clinic, new_server: NewServer) -> None:
    newer = new_server(18)
    for name, words in {"custom": ("-Fc",), "script": ("-C",)}.items():
        into(newer, clinic.dump(name, *words), f"new {name}", create_roles=name == "custom")
        # The owner's rights have one more letter there.
        assert state_of(newer, f"new {name}")[:-1] == state_of(clinic.server, "clinic")[:-1]


def test_missing_roles_are_named_before_anything_is_made(clinic: Clinic, new_server: NewServer) -> None:
    empty = new_server()
    for file in (clinic.dump("custom", "-Fc"), clinic.dump("script")):
        before = databases_of(empty)
        with pytest.raises(ServerMismatch, match="doctor, the nurse"):
            into(empty, file, "new")
        assert databases_of(empty) == before
        into(empty, file, "new", no_owner=True)
        assert empty.value("SELECT count(*) FROM visits", database="new") == 3000
        empty.sql("DROP DATABASE new")
    into(empty, clinic.dump("again", "-Fc"), "new", create_roles=True)
    assert state_of(empty, "new") == state_of(clinic.server, "clinic")
    assert not any(login for (login,) in empty.sql("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'doctor'"))


def test_a_dump_never_goes_into_a_database_that_exists(clinic: Clinic) -> None:
    with pytest.raises(UsageError, match="exists already"):
        into(clinic.server, clinic.dump("custom", "-Fc"), "clinic")


@pytest.mark.requirement("R77")
def test_a_dump_that_may_not_fit_is_refused_before_anything_is_made(clinic: Clinic) -> None:
    archive = clinic.dump("custom", "-Fc")
    before = databases_of(clinic.server)
    with archive.open("r+b") as file:
        file.truncate(1 << 40)  # a hole: it takes no room here
    with pytest.raises(TargetTooSmall, match=r"needs 7\.0 TiB, its volume has"):
        into(clinic.server, archive, "new")
    assert databases_of(clinic.server) == before


@pytest.mark.pg("15,18")
def test_a_failed_statement_is_a_failed_restore_that_leaves_nothing(clinic: Clinic, new_server: NewServer) -> None:
    server = clinic.server
    script = clinic.dump("script")
    text = script.read_text()
    script.write_text(text.replace("\n2000\ta note", "\ntwo thousand\ta note", 1))
    before = databases_of(server)
    with pytest.raises(RestoreFailed, match=r"TABLE DATA visits: .*two thousand"):
        into(server, script, "new")
    assert databases_of(server) == before
    server.sql("CREATE EXTENSION IF NOT EXISTS pgcrypto", database="clinic")
    script = clinic.dump("extension")
    script.write_text(script.read_text().replace("EXISTS pgcrypto", "EXISTS not_here_at_all"))
    with pytest.raises(RestoreFailed, match=r"EXTENSION pgcrypto: .*not_here_at_all") as caught:
        into(server, script, "new")
    assert "extension's package" in caught.value.hint
    archive = clinic.dump("custom", "-Fc", "-Z0")
    archive.write_bytes(archive.read_bytes().replace(b"2000\ta note", b"20x0\ta note", 1))
    with pytest.raises(RestoreFailed, match="20x0"):
        into(server, archive, "new")
    assert databases_of(server) == before
    with pytest.raises(RestoreFailed, match="20x0") as caught:
        into(server, archive, "new", keep_failed=True)
    kept = databases_of(server) - before
    assert len(kept) == 1
    assert kept.pop() in caught.value.hint


def test_roles_made_for_a_restore_that_fails_go_again(clinic: Clinic, new_server: NewServer) -> None:
    empty = new_server()
    archive = clinic.dump("custom", "-Fc", "-Z0")
    archive.write_bytes(archive.read_bytes().replace(b"2000\ta note", b"20x0\ta note", 1))
    with pytest.raises(RestoreFailed):
        into(empty, archive, "new", create_roles=True)
    assert not empty.sql("SELECT 1 FROM pg_roles WHERE rolname = 'doctor'")


@pytest.mark.parametrize("form", ["custom", "tar", "script", "inserts", "gzip", "zstd"])
def test_a_dump_that_was_cut_off_anywhere_is_never_taken_for_whole(clinic: Clinic, form: str) -> None:
    words = {"gzip": (), "zstd": (), **FORMS}[form]
    data = clinic.dump(form, *words).read_bytes()
    packers: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstandard.compress}
    data = packers.get(form, bytes)(data)
    chance = random.Random(75)
    # Right behind a row is where PostgreSQL's own programs see nothing wrong.
    rows = [at + 1 for at in (data.find(b"\n1500\ta note"), data.find(b"\n2999\ta note")) if at > 0]
    # What follows the last words of a script says nothing.
    whole = data[: data.rindex(b" dump complete") + 14] if form in ("script", "inserts") else data
    before = databases_of(clinic.server)
    for size in [0, 5, *(chance.randrange(len(whole)) for _ in range(6)), len(whole) - 1, *rows]:
        file = clinic.folder / "cut"
        file.write_bytes(data[:size])
        with pytest.raises(DataManagerError) as caught:
            into(clinic.server, file, "new")
        assert isinstance(caught.value, (IntegrityError, UsageError, RestoreFailed)), (size, caught.value)
    assert databases_of(clinic.server) == before


@pytest.mark.parametrize("form", ["directory", "directory plain"])
def test_a_dump_directory_with_a_file_cut_off_or_missing_is_refused(clinic: Clinic, form: str) -> None:
    whole = clinic.dump(form, *FORMS[form])
    before = databases_of(clinic.server)
    data = max((one for one in whole.iterdir() if one.name != "toc.dat"), key=lambda one: one.stat().st_size)
    content = data.read_bytes()
    between = content.find(b"\n1500\ta note") + 1 or len(content) // 2
    for size in (0, between, len(content) - 1):
        data.write_bytes(content[:size])
        with pytest.raises(IntegrityError):
            into(clinic.server, whole, "new")
    data.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        into(clinic.server, whole, "new")
    data.write_bytes(content)
    shutil.copy(whole / "toc.dat", clinic.folder / "toc")
    for size in (0, 100, (whole / "toc.dat").stat().st_size - 1):
        (whole / "toc.dat").write_bytes((clinic.folder / "toc").read_bytes()[:size])
        with pytest.raises((IntegrityError, UsageError)):
            into(clinic.server, whole, "new")
    assert databases_of(clinic.server) == before


def test_a_script_runs_no_program_and_connects_nowhere_else(clinic: Clinic) -> None:
    text = clinic.dump("script").read_text()
    proof = clinic.folder / "proof"
    place = text.index("SET statement_timeout")
    for bad in (
        f"\\! touch '{proof}'\n",
        f"SELECT 1 \\! touch '{proof}'\n",
        f"\\o {proof}\n",
        f"SELECT 1 \\g {proof}\n",
    ):
        hostile = clinic.folder / "hostile"
        hostile.write_text(text[:place] + bad + text[place:])
        with pytest.raises(RestoreFailed):
            into(clinic.server, hostile, "new")
        key = text.partition("\\restrict ")[2].partition("\n")[0]
        hostile.write_text(text[:place] + f"\\unrestrict {key}\n" + bad + text[place:])
        with pytest.raises(RestoreFailed):
            into(clinic.server, hostile, "new")
    assert not proof.exists()
    hostile.write_text(text[:place] + '\\connect "host=elsewhere dbname=x"\n' + text[place:])
    with pytest.raises(UsageError, match="another server"):
        into(clinic.server, hostile, "new")


def test_a_restore_that_is_stopped_leaves_nothing(clinic: Clinic) -> None:
    script = clinic.dump("script")
    script.write_text(script.read_text().replace("SET row_security = off;", "SELECT pg_sleep(60);", 1))
    before = databases_of(clinic.server)
    with StopToken() as token:

        class Stopping(Heard):
            def __call__(self, event: object) -> None:
                super().__call__(event)  # type: ignore[arg-type]
                if "restoring" in self.phases and any("database new" in str(one) for one in self.events):
                    token.stop("the test says so")

        with pytest.raises(DataManagerError, match="the test says so"):
            into(clinic.server, script, "new", heard=Stopping(), stop=token)
    assert databases_of(clinic.server) == before


def test_tablespaces_that_the_server_lacks_are_left_out_with_a_warning(clinic: Clinic, new_server: NewServer) -> None:
    source = new_server()
    source.tablespace("fast")
    source.sql("CREATE DATABASE clinic")
    source.sql("CREATE TABLE t (i int) TABLESPACE fast", database="clinic")
    made = Clinic(source, clinic.folder)
    for file in (made.dump("c", "-Fc"), made.dump("s")):
        heard = Heard()
        into(clinic.server, file, "new", heard=heard)
        assert "no tablespace fast" in " ".join(heard.warnings)
        assert clinic.server.value("SELECT count(*) FROM t", database="new") == 0
        clinic.server.sql("DROP DATABASE new")
