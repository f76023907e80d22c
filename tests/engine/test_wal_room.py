"""A backup that takes too long stops before its WAL harms the server; phases, rates and slow repositories
(PostgreSQL decisions 10, 17, 22)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from datamanager.base.errors import ServerUnfit, StoreFull, UsageError
from datamanager.base.events import Event, PhaseStarted, Warned
from datamanager.base.units import MIB
from datamanager.postgres.base_backup import BaseBackupOptions
from datamanager.repository.format import folders
from datamanager.storage.local import LocalStorage
from tests.conftest import NewServer
from tests.engine.conftest import Heard, Works, assert_nothing_left
from tests.engine.test_cancel import ballast, wait_until_nothing_is_left
from tests.servers import Server, hand_over
from tests.storage.faults import Call, FaultyStorage
from tests.storage.mounts import ext4, tmpfs

# 100 kB of WAL a row, so 10 MB a second at the pace below.
_ROW = "insert into flood select repeat(md5(random()::text), 3000)"


@contextmanager
def flood(server: Server, *, mib_a_second: int) -> Iterator[list[str]]:
    """Keep writing WAL at that pace; yields what went wrong."""
    server.sql("create table flood (t text)")
    server.sql("alter table flood alter t set storage external")
    failures: list[str] = []
    ending = threading.Event()

    def write() -> None:
        try:
            with server.connect() as connection:
                while not ending.wait(0.1):
                    connection.execute(f"{_ROW} from generate_series(1, {mib_a_second})")
        except psycopg.Error as error:
            failures.append(str(error))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield failures
    finally:
        ending.set()
        thread.join()


@pytest.mark.pg("14,18")
@pytest.mark.decision(10)
def test_a_slow_backup_is_warned_of_and_stopped_before_max_slot_wal_keep_size_cuts_it_off(
    new_server: NewServer, works: Works
) -> None:
    server = new_server(config={"max_slot_wal_keep_size": "64MB", "max_wal_size": "64MB", "checkpoint_timeout": "30s"})
    ballast(server, 60)
    heard = Heard()
    with flood(server, mib_a_second=8) as failures, pytest.raises(ServerUnfit, match="max_slot_wal_keep_size") as stop:
        works.back_up(server, heard=heard, max_rate_kib=1024)
    assert failures == []
    assert "before the server is in danger" in stop.value.message
    assert "faster repository" in stop.value.hint
    (warning,) = [one for one in heard.warnings if "of WAL for this backup" in one]
    assert "max_slot_wal_keep_size leaves room for" in warning
    wait_until_nothing_is_left(server, works, 3)


@pytest.mark.mounts
@pytest.mark.decision(10)
def test_a_slow_backup_is_stopped_before_a_small_pg_wal_volume_is_full(
    new_server: NewServer, works: Works, tmp_path: Path
) -> None:
    with tmpfs(works.folder / "small", 256 * MIB) as volume:
        wal = volume.folder / "wal"
        wal.mkdir(mode=0o700)
        hand_over(volume.folder)
        server = new_server(
            initdb_args=("--data-checksums", f"--waldir={wal}"), config={"max_wal_size": "32MB", "min_wal_size": "32MB"}
        )
        ballast(server, 60)
        with flood(server, mib_a_second=20) as failures, pytest.raises(ServerUnfit, match="WAL volume") as stop:
            works.back_up(server, max_rate_kib=1024)
        assert "leaves only" in stop.value.message
        assert failures == []
        wait_until_nothing_is_left(server, works, 3)
        server.sql("checkpoint")
        server.sql("insert into flood select repeat('x', 100)")
        assert server.running
        server.destroy()


@pytest.mark.pg("14,18")
@pytest.mark.decision(17)
def test_phases_are_named_and_progress_never_passes_its_total(new_server: NewServer, works: Works) -> None:
    """A spread checkpoint is seen as such, and ends sooner when somebody asks for a checkpoint."""
    server = new_server(config={"checkpoint_timeout": "1h", "bgwriter_lru_maxpages": "0", "autovacuum": "off"})
    server.sql("create table dirty as select n, md5(n::text) from generate_series(1, 60000) n")
    ballast(server, 24)
    waiting = threading.Event()

    class Watching(Heard):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if self.phases.count("waiting for the server's checkpoint") == 2:  # ours, then what the server says
                waiting.set()

    def hurry() -> None:
        if waiting.wait(20):
            server.sql("checkpoint")

    helper = threading.Thread(target=hurry)
    helper.start()
    heard = Watching()
    works.back_up(server, heard=heard, fast_checkpoint=False, max_rate_kib=16384)
    helper.join()
    assert waiting.is_set(), heard.phases
    wanted = ["reading what is stored", "waiting for the server's checkpoint", "copying", "checking", "publishing"]
    assert [phase for phase in dict.fromkeys(heard.phases) if phase in wanted] == wanted
    assert len(heard.progress) > 5
    assert all(one.total_bytes is not None and one.done_bytes <= one.total_bytes for one in heard.progress)
    done = [one.done_bytes for one in heard.progress]
    assert done == sorted(done)
    last = heard.progress[-1]
    assert last.total_bytes is not None
    assert last.done_bytes >= 0.95 * last.total_bytes


@pytest.mark.decision(22)
def test_a_repository_that_stalls_longer_than_wal_sender_timeout_holds_the_stream_and_does_not_end_it(
    new_server: NewServer, open_folder: Path
) -> None:
    server = new_server(config={"wal_sender_timeout": "2s"})
    ballast(server, 240)
    unsent: list[int] = []
    first, over = threading.Lock(), threading.Event()

    def stall(call: Call) -> None:
        """The first put of a pack, and every other meanwhile, lasts four seconds."""
        if call.method != "put" or not call.key.startswith("packs/"):
            return
        if first.acquire(blocking=False):
            time.sleep(4)
            unsent.append(server.value("select backup_total - backup_streamed from pg_stat_progress_basebackup"))
            over.set()
        over.wait()

    storage = FaultyStorage(LocalStorage.create(open_folder / "slow", folders()), hook=stall)
    works = Works(open_folder, storage)
    result = works.back_up(server)
    works.close()
    assert unsent[0] > 30 * MIB, "the stream went on while the repository stood still"
    assert result.seconds > 4
    assert result.warnings == []


@pytest.mark.pg("14,18")
@pytest.mark.decision(22)
def test_a_rate_holds_the_stream_back_and_an_impossible_one_is_refused_before_the_server_is_asked(
    new_server: NewServer, works: Works
) -> None:
    server = new_server()
    total = works.back_up(server).manifest.bytes_read
    begun = time.monotonic()
    works.back_up(server, max_rate_kib=total // 1024 // 2)
    assert time.monotonic() - begun > 1.5
    works.back_up(server, max_rate_kib=1 << 20)
    for rate in (31, (1 << 20) + 1, 0, -5):
        with pytest.raises(UsageError, match="limit rate"):
            BaseBackupOptions(label="x", max_rate_kib=rate)
    with server.connect() as connection, pytest.raises(psycopg.errors.Error):
        connection.execute("select 1 / (select count(*) from pg_replication_slots)")


def test_a_label_with_quotes_and_foreign_letters_stands_in_backup_label(new_server: NewServer, works: Works) -> None:
    label = "Müller's Praxis, 診療 100% \\ (süd)"
    manifest = works.back_up(new_server(), label=label).manifest
    target = works.restore(manifest)
    assert f"LABEL: {label}\n" in (target / "backup_label").read_text(encoding="utf-8")
    assert manifest.label == label


# -- the server's own volume --


@pytest.mark.mounts
@pytest.mark.parametrize("shared", ["data", "wal", "tablespace"])
def test_a_repository_on_a_volume_of_the_server_is_refused_while_too_little_would_stay_free(
    new_server: NewServer, open_folder: Path, shared: str
) -> None:
    with tmpfs(open_folder / "shared", 256 * MIB) as volume:
        hand_over(volume.folder)
        volume.folder.chmod(0o755)
        server = on_volume(new_server, volume.folder, shared)
        storage = LocalStorage.create(volume.folder / "repository", folders())
        works = Works(open_folder, storage)
        with pytest.raises(StoreFull, match="of it stay reserved for the server") as full:
            works.back_up(server)
        assert "free" in full.value.message
        assert "or more there" in full.value.hint
        assert_nothing_left(server, works)
        works.close()
        server.destroy()


def on_volume(new_server: NewServer, folder: Path, shared: str) -> Server:
    """A server with its data, its WAL or a tablespace on the volume."""
    if shared == "wal":
        (folder / "wal").mkdir()
        hand_over(folder)
        return new_server(initdb_args=("--data-checksums", f"--waldir={folder / 'wal'}"))
    server = new_server()
    if shared == "tablespace":
        (folder / "space").mkdir()
        hand_over(folder)
        server.sql(f"create tablespace there location '{folder / 'space'}'")
        return server
    server.stop()
    (server.data_directory).rename(server.folder / "moved")
    server.run("initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "--no-sync", "-N")
    return new_server.adopt(folder / "data", config={"wal_level": "replica"})


@pytest.mark.mounts
def test_a_backup_stops_midway_when_the_shared_volume_runs_low_and_says_the_figure(
    new_server: NewServer, open_folder: Path
) -> None:
    """6 GB of volume, 5 GB of which are the server's: what is left is not enough for the backup."""
    with ext4(open_folder / "shared", 6000 * MIB) as volume:
        hand_over(volume.folder)
        volume.folder.chmod(0o755)
        server = on_volume(new_server, volume.folder, "tablespace")
        ballast(server, 120)
        works = Works(open_folder, LocalStorage.create(volume.folder / "repository", folders()))
        space = works.storage.space()
        assert space is not None
        reserve = max(space.total // 10, 5 * 1000**3)
        spare = space.free - reserve - 80 * MIB
        assert spare > 0
        filler = volume.folder / "filler"
        with filler.open("wb") as file:
            # Blocks are set aside without a byte being written to the image.
            os.posix_fallocate(file.fileno(), 0, spare)
        with pytest.raises(StoreFull, match="stay reserved for the server"):
            works.back_up(server)
        space = works.storage.space()
        assert space is not None
        assert reserve - 4 * MIB < space.free < reserve + 80 * MIB
        assert list(works.storage.list("packs/"))
        assert_nothing_left(server, works)
        filler.unlink()
        assert works.back_up(server).counts.reused > 30 * MIB
        works.close()
        server.destroy()


def test_a_listener_hears_warnings_and_phases_in_order(new_server: NewServer, works: Works) -> None:
    server = new_server()
    (server.data_directory / "odd").symlink_to("/nowhere")
    heard = Heard()
    works.back_up(server, heard=heard)
    events = [event for event in heard.events if isinstance(event, PhaseStarted | Warned)]
    assert isinstance(events[0], PhaseStarted)
    assert any("skipping special file" in event.message for event in events if isinstance(event, Warned))
