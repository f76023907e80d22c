"""The streaming source against real servers and against answers that make no sense."""

from __future__ import annotations

import pytest
from crc32c import crc32c

from datamanager.base.clock import SystemClock
from datamanager.base.errors import ServerError, StreamBroken, UsageError
from datamanager.base.pipeline import StopToken
from datamanager.postgres.base_backup import BaseBackupOptions, BaseBackupSource, base_backup_command
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.server_manifest import check_manifest, manifest_files
from datamanager.postgres.source import SourceEnd, SourceStart
from tests.conftest import NewServer
from tests.servers import Server


class Receiver:
    """Keeps size and CRC of each file, and the order of what came."""

    def __init__(self) -> None:
        self.started: SourceStart | None = None
        self.files: dict[bytes, tuple[int, int]] = {}
        self.directories: dict[bytes, int] = {}
        self.order: list[bytes] = []

    def start(self, start: SourceStart) -> None:
        assert self.started is None
        self.started = start

    def begin_file(self, path: bytes, mode: int, size: int) -> None:
        assert path not in self.files, "a file came twice"
        self.order.append(path)
        self.files[path] = (0, 0)

    def write(self, data: memoryview) -> None:
        size, crc = self.files[self.order[-1]]
        self.files[self.order[-1]] = (size + len(data), crc32c(data, crc))

    def end_file(self) -> None:
        """Nothing is left to do."""

    def directory(self, path: bytes, mode: int) -> None:
        self.directories[path] = mode


def stream(
    server: Server, receiver: Receiver | None = None, **options: object
) -> tuple[Receiver, SourceEnd, list[str]]:
    said: list[str] = []
    receiver = receiver or Receiver()
    with StopToken() as stop:
        source = BaseBackupSource(
            ServerAddress(server.dsn),
            server.major,
            BaseBackupOptions(**{"label": "test", **options}),  # type: ignore[arg-type]
            SystemClock(),
            said.append,
            said.append,
        )
        return receiver, source.run(receiver, stop), said


@pytest.mark.pg("14-18,15-debian")
@pytest.mark.decision(7)
@pytest.mark.decision(22)
def test_the_stream_holds_exactly_the_files_of_the_servers_manifest(new_server: NewServer) -> None:
    server = new_server()
    place = server.tablespace("one")
    server.sql("create table there tablespace one as select n, md5(n::text) from generate_series(1, 20000) n")
    receiver, end, said = stream(server)
    check_manifest(end.manifest)
    listed = {one.path: (one.size, one.crc32c) for one in manifest_files(end.manifest)}
    arrived = {path: found for path, found in receiver.files.items() if not path.startswith(b"pg_wal/")}
    assert arrived == {path: found for path, found in listed.items() if not path.startswith(b"pg_wal/")}
    assert len(receiver.files) > len(arrived)
    assert any(path.startswith(b"pg_tblspc/") for path in listed)
    assert receiver.started is not None
    assert [one.location for one in receiver.started.tablespaces] == [str(place)]
    assert receiver.started.total_bytes == pytest.approx(sum(size for size, _ in listed.values()), rel=0.2)
    assert receiver.started.lsn < end.lsn
    assert (receiver.started.timeline, end.timeline) == (1, 1)
    assert not end.checksum_failure
    assert end.notices == ()
    assert said[0].startswith("CREATE_REPLICATION_SLOT")
    assert said[1].startswith("datamanager_")
    assert said[2].startswith("BASE_BACKUP")
    assert server.slots_left() == []


@pytest.mark.pg("14-18")
@pytest.mark.decision(1)
@pytest.mark.decision(9)
def test_neither_a_tablespace_map_nor_a_link_arrives_and_the_archiver_is_not_waited_for(new_server: NewServer) -> None:
    server = new_server(config={"archive_mode": "on", "archive_command": "false"})
    server.tablespace("one")
    receiver, _, said = stream(server, silence_seconds=20.0)
    assert b"tablespace_map" not in receiver.files
    assert "TABLESPACE_MAP" not in said[2]
    oid = server.value("select oid from pg_tablespace where spcname = 'one'")
    assert f"pg_tblspc/{oid}".encode() not in {*receiver.files, *receiver.directories}
    assert b"backup_label" in receiver.files


def test_the_command_is_that_of_the_major_and_quotes_its_label() -> None:
    options = BaseBackupOptions(label="Dr. O'Neil", fast_checkpoint=False, max_rate_kib=32)
    assert "LABEL 'Dr. O''Neil'" in base_backup_command(18, options)
    assert "CHECKPOINT 'spread'" in base_backup_command(15, options)
    assert "WAIT false" in base_backup_command(15, options)
    assert base_backup_command(14, options) == (
        "BASE_BACKUP LABEL 'Dr. O''Neil' PROGRESS WAL NOWAIT MAX_RATE 32 MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
    )
    for rate in (31, 1 << 20 | 1, 0):
        with pytest.raises(UsageError, match="limit rate"):
            BaseBackupOptions(label="x", max_rate_kib=rate)


@pytest.mark.pg("14,18")
def test_what_the_receiver_raises_ends_the_session_and_comes_through(new_server: NewServer) -> None:
    class Failing(Receiver):
        def begin_file(self, path: bytes, mode: int, size: int) -> None:
            if path == b"global/1262":
                raise MemoryError("the receiver's own")
            super().begin_file(path, mode, size)

    server = new_server()
    with pytest.raises(MemoryError, match="the receiver's own"):
        stream(server, Failing())
    assert server.slots_left() == []


@pytest.mark.pg("14,18")
def test_the_servers_own_reason_is_told_when_it_breaks_off_midway(new_server: NewServer) -> None:
    server = new_server()
    (server.data_directory / "ballast").write_bytes(bytes(8 << 20))

    class Removing(Receiver):
        def begin_file(self, path: bytes, mode: int, size: int) -> None:
            super().begin_file(path, mode, size)
            if path == b"backup_label":
                server.sql("select pg_terminate_backend(active_pid) from pg_replication_slots")

    with pytest.raises(ServerError) as broken:
        stream(server, Removing(), max_rate_kib=1024)
    assert isinstance(broken.value, StreamBroken)
    assert "administrator command" in broken.value.message or "connection was lost" in broken.value.message
    assert "without its manifest" not in broken.value.message
