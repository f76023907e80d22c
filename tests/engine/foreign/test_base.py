"""Base backups of PostgreSQL's own programs come back into new directories, and never touch the original's."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import (
    Cancelled,
    DataManagerError,
    IntegrityError,
    RestoreFailed,
    TargetTooSmall,
    TargetUnfit,
)
from datamanager.base.pipeline import StopToken
from datamanager.engine.foreign.base import BaseResult, apply_base, plan_base
from datamanager.engine.foreign.recognise import Kind, recognise
from datamanager.engine.restore.plan import RestoreOptions
from tests.conftest import NewServer
from tests.engine.conftest import Heard, owner
from tests.servers import Server, binaries
from tests.servers.processes import ProgramFailed

QUICK = ("-c", "fast", "-X", "stream")


class Taken:
    """A server with a tablespace, and base backups of it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.space = server.tablespace("fast")
        server.sql("CREATE TABLE visits AS SELECT g AS id FROM generate_series(1, 1000) g")
        server.sql("CREATE TABLE quick TABLESPACE fast AS SELECT g AS id FROM generate_series(1, 500) g")
        self.oid = server.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'")

    def take(self, name: str, *words: str) -> Path:
        target = self.folder / name
        self.server.run("pg_basebackup", "-D", target, *QUICK, *words)
        return target

    def restore(self, file: Path, name: str, *, stop: StopToken | None = None) -> BaseResult:
        with StopToken() as own:
            token = stop or own
            heard = Heard()
            target = self.folder / name
            foreign = recognise(file, token)
            # Where its tablespace was stands in a tar; in a directory there is only where it is now.
            old = str(self.space) if foreign.kind is Kind.BASE_TAR else str(self.oid)
            options = RestoreOptions(target, {old: self.folder / f"{name} fast"}, owner())
            plan = plan_base(foreign, options, token, heard)
            path = binaries(self.server.version)
            return apply_base(plan, SystemClock(), token, heard, lambda text: None, path)


@pytest.fixture
def taken(new_server: NewServer, open_folder: Path) -> Taken:
    return Taken(new_server(), open_folder)


@pytest.fixture
def stop() -> Iterator[StopToken]:
    with StopToken() as token:
        yield token


def counts(server: Server) -> tuple[int, int]:
    return server.value("SELECT count(*) FROM visits"), server.value("SELECT count(*) FROM quick")


@pytest.mark.pg("15,18")
@pytest.mark.decision(1)
@pytest.mark.requirement("R75")
def test_every_form_of_a_base_backup_comes_back_beside_the_original(taken: Taken, new_server: NewServer) -> None:
    moved = f"{taken.space}={taken.folder / 'copied space'}"
    made = {"plain": taken.take("p", "-T", moved), "tar": taken.take("t", "-Ft"), "gzip": taken.take("z", "-Ft", "-z")}
    if taken.server.major >= 18:  # the fetched 15 was built without them
        made |= {kind: taken.take(kind, "-Ft", f"--compress={kind}") for kind in ("zstd", "lz4")}
    for name, file in made.items():
        result = taken.restore(file, f"new {name}")
        assert result.verified
        copy = new_server.adopt(result.target, own=False)
        assert counts(copy) == (1000, 500)
        # Decision 1: what the copy does in its tablespace, the original does not see.
        copy.sql("TRUNCATE quick")
        assert counts(taken.server) == (1000, 500)
        assert (result.target / "pg_tblspc" / str(taken.oid)).resolve() == (taken.folder / f"new {name} fast").resolve()
        copy.destroy()


def test_a_single_tar_of_a_whole_directory_comes_back(new_server: NewServer, open_folder: Path) -> None:
    server = new_server()
    server.run("pg_basebackup", "-D", open_folder / "plain", *QUICK)
    archive = open_folder / "archive"
    with tarfile.open(archive, "w:gz", compresslevel=1) as out:
        out.add(open_folder / "plain", "my backup")
    with StopToken() as token:
        plan = plan_base(recognise(archive, token), RestoreOptions(open_folder / "new", {}, owner()), token, Heard())
        result = apply_base(plan, SystemClock(), token, Heard(), lambda text: None, binaries(server.version))
    assert result.verified
    assert new_server.adopt(result.target, own=False).value("SELECT 1") == 1


def test_what_was_changed_after_the_backup_is_refused_and_does_not_start(taken: Taken, new_server: NewServer) -> None:
    file = taken.take("p", "-T", f"{taken.space}={taken.folder / 'copied space'}")
    victim = max((file / "base").rglob("[0-9]*"), key=lambda one: one.stat().st_size if one.is_file() else 0)
    data = bytearray(victim.read_bytes())
    data[5000] ^= 1
    victim.write_bytes(data)
    with pytest.raises(RestoreFailed, match="pg_verifybackup refuses it"):
        taken.restore(file, "new")
    with pytest.raises(ProgramFailed):
        new_server.adopt(taken.folder / "new", own=False)
    with pytest.raises(TargetUnfit, match="unfinished restore"):
        taken.restore(file, "new")


@pytest.mark.parametrize("packed", [False, True])
def test_tar_files_cut_off_anywhere_are_refused_before_anything_is_written(taken: Taken, packed: bool) -> None:
    file = taken.take("t", "-Ft", *(["-z"] if packed else []))
    chance = random.Random(77)
    for one in sorted(file.glob("*.tar*")):
        whole = one.read_bytes()
        # An archive's end is zeros: a cut within those that are too many takes nothing away.
        end = len(whole) if packed else len(whole.rstrip(b"\0"))
        for size in [0, *(chance.randrange(end) for _ in range(4)), end - 1]:
            one.write_bytes(whole[:size])
            with pytest.raises(DataManagerError) as caught:
                taken.restore(file, "new")
            assert not (taken.folder / "new").exists(), (one, size, caught.value)
        one.unlink()
        with pytest.raises(IntegrityError, match="missing"):
            taken.restore(file, "new")
        one.write_bytes(whole)


def test_a_hostile_archive_writes_nothing_outside(taken: Taken) -> None:
    file = taken.take("t", "-Ft")
    whole = (file / "base.tar").read_bytes()
    outside = taken.folder / "outside"
    outside.mkdir()
    link = tarfile.TarInfo("base/1/link")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    for bad in (tarfile.TarInfo("../outside/x"), tarfile.TarInfo(f"{outside}/x"), link):
        extra = io.BytesIO()
        with tarfile.open(fileobj=extra, mode="w") as out:
            out.addfile(bad)
            out.addfile(tarfile.TarInfo("base/1/link/x"))
        (file / "base.tar").write_bytes(extra.getvalue()[:1024] + whole)
        with pytest.raises(IntegrityError):
            taken.restore(file, "new")
    assert not list(outside.iterdir())
    assert not (taken.folder / "new").exists()


@pytest.mark.decision(1)
def test_a_copied_backup_whose_links_lead_to_the_live_tablespace_is_refused(taken: Taken) -> None:
    file = taken.take("p", "-T", f"{taken.space}={taken.folder / 'copied space'}")
    link = file / "pg_tblspc" / str(taken.oid)
    link.unlink()
    link.symlink_to(taken.space)
    with pytest.raises(TargetUnfit, match="leads to"):
        taken.restore(file, "new")
    beside = taken.folder / "p.tablespaces"
    beside.mkdir()
    shutil.copytree(taken.folder / "copied space", beside / str(taken.oid))
    assert taken.restore(file, "new").verified


def test_what_is_no_whole_backup_is_refused(taken: Taken) -> None:
    with pytest.raises(TargetUnfit, match="data directory of a server"):
        taken.restore(taken.server.data_directory, "new")
    bare = taken.folder / "bare"
    taken.server.run("pg_basebackup", "-D", bare, "-Ft", "-c", "fast", "-X", "none")
    with pytest.raises(IntegrityError, match="no WAL from its start"):
        taken.restore(bare, "new")
    crashed = taken.folder / "crashed"
    taken.server.sql("CHECKPOINT")
    shutil.copytree(taken.server.data_directory, crashed, symlinks=True)
    (crashed / "postmaster.pid").unlink()
    (crashed / "pg_tblspc" / str(taken.oid)).unlink()
    with pytest.raises(IntegrityError, match="without backup_label, of a server that was in production"):
        taken.restore(crashed, "new")


@pytest.mark.requirement("R77")
def test_the_room_that_tar_files_need_is_known_to_the_byte(taken: Taken, stop: StopToken) -> None:
    file = taken.take("t", "-Ft")
    foreign = recognise(file, stop)
    (taken.folder / "new").mkdir()
    (taken.folder / "new" / "mine").touch()
    with pytest.raises(TargetUnfit, match="not empty"):
        taken.restore(file, "new")
    spaces = {str(taken.space): taken.folder / "y"}
    plan = plan_base(foreign, RestoreOptions(taken.folder / "x", spaces), stop, Heard())
    sizes = (file / "backup_manifest").stat().st_size
    for name in file.glob("*.tar"):
        with tarfile.open(name) as archive:
            sizes += sum(one.size for one in archive.getmembers())
    assert sum(one.need for one in plan.volumes) == sizes


@pytest.mark.mounts
@pytest.mark.requirement("R77")
def test_a_volume_too_small_is_refused_before_anything_is_written(taken: Taken) -> None:
    file = taken.take("t", "-Ft")
    small = taken.folder / "new"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "none", small], check=True)
    try:
        with pytest.raises(TargetTooSmall, match=r"needs .* its volume has 10\.0 MiB free"):
            taken.restore(file, "new")
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_stopped_restore_leaves_a_directory_that_does_not_start(taken: Taken, new_server: NewServer) -> None:
    file = taken.take("p", "-T", f"{taken.space}={taken.folder / 'copied space'}")
    with StopToken() as token:

        class Stopping(Heard):
            def __call__(self, event: object) -> None:
                super().__call__(event)  # type: ignore[arg-type]
                if "restoring" in self.phases and len(self.progress) > 300:
                    token.stop("enough")

        heard = Stopping()
        options = RestoreOptions(taken.folder / "new", {str(taken.oid): taken.folder / "y"}, owner())
        plan = plan_base(recognise(file, token), options, token, heard)
        with pytest.raises(Cancelled):
            apply_base(plan, SystemClock(), token, heard, lambda text: None, binaries(taken.server.version))
    with pytest.raises(ProgramFailed):
        new_server.adopt(taken.folder / "new", own=False)
