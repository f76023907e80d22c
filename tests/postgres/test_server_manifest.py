"""The server's backup_manifest: read as real servers write it, refused when anything in it was changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.errors import IntegrityError
from datamanager.base.units import Lsn
from datamanager.postgres.server_manifest import ManifestFile, WalRange, check_manifest, manifest_files, wal_ranges
from tests.servers import Server


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
