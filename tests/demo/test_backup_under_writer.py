"""The writer and the comparison together judge a real backup, PostgreSQL's own, taken while the writer commits."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.base.units import MIB, Lsn
from datamanager.demo.clinic import change_clinic, create_clinic
from datamanager.demo.compare import check_commit_run, table_digests
from datamanager.demo.writer import CommitWriter
from tests.conftest import NewServer


@pytest.mark.pg("15,18")
def test_a_backup_taken_under_the_writer_holds_its_run_and_equals_the_tables_it_did_not_touch(
    new_server: NewServer, open_folder: Path
) -> None:
    server = new_server(config={"wal_keep_size": "1GB"})
    target = open_folder / "copy"
    with server.connect() as connection, StopToken() as stop:
        create_clinic(connection, 24 * MIB, 2, ignore, stop)
        before = table_digests(connection)
        with CommitWriter(server.dsn) as writer:
            time.sleep(0.3)
            said = server.run("pg_basebackup", "-D", target, "-X", "fetch", "-c", "fast", "-v").stderr
            time.sleep(0.3)
            change_clinic(connection, 1)
        after = table_digests(connection, exclude={"public.commit_log"})
    end = re.search(r"end point: ([0-9A-F]+/[0-9A-F]+)", said)
    assert end is not None, said
    with new_server.adopt(target).connect() as copy:
        report = check_commit_run(copy, writer.commits, Lsn.parse(end[1]))
        restored = table_digests(copy, exclude={"public.commit_log"})
    assert writer.failures == []
    assert report.ok
    assert 0 < report.required <= report.count < len(writer.commits)
    assert restored == before
    assert {name for name in before if after.get(name) != before[name]} > {"clinic.notes", "clinic.price_list"}
