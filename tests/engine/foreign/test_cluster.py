"""A script of pg_dumpall makes a new cluster beside the present ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import IntegrityError, RestoreFailed, TargetUnfit, UsageError
from datamanager.base.pipeline import StopToken
from datamanager.engine.foreign.cluster import ClusterResult, apply_cluster, plan_cluster
from datamanager.engine.foreign.recognise import Kind, recognise
from tests.conftest import NewServer
from tests.engine.conftest import Heard, account
from tests.engine.foreign.dumps import Clinic, clinic_of, state_of
from tests.servers import binaries
from tests.servers.processes import ProgramFailed


@pytest.fixture
def clinic(new_server: NewServer, open_folder: Path) -> Iterator[Clinic]:
    with clinic_of(new_server(), open_folder) as made:
        yield made


def restore(clinic: Clinic, file: Path, target: Path, mapping: dict[str, Path] | None = None) -> ClusterResult:
    with StopToken() as token:
        foreign = recognise(file, token)
        assert foreign.kind is Kind.CLUSTER_SCRIPT
        plan = plan_cluster(foreign, target, mapping or {}, account(), binaries(clinic.server.version))
        return apply_cluster(plan, SystemClock(), token, Heard(), lambda text: None)


@pytest.mark.pg("15,18")
@pytest.mark.decision(1)
@pytest.mark.requirement("R75")
def test_all_databases_roles_and_tablespaces_come_back_in_a_new_cluster(clinic: Clinic, new_server: NewServer) -> None:
    live = clinic.server.tablespace("fast")
    clinic.server.sql("CREATE TABLE quick (i int) TABLESPACE fast", database="clinic")
    clinic.server.sql("ALTER ROLE doctor LOGIN PASSWORD 'secret words'")
    script = clinic.dump("all", program="pg_dumpall")
    before = sorted(live.rglob("*"))
    new = clinic.folder / "new"
    with pytest.raises(TargetUnfit, match="not empty"):
        restore(clinic, script, new)
    result = restore(clinic, script, new, {str(live): clinic.folder / "new space"})
    assert "clinic" in result.databases
    copy = new_server.adopt(new, own=False, start=False)
    assert not (new / "unfinished-restore").exists()
    copy.hba_first("local all all trust")
    copy.start()
    assert state_of(copy, "clinic") == state_of(clinic.server, "clinic")
    assert copy.value("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'clinic'")
    passwords = "SELECT rolpassword FROM pg_authid WHERE rolname = 'doctor'"
    assert copy.value(passwords) == clinic.server.value(passwords)
    assert copy.value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'") == str(
        clinic.folder / "new space"
    )
    assert sorted(live.rglob("*")) == before


def test_a_failed_statement_leaves_a_directory_that_does_not_start(clinic: Clinic, new_server: NewServer) -> None:
    script = clinic.dump("all", program="pg_dumpall")
    script.write_text(script.read_text().replace("\n2000\ta note", "\n20x0\ta note", 1))
    with pytest.raises(RestoreFailed, match=r"TABLE DATA visits: .*20x0"):
        restore(clinic, script, clinic.folder / "new")
    with pytest.raises(ProgramFailed):
        new_server.adopt(clinic.folder / "new", own=False)


def test_a_script_cut_off_or_made_with_clean_makes_nothing(clinic: Clinic) -> None:
    script = clinic.dump("all", program="pg_dumpall")
    text = script.read_bytes()
    end = text.rindex(b"-- PostgreSQL database cluster dump complete")
    for size in (end, text.index(b"\n2000\ta note") + 1, end // 2, 3000):
        script.write_bytes(text[:size])
        with pytest.raises(IntegrityError):
            restore(clinic, script, clinic.folder / "new")
    with pytest.raises(UsageError, match="--clean"):
        restore(clinic, clinic.dump("clean", "--clean", program="pg_dumpall"), clinic.folder / "new")
    assert not (clinic.folder / "new").exists()
