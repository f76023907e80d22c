"""Delta restores: the cluster's own directory becomes the backup, byte for byte, and only what differs is moved."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datamanager.base.errors import (
    Busy,
    Cancelled,
    IntegrityError,
    ServerMismatch,
    TargetTooSmall,
    TargetUnfit,
    UsageError,
)
from datamanager.base.events import Event, PhaseStarted
from datamanager.base.pipeline import StopToken
from datamanager.base.units import MIB
from datamanager.engine.restore.delta import DeltaOptions, DeltaPlan, DeltaResult, apply_delta, plan_delta
from datamanager.engine.restore.delta_room import Growth
from datamanager.engine.restore.delta_target import JOURNAL, read_journal
from datamanager.repository.layers.layer import FileFlag
from datamanager.repository.manifest import Manifest
from tests.conftest import NewServer
from tests.engine.conftest import Heard, Works, pg, programs_of
from tests.servers import ProgramFailed, Server, hand_over, server_account
from tests.servers.server import copy_data_directory
from tests.storage.mounts import tmpfs

Tree = dict[str, tuple[str, int, int, int, str]]
CONTROL = Path("global/pg_control")
ANOTHERS = "PG_9.6_1"  # what another cluster has in the same tablespace directory
KEPT = "pgsql_tmp.datamanager-0123abcd-before"  # what a restore in place has put aside


def tree(root: Path) -> Tree:
    """Kind, mode, owner, size and digest of everything in a data directory, wherever tablespaces and pg_wal are."""
    return dict(_below(root, ""))


def _below(folder: Path, path: str) -> Iterator[tuple[str, tuple[str, int, int, int, str]]]:
    for one in sorted(folder.iterdir()):
        if one.name in (ANOTHERS, KEPT):
            continue
        inner = f"{path}/{one.name}".lstrip("/")
        status = one.stat() if inner == "pg_wal" else one.lstat()
        followed = inner == "pg_wal" or inner.startswith("pg_tblspc/")
        if stat.S_ISLNK(status.st_mode) and not followed:
            yield inner, ("link", 0, 0, 0, str(one.readlink()))
        elif one.is_dir():
            if inner.count("/") != 1 or not followed:
                yield inner, ("directory", stat.S_IMODE(status.st_mode), status.st_uid, 0, "")
            yield from _below(one, inner)
        else:
            digest = hashlib.blake2b(one.read_bytes()).hexdigest()
            yield inner, ("file", stat.S_IMODE(status.st_mode), status.st_uid, status.st_size, digest)


def plan_of(works: Works, manifest: Manifest, target: Path, confirm: str = "tests") -> DeltaPlan:
    return plan_delta(works.reopened(), manifest, DeltaOptions(target, confirm=confirm))


def delta(works: Works, manifest: Manifest, target: Path) -> DeltaResult:
    return apply_delta(works.reopened(), plan_of(works, manifest, target), works.stop, Heard())


def filled(new_server: NewServer, **config: str) -> Server:
    server = new_server(config={"autovacuum": "off", **config})
    server.tablespace("fast")
    for name in ("stays", "grows", "shrinks", "goes", "spoiled", "lost"):
        server.sql(f"create table {name} as select n, md5(n::text) m from generate_series(1, 20000) n")
    server.sql("create table there tablespace fast as select n, md5(n::text) m from generate_series(1, 20000) n")
    server.sql("create index on there (n)")
    server.sql("checkpoint")
    return server


def place_of(server: Server, table: str) -> Path:
    return server.data_directory / str(server.value("select pg_relation_filepath(%s)", table))


def live_on(server: Server) -> None:
    """What a day does to the files: they grow, shrink, go, come, and single pages change."""
    server.sql("insert into grows select n, md5(n::text) from generate_series(1, 90000) n")
    server.sql("delete from shrinks where n > 500")
    server.sql("vacuum (truncate) shrinks")
    server.sql("drop table goes")
    server.sql("update stays set m = 'changed' where n % 3000 = 0")
    server.sql("create table came as select n, md5(n::text) m from generate_series(1, 30000) n")
    server.sql("create table came_there tablespace fast as select n from generate_series(1, 30000) n")
    server.sql("vacuum full there")
    server.sql("checkpoint")


def damage(server: Server, spoiled: Path, lost: Path, elsewhere: Path) -> None:
    """What else may be wrong with a directory at rest; ``elsewhere`` is not its own and must stay as it is."""
    root = server.data_directory
    with spoiled.open("r+b") as file:
        file.seek(37 * 8192 + 100)
        file.write(os.urandom(300))
    lost.unlink()
    (root / "PG_VERSION").unlink()
    Path(f"{spoiled}.1").write_bytes(os.urandom(100_000))
    (spoiled.parent / "777777").write_bytes(b"a relation that nobody knows")
    (root / "notes").mkdir()
    (root / "notes" / "deep").mkdir()
    (root / "notes" / "deep" / "mine").write_text("mine")
    (root / "way-out").symlink_to(elsewhere, target_is_directory=True)
    auto = root / "postgresql.auto.conf"
    auto.unlink()
    auto.symlink_to(elsewhere / "kept")
    (root / "pg_hba.conf").unlink()
    os.link(elsewhere / "linked", root / "pg_hba.conf")
    (root / "pg_ident.conf").unlink()
    (root / "pg_ident.conf").mkdir()
    (root / "pg_stat").rmdir() if not any((root / "pg_stat").iterdir()) else (root / "pg_stat").chmod(0o755)
    (root / "postgresql.conf").chmod(0o444)
    (root / "global").chmod(0o500)
    root.chmod(0o755)


# -- the whole way ----------------------------------------------------------------------------------------------------


@pytest.mark.pg("15,18")
@pytest.mark.decision(11)
def test_whatever_became_of_the_directory_it_is_the_backup_again_byte_for_byte(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = filled(new_server)
    counted = {
        name: server.value(f"select count(*) from {name}") for name in ("stays", "grows", "goes", "lost", "there")
    }
    manifest = works.back_up(server).manifest
    spoiled, lost = place_of(server, "spoiled"), place_of(server, "lost")
    location = Path(manifest.tablespaces[0].location)
    live_on(server)
    server.stop()
    elsewhere, wal = works.folder / "elsewhere", works.folder / "wal"
    elsewhere.mkdir()
    for name in ("kept", "linked"):
        (elsewhere / name).write_text(name)
    (location / ANOTHERS).mkdir()
    (location / ANOTHERS / "file").write_text("stays")
    (server.data_directory / KEPT).mkdir()
    (server.data_directory / KEPT / "PG_VERSION").write_text("before")
    damage(server, spoiled, lost, elsewhere)
    (server.data_directory / "pg_wal").rename(wal)
    (server.data_directory / "pg_wal").symlink_to(wal)
    hand_over(server.data_directory)
    plan = plan_of(works, manifest, server.data_directory)
    done = apply_delta(works.reopened(), plan, works.stop, heard := Heard())
    assert tree(server.data_directory) == tree(works.restore(manifest, "fresh"))
    assert stat.S_IMODE(server.data_directory.stat().st_mode) == 0o700
    assert {(one.name, one.read_text()) for one in elsewhere.iterdir()} == {("kept", "kept"), ("linked", "linked")}
    assert (location / ANOTHERS / "file").read_text() == "stays"
    assert (server.data_directory / KEPT / "PG_VERSION").read_text() == "before"
    assert {"notes", "way-out", f"{spoiled.relative_to(server.data_directory)}.1"} <= set(plan.removed)
    assert plan.removed_files == done.files_removed > 5
    assert 0 < done.bytes_written < manifest.total_bytes / 2
    assert manifest.total_bytes / 2 < done.bytes_compared <= manifest.total_bytes
    assert heard.progress[-1].done_bytes <= manifest.total_bytes
    again = delta(works, manifest, server.data_directory)
    assert (again.bytes_fetched, again.bytes_written, again.files_removed) == (0, 0, 0)
    server.start()
    assert {name: server.value(f"select count(*) from {name}") for name in counted} == counted
    server.run("pg_amcheck", "--all", "--install-missing")
    server.stop()
    pg(programs_of(pg_version, server.major), "pg_checksums", "--check", "-D", server.data_directory)


@pytest.mark.root
def test_the_owner_of_the_directory_needs_no_more_rights_than_being_it(new_server: NewServer, works: Works) -> None:
    server = filled(new_server)
    manifest = works.back_up(server).manifest
    live_on(server)
    server.stop()
    root, account = server.data_directory, server_account()
    assert account is not None
    wanted = tree(works.restore(manifest, "fresh"))
    deep = root / "notes" / "closed"
    deep.mkdir(parents=True)
    (deep / "mine").write_text("mine")
    (root / "base" / "777").write_text("extra")
    hand_over(works.folder)
    hand_over(root)
    for place, mode in ((deep, 0), (root / "base", 0o500), (root / "PG_VERSION", 0), (root / "pg_xact", 0o100)):
        place.chmod(mode)
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        delta(works, manifest, root)
    finally:
        os.seteuid(0)
        os.setegid(0)
    assert tree(root) == wanted
    os.chown(root, 0, 0)
    with pytest.raises(TargetUnfit, match="belongs to root"):
        plan_of(works, manifest, root)


@pytest.mark.pg("18")
@pytest.mark.decision(8)
def test_any_backup_of_a_chain_of_increments_comes_back_over_a_newer_and_an_older_state(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = filled(new_server, summarize_wal="on")
    taken = [works.back_up(server).manifest]
    for turn in range(2):
        server.sql(f"update stays set m = 'turn {turn}' where n % 400 = {turn}")
        server.sql(f"delete from shrinks where n > {15000 - 4000 * turn}")
        server.sql("vacuum (truncate) shrinks")
        server.sql(f"create table new_{turn} as select n from generate_series(1, 5000) n")
        taken.append(works.back_up(server).manifest)
    assert taken[-1].method == "native"
    assert any(one.flags & FileFlag.COMPOSED for one in works.repository.contents(taken[-1]).files())
    server.stop()
    programs = programs_of(pg_version, server.major)
    for number in (0, 2):
        done = delta(works, taken[number], server.data_directory)
        assert tree(server.data_directory) == tree(works.restore(taken[number], f"fresh-{number}"))
        assert "successfully verified" in pg(programs, "pg_verifybackup", server.data_directory)
        assert done.bytes_written < taken[number].total_bytes / 2
    server.start()
    assert server.value("select count(*) from stays where m like 'turn%%'") == 100
    assert server.value("select count(*) from pg_tables where tablename like 'new_%%'") == 2


# -- killed, cancelled, failed ----------------------------------------------------------------------------------------


class Child:
    """Runs delta restores in processes that die when they are told to."""

    def __init__(self, works: Works, manifest: Manifest, target: Path) -> None:
        words = (works.folder / "repository", manifest.backup, target)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.delta_child", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def restore(self, dies_after: float = -1) -> int:
        """The exit status; negative for the signal that ended it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{dies_after}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=30)


def spoil(root: Path, names: list[str], seed: int) -> None:
    """Change, cut, drop and add files."""
    chosen = random.Random(seed)
    for name in chosen.sample(names, 30):
        path = root / name
        change = chosen.choice(("page", "cut", "drop", "longer"))
        if change == "drop":
            path.unlink()
        elif change == "cut":
            os.truncate(path, path.stat().st_size // 2)
        else:
            with path.open("r+b" if change == "page" else "ab") as file:
                file.write(os.urandom(8192))
    for number in range(5):
        (root / "base" / f"9999{number}").write_bytes(bytes(10))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.decision(11)
def test_killed_at_any_moment_it_does_not_start_and_the_same_command_completes_it(
    new_server: NewServer, works: Works
) -> None:
    server = filled(new_server)
    manifest = works.back_up(server).manifest
    live_on(server)
    server.stop()
    root = server.data_directory
    wanted = tree(works.restore(manifest, "fresh"))
    child = Child(works, manifest, root)
    killed = unfinished = 0
    try:
        for attempt in range(10):
            before = {name: what for name, what in tree(root).items() if JOURNAL not in name}
            status = child.restore(random.Random(attempt).choice((0, 0.002, 0.01, 0.03, 0.06, 0.1, 0.2)))
            killed += status < 0
            assert status in (0, -9)
            if (root / CONTROL).exists():
                after = {name: what for name, what in tree(root).items() if JOURNAL not in name}
                assert after in (before, wanted)  # not begun, or complete
                files = [name for name in wanted if name.startswith("base/") and (root / name).is_file()]
                spoil(root, files, attempt)
                hand_over(root)
            else:
                unfinished += 1
                journal = read_journal(root)
                assert journal is not None
                assert journal.backup == manifest.backup
                if unfinished == 1:
                    with pytest.raises(ProgramFailed):
                        server.start()
        assert killed > 2
        assert unfinished > 0
        assert child.restore() == 0
    finally:
        child.close()
    assert tree(root) == wanted
    server.start()
    assert server.value("select count(*) from goes") == 20000


@pytest.mark.decision(11)
def test_cancelled_midway_it_does_not_start_and_another_backup_may_complete_it(
    new_server: NewServer, works: Works
) -> None:
    server = filled(new_server)
    first = works.back_up(server).manifest
    live_on(server)
    second = works.back_up(server).manifest
    server.stop()
    root = server.data_directory

    def stopping(event: Event) -> None:
        if isinstance(event, PhaseStarted) and event.phase.startswith("comparing"):
            stop.stop("the owner said so")

    with StopToken() as stop, pytest.raises(Cancelled) as cancelled:
        apply_delta(works.reopened(), plan_of(works, first, root), stop, stopping)
    assert "does not start until" in cancelled.value.hint
    assert not (root / CONTROL).exists()
    plan = plan_of(works, second, root)
    assert plan.continued
    seen: list[bool] = []
    apply_delta(
        works.reopened(),
        plan,
        works.stop,
        Heard(),
        before_start=lambda folder: seen.append((folder / CONTROL).exists()),
    )
    assert seen == [False]
    assert not (root / JOURNAL).exists()
    assert tree(root) == tree(works.restore(second, "fresh"))


@pytest.mark.decision(11)
def test_it_is_not_complete_until_the_recovery_behind_it_has_ended(new_server: NewServer, works: Works) -> None:
    server = filled(new_server)
    manifest = works.back_up(server).manifest
    server.stop()
    root = server.data_directory

    def tear(folder: Path) -> None:
        """As a power cut does in the middle of a recovery, which syncs nothing."""
        assert read_journal(folder) is not None
        (folder / CONTROL).write_bytes(bytes(8192))
        raise IntegrityError("recover: cut off")

    with pytest.raises(IntegrityError, match="cut off") as failed:
        apply_delta(works.reopened(), plan_of(works, manifest, root), works.stop, Heard(), recover=tear)
    assert "does not start until" in failed.value.hint
    assert plan_of(works, manifest, root).continued
    delta(works, manifest, root)
    assert not (root / JOURNAL).exists()
    assert tree(root) == tree(works.restore(manifest, "fresh"))


def test_a_damaged_chunk_stops_it_before_the_directory_can_start(new_server: NewServer, works: Works) -> None:
    server = filled(new_server)
    manifest = works.back_up(server).manifest
    live_on(server)
    server.stop()
    for pack in (works.folder / "repository" / "packs").rglob("*"):
        if pack.is_file():
            pack.chmod(0o600)
            with pack.open("r+b") as file:
                file.seek(64)
                file.write(bytes(pack.stat().st_size // 2))
    with pytest.raises(IntegrityError) as failed:
        delta(works, manifest, server.data_directory)
    assert "does not start until" in failed.value.hint
    assert not (server.data_directory / CONTROL).exists()


@pytest.mark.mounts
@pytest.mark.decision(11)
def test_a_volume_too_small_is_refused_and_one_that_fills_up_midway_can_be_given_room_and_completed(
    new_server: NewServer, works: Works
) -> None:
    server = filled(new_server)
    manifest = works.back_up(server).manifest
    server.stop()
    wanted = tree(works.restore(manifest, "fresh"))
    with tmpfs(works.folder / "small", 160 * MIB) as volume:
        root, ballast = volume.folder / "data", volume.folder / "ballast"
        copy_data_directory(server, root)
        for one in (*(root / "base").rglob("*"), *(root / "pg_wal").iterdir()):
            if one.is_file():
                one.unlink()
        hand_over(volume.folder)
        plan = plan_of(works, manifest, root)
        (need,) = [one for one in plan.volumes if one.path == root]
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, need.free - 2 * MIB)
        assert 2 * MIB < need.need < need.free
        with pytest.raises(TargetTooSmall, match="grows by"):
            plan_of(works, manifest, root)
        assert (root / CONTROL).exists()
        with pytest.raises(TargetTooSmall, match="no room left") as full:
            apply_delta(works.reopened(), plan, works.stop, Heard())
        assert full.value.hint.startswith("Make room. The directory does not start until")
        assert not (root / CONTROL).exists()
        ballast.unlink()
        delta(works, manifest, root)
        assert tree(root) == wanted


# -- refused, with nothing touched ------------------------------------------------------------------------------------


@pytest.mark.decision(11)
def test_what_cannot_or_must_not_be_done_is_refused_before_anything_is_touched(
    new_server: NewServer, works: Works
) -> None:
    server = filled(new_server)
    manifest = works.back_up(server).manifest
    root = server.data_directory
    with pytest.raises(Busy, match="a server runs on"):
        plan_of(works, manifest, root)
    server.stop()
    before = tree(root)
    plan = plan_of(works, manifest, root, confirm="")
    with pytest.raises(UsageError, match="no way back") as unconfirmed:
        apply_delta(works.reopened(), plan, works.stop, Heard())
    assert "--confirm tests" in unconfirmed.value.hint
    other = new_server(start=False)
    with pytest.raises(ServerMismatch, match="is the cluster"):
        plan_of(works, manifest, other.data_directory)
    with pytest.raises(ServerMismatch, match="of PostgreSQL 18, the backup of 17"):
        plan_of(works, replace(manifest, major=17), root)
    with pytest.raises(TargetUnfit, match="no global/pg_control"):
        plan_of(works, manifest, works.folder)
    with pytest.raises(TargetUnfit, match="is no directory"):
        plan_of(works, manifest, works.folder / "nothing")
    assert tree(root) == before
    server.start()
    with pytest.raises(Busy, match="a server runs on"):
        apply_delta(works.reopened(), replace(plan, options=DeltaOptions(root, "tests")), works.stop, Heard())
    assert not (root / JOURNAL).exists()


@pytest.mark.decision(1)
def test_tablespaces_must_be_where_the_directorys_own_links_lead(new_server: NewServer, works: Works) -> None:
    server = filled(new_server)
    before = works.back_up(server).manifest
    server.tablespace("later")
    server.sql("create table later_there tablespace later as select 1 n")
    after = works.back_up(server).manifest
    server.stop()
    root = server.data_directory
    (new,) = {one.oid for one in after.tablespaces} - {one.oid for one in before.tablespaces}
    with pytest.raises(TargetUnfit, match=f"does not know tablespace {new}") as unknown:
        plan_of(works, before, root)
    assert "Move" in unknown.value.hint
    link = root / "pg_tblspc" / str(new)
    place = link.readlink()
    link.unlink()
    with pytest.raises(TargetUnfit, match=f"has no tablespace {new}") as missing:
        plan_of(works, after, root)
    assert str(link) in missing.value.hint
    (works.folder / "unmounted").mkdir()
    link.symlink_to(works.folder / "unmounted")
    with pytest.raises(TargetUnfit, match="holds no PG_") as unmounted:
        plan_of(works, after, root)
    assert "Mount" in unmounted.value.hint
    link.unlink()
    link.symlink_to(place)
    assert plan_of(works, after, root).target.links[new] == place.resolve()


def test_a_backup_that_lacks_a_pack_never_gets_to_the_directory(new_server: NewServer, works: Works) -> None:
    server = filled(new_server)
    manifest = works.back_up(server).manifest
    server.stop()
    before = tree(server.data_directory)
    pack = next(one for one in (works.folder / "repository" / "packs").rglob("*") if one.is_file())
    pack.unlink()
    with pytest.raises(IntegrityError, match="restore backup: packs/"):
        plan_of(works, manifest, server.data_directory)
    assert tree(server.data_directory) == before


def test_room_is_counted_for_what_grows_with_holes_and_zeros_and_for_what_goes(tmp_path: Path) -> None:
    full, holes = tmp_path / "full", tmp_path / "holes"
    full.write_bytes(os.urandom(1 << 20))
    with holes.open("wb") as file:
        file.truncate(1 << 20)
    os.sync()

    def need(*files: tuple[Path, int], gone: Path | None = None) -> int:
        growth = Growth()
        for path, size in files:
            growth.file(str(path), size)
        if gone is not None:
            growth.removed(gone.lstat())
        (volume,) = growth.volumes([tmp_path])
        assert volume.free > 0
        return volume.need

    assert need((full, 1 << 20)) == 0
    assert need((full, 3 << 20)) == 2 << 20
    assert need((holes, 1 << 20)) == 1 << 20
    assert need((tmp_path / "no" / "such", 5 << 20)) == 5 << 20
    assert need((tmp_path / "new", 5 << 20), gone=full) == 4 << 20
    growth = Growth()
    growth.removed(full.lstat())
    growth.beside(tmp_path / "no" / "spool", 3 << 20)
    (volume,) = growth.volumes([tmp_path, tmp_path / "no" / "spool"])
    assert (volume.path, volume.need) == (tmp_path, 2 << 20)
    os.link(full, tmp_path / "twin")
    assert need((full, 1 << 20)) == 1 << 20
