"""The server's backup_manifest: read as real servers write it, refused when anything in it was changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import pq

from datamanager.base.clock import SystemClock
from datamanager.base.errors import IntegrityError
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.postgres.connection import ServerAddress, connect
from datamanager.postgres.replication import ReplicationSession
from datamanager.postgres.server_manifest import (
    ManifestFile,
    WalRange,
    build_manifest,
    check_manifest,
    manifest_files,
    wal_ranges,
)
from tests.conftest import NewServer
from tests.servers import ProgramFailed, Server


def sealed(lines: bytes) -> bytes:
    return lines + b'"Manifest-Checksum": "%s"}\n' % hashlib.sha256(lines).hexdigest().encode()


def made(*files: bytes) -> bytes:
    ranges = b'{ "Timeline": 3, "Start-LSN": "1/2000028", "End-LSN": "1/2000158" }'
    return sealed(
        b'{ "PostgreSQL-Backup-Manifest-Version": 2,\n"System-Identifier": 7,\n"Files": [\n'
        + b",\n".join(files)
        + b"\n],\n"
        + b'"WAL-Ranges": [\n'
        + ranges
        + b"\n],\n"
    )


def line(path: bytes, content: bytes = b"x") -> bytes:
    try:
        name = json.dumps({"Path": path.decode()}, ensure_ascii=False)[1:-1].encode()
    except UnicodeDecodeError:
        name = b'"Encoded-Path": "%s"' % path.hex().encode()
    crc = crc32c(content).to_bytes(4, "little").hex().encode()
    rest = b'"Size": %d, "Last-Modified": "2026-01-01 00:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "%s"'
    return b"{ %s, %s }" % (name, rest % (len(content), crc))


@pytest.mark.pg("14-18")
@pytest.mark.decision(7)
def test_every_file_of_a_real_manifest_has_the_size_and_crc_that_it_names(server: Server, open_folder: Path) -> None:
    odd = server.data_directory / 'odd "name" ä\\n'
    odd.write_bytes(b"content")
    bytes_only = bytes(server.data_directory) + b"/latin-\xe9"
    with open(bytes_only, "wb") as file:
        file.write(b"bytes")
    try:
        words = ["-c", "fast", "-X", "none", "--manifest-checksums=CRC32C"]
        server.run("pg_basebackup", "-D", open_folder / "copy", *words)
    finally:
        odd.unlink()
        Path(bytes_only.decode(errors="surrogateescape")).unlink()
    manifest = (open_folder / "copy" / "backup_manifest").read_bytes()
    check_manifest(manifest)
    listed = list(manifest_files(manifest))
    assert {b"latin-\xe9", 'odd "name" ä\\n'.encode(), b"global/pg_control"} < {one.path for one in listed}
    for one in listed:
        with open(bytes(open_folder / "copy") + b"/" + one.path, "rb") as file:
            content = file.read()
        assert (len(content), crc32c(content)) == (one.size, one.crc32c), one.path
    (needed,) = wal_ranges(manifest)
    assert needed.timeline == 1
    assert needed.start < needed.end


def test_ranges_and_files_are_read_as_written() -> None:
    manifest = made(line(b"base/1"), line(b"latin-\xff", b"more"))
    check_manifest(manifest)
    assert list(manifest_files(manifest)) == [
        ManifestFile(b"base/1", 1, crc32c(b"x")),
        ManifestFile(b"latin-\xff", 4, crc32c(b"more")),
    ]
    assert wal_ranges(manifest) == [WalRange(3, Lsn.parse("1/2000028"), Lsn.parse("1/2000158"))]


@settings(max_examples=200, deadline=None)
@given(paths=st.lists(st.binary(min_size=1, max_size=40).filter(lambda path: b"\0" not in path), unique=True))
def test_paths_of_any_bytes_survive(paths: list[bytes]) -> None:
    assert [one.path for one in manifest_files(made(*map(line, paths)))] == paths


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(place: int, bit: int) -> None:
    right = made(line(b"base/1"), line(b"base/2"))
    changed = bytearray(right)
    changed[place % len(right)] ^= 1 << bit
    if bytes(changed).rstrip(b'}" \n') == right.rstrip(b'}" \n'):
        return  # what follows the checksum says nothing
    with pytest.raises(IntegrityError, match="checksum does not fit"):
        check_manifest(bytes(changed))


@pytest.mark.parametrize("manifest", [b"", b"{}", b'"Manifest-Checksum": ""}', b'"Manifest-Checksum":', b"\xff" * 99])
def test_what_is_no_manifest_is_refused(manifest: bytes) -> None:
    with pytest.raises(IntegrityError):
        check_manifest(manifest)


@pytest.mark.parametrize(
    "bad",
    [
        b'{ "Path": "a" }',
        b'{ "Path": "a", "Size": 1, "Checksum": "zz" }',
        b'{ "Path": "a", "Size": "many", "Checksum": "00000000" }',
        b'{ "Path": "a", "Size": 1, "Checksum": 7 }',
        b'{ "Path": 5, "Size": 1, "Checksum": "00000000" }',
        b'{ "Encoded-Path": "5", "Size": 1, "Checksum": "00000000" }',
        b'{ "Encoded-Path": 5, "Size": 1, "Checksum": "00000000" }',
        b'{ "Path": "\\ud800", "Size": 1, "Checksum": "00000000" }',
        b'{ "Path": "a", "Size": 1, "Checksum": "00',
        b'{ "Path": ' + b"[" * 100_000,
    ],
)
def test_a_malformed_line_is_damage_and_no_other_error(bad: bytes) -> None:
    with pytest.raises(IntegrityError, match="malformed line"):
        list(manifest_files(made(bad)))


@pytest.mark.parametrize("bad", [b'{ "Timeline": 1 }', b'{ "Timeline": 1, "Start-LSN": "x", "End-LSN": "0/1" }'])
def test_a_malformed_range_is_damage(bad: bytes) -> None:
    with pytest.raises(IntegrityError, match="malformed line"):
        wal_ranges(sealed(b'"WAL-Ranges": [\n' + bad + b"\n],\n"))


# -- manifests that we write --


def listing(folder: Path) -> list[tuple[bytes, int, int | None]]:
    """Every file of a directory as a manifest lists it."""
    root = bytes(folder)
    found: list[tuple[bytes, int, int | None]] = []
    for place, _, names in os.walk(root):
        for name in names:
            path = os.path.relpath(place + b"/" + name, root)
            if not path.startswith(b"pg_wal/") and path != b"backup_manifest":
                content = Path(os.fsdecode(root + b"/" + path)).read_bytes()
                found.append((path, len(content), crc32c(content)))
    return found


@settings(max_examples=200, deadline=None)
@given(
    paths=st.lists(st.binary(min_size=1, max_size=40).filter(lambda path: b"\0" not in path), unique=True),
    identifier=st.none() | st.integers(0, 2**64 - 1),
)
def test_a_manifest_of_ours_says_what_was_put_in(paths: list[bytes], identifier: int | None) -> None:
    files = [(path, number << 30, crc32c(path)) for number, path in enumerate(paths)]
    needed = [WalRange(2, Lsn(0x28), Lsn(0x1_0000_0100)), WalRange(3, Lsn(0x1_0000_0100), Lsn(0x1_0000_0200))]
    manifest = build_manifest(iter(files), system_identifier=identifier, wal=needed)
    check_manifest(manifest)
    assert [(one.path, one.size, one.crc32c) for one in manifest_files(manifest)] == files
    assert wal_ranges(manifest) == needed
    whole = json.loads(manifest)
    assert whole.get("System-Identifier") == identifier
    assert whole["PostgreSQL-Backup-Manifest-Version"] == (1 if identifier is None else 2)


def test_a_manifest_of_a_cluster_with_very_many_files_is_made_at_once() -> None:
    files = [(b"base/%d/%d" % (number % 50, number), number << 13, number) for number in range(25_000)]
    began = time.process_time()
    build_manifest(files, system_identifier=7, wal=[])
    assert time.process_time() - began < 0.25  # 0.02 s on an idle machine


@pytest.mark.pg("14-18")
@pytest.mark.decision(8)
def test_the_servers_own_program_accepts_a_manifest_of_ours_and_sees_what_differs(
    server: Server, open_folder: Path
) -> None:
    copy = open_folder / "copy"
    server.run("pg_basebackup", "-D", copy, "-c", "fast", "-X", "fetch")
    needed = wal_ranges((copy / "backup_manifest").read_bytes())
    (copy / 'odd "name" \u00e4\\n').write_bytes(b"content")
    with open(bytes(copy) + b"/latin-\xe9", "wb") as file:
        file.write(b"bytes")
    identifier = server.value("select system_identifier from pg_control_system()") if server.major >= 17 else None
    (copy / "backup_manifest").write_bytes(build_manifest(listing(copy), system_identifier=identifier, wal=needed))
    assert "successfully verified" in server.run("pg_verifybackup", copy).stdout
    (copy / 'odd "name" \u00e4\\n').write_bytes(b"Content")
    with pytest.raises(ProgramFailed, match="checksum mismatch"):
        server.run("pg_verifybackup", copy)
    bare = [(path, size, None) for path, size, _ in listing(copy)]
    (copy / "backup_manifest").write_bytes(build_manifest(bare, system_identifier=identifier, wal=needed))
    assert "successfully verified" in server.run("pg_verifybackup", copy).stdout


@pytest.mark.pg("17-18")
@pytest.mark.decision(2)
@pytest.mark.decision(17)
def test_the_server_takes_a_manifest_without_checksums_and_sends_whole_what_it_leaves_out(
    new_server: NewServer, open_folder: Path
) -> None:
    server = new_server(config={"summarize_wal": "on"})
    server.sql("create table listed as select n, md5(n::text) from generate_series(1, 20000) n")
    server.sql("create table left_out as select n, md5(n::text) from generate_series(1, 20000) n")
    server.sql("vacuum freeze")
    copy = open_folder / "copy"
    server.run("pg_basebackup", "-D", copy, "-c", "fast", "-X", "fetch")
    needed = wal_ranges((copy / "backup_manifest").read_bytes())
    listed, left_out = (server.value(f"select pg_relation_filepath('{name}')") for name in ("listed", "left_out"))
    server.sql("update listed set n = 0 where n = 7")
    files = [(path, size, None) for path, size, _ in listing(copy) if path != left_out.encode()]
    identifier = server.value("select system_identifier from pg_control_system()")
    sent = incremental(server, build_manifest(files, system_identifier=identifier, wal=needed))
    folder, name = os.path.split(listed)
    assert f"{folder}/INCREMENTAL.{name}".encode() in sent
    assert left_out.encode() in sent


def incremental(server: Server, manifest: bytes) -> bytes:
    """What the server streams after an upload of ``manifest``."""
    with StopToken() as stop:
        connection = connect(ServerAddress(server.dsn), stop=stop, replication=True)
        connection.pgconn.exec_(b"UPLOAD_MANIFEST")
        connection.pgconn.put_copy_data(manifest)
        connection.pgconn.put_copy_end()
        done = connection.pgconn.get_result()
        assert done is not None
        assert done.status == pq.ExecStatus.COMMAND_OK, done.error_message
        while connection.pgconn.get_result() is not None:
            pass
        with ReplicationSession(connection, stop, SystemClock(), lambda _: None, 20) as wire:
            wire.send("BASE_BACKUP (INCREMENTAL, CHECKPOINT 'fast', WAL false, WAIT false, MANIFEST 'no')")
            received = bytearray()
            while (result := wire.result()) is not None:
                if result.status == pq.ExecStatus.COPY_OUT:
                    for message in wire.copy_messages():
                        received += message
            return bytes(received)
