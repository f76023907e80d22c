"""A real server, backed up by the engine, comes back through rescue.py alone and answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from datamanager.rescue import rescue_script
from tests.conftest import NewServer
from tests.engine.conftest import SECRET, Works, owner, pg, programs_of
from tests.servers import server_account


@pytest.mark.requirement("N13")
@pytest.mark.pg("15,18")
def test_a_server_restored_by_rescue_py_alone_starts_and_has_every_row(
    new_server: NewServer, open_folder: Path
) -> None:
    server = new_server()
    server.tablespace("fast")
    server.sql("create table visits as select n, repeat('note ', 40) as note from generate_series(1, 20000) n")
    server.sql("create table archive tablespace fast as select n from generate_series(1, 5000) n")
    works = Works(open_folder)
    try:
        result = works.back_up(server)
    finally:
        works.close()
    repository, target = open_folder / "repository", open_folder / "rescued"
    (repository / "rescue.py").write_bytes(rescue_script([]))
    done = subprocess.run(
        [sys.executable, "-I", "-B", str(repository / "rescue.py"), "restore", *_owner_words(), str(target)],
        input=SECRET.secret.reveal().decode() + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"PostgreSQL {result.manifest.major} (" in done.stdout
    assert "operating system: " in done.stdout
    pg(programs_of(new_server.version, result.manifest.major), "pg_verifybackup", target)
    copy = new_server.adopt(target, own=False)
    assert copy.sql("select count(*), sum(n), min(note) from visits") == [(20000, 200010000, "note " * 40)]
    assert copy.sql("select count(*) from archive") == [(5000,)]
    (place,) = copy.sql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'")
    assert str(place[0]).startswith(str(open_folder / "rescued-tablespaces"))


def _owner_words() -> list[str]:
    account = server_account()
    return [] if owner() is None or account is None else ["--owner", account.name]
