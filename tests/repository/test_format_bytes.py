"""Every stored byte of format 1, against vectors written down here: a change of any of them fails a test.

A vector that fails means that older repositories can no longer be read, or newer ones not by older programs. Never
change a vector; give the format a new number. Source: ``docs/format.md``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct

import pytest
import zstandard

from datamanager.base.units import Secret
from datamanager.repository import format as format_one
from datamanager.repository.format import (
    DIRECTORY_NUMBER,
    ZERO_PACK,
    Kind,
    canonical_json,
    folders,
    manifest_keys,
    meta_keys,
    named_id,
    pack_key,
    ring_keys,
    slot_keys,
)
from datamanager.repository.keys import Slot, SlotKind, SlotSecret
from datamanager.repository.layers.builder import LayerBuilder
from datamanager.repository.layers.layer import FileFlag, FileKind
from datamanager.repository.layers.reader import decode_block
from datamanager.repository.lease import LeaseRecord
from datamanager.repository.manifest import ChecksumFailure, LayerReference, Manifest, Tablespace
from datamanager.repository.packs.pack import PackBuilder, fingerprint
from datamanager.repository.sealing import Header, Sealer, derive
from datamanager.repository.wal.names import stretch_key, system_folder
from datamanager.rescue import rescue

KEY = bytes(range(32))
SALT = bytes(range(32, 64))
REPOSITORY = bytes(range(64, 80))
IDENTITY = bytes(range(80, 96))
ROOT = bytes(range(100, 132))
HEADER = Header(Kind.PACK, 7, IDENTITY, SALT)

CODE_SLOT = (
    "444d50474b4559310200000000000000d8a08bcc41f1f510c1587e8e5d5e3798404142434445464748494a4b4c4d4e4f"
    "25ba143b23319a4712f5ad536595062e9405011bc832c0a3355ff4a02bca8d9596ebe50dce82d1e5d55bb5e07c116058"
    "8c2192eb5b7d9e2dfd505f1dc902cb3c9db7652a05759e516b297899d98063ef17180d02604f2a2be00a93901e02e938"
    "06507261786973"
)
KEY_FILE_SLOT = (
    "444d50474b455931030000000000000083853761e976a8fa29678b6023c80ed8404142434445464748494a4b4c4d4e4f"
    "ff3c912d01529635cf61d24ea6868e8b07ea1487dcdb9ce8fcbc88e19d5b6e80d4eb93b0fa938709d48429549c7fa380"
    "25bca26c689399502693084685d715a52ad59866afad002751369f7d62cfc83855884730404235d5612114f3129de0fd"
    "06507261786973"
)
PASSPHRASE_SLOT = (
    "444d50474b455931010a080100000000b602a6ce1327fd4b4a0924f81090525b404142434445464748494a4b4c4d4e4f"
    "35ffbed5c691ab5dc2beb9c313c9ad8639947a3aa447d4515e34ca75f0fa968d84eddd4d21661cc96c718d4759d47ad1"
    "ef2bbc29c916c5a4264a2f17c8af112498746dfe6d7a9c9376295cb55aca0a04adf6dadf93a8b0a624601a701223e3df"
    "06507261786973"
)
OPEN_SLOT = (
    "444d50474b45593104000000000000003d68a7e7658fe1857507d2fc069cb24a404142434445464748494a4b4c4d4e4f"
    "049c7bdc6636db79a545490dee62c2289e7088ab209949bd066399864b3ac90fdf86abe1a19e6e52f299932a25fbd307"
    "635a3cd836543e933848637e4c6d5cb589a2afa0e95dc4ffe1d676950e5f0852cf89b283e86d72cb3e872b9df79e724b"
    "06507261786973"
)
BLOCK = (
    "03000000030000000f0000000000000004000700040062617365626173652fc3bc676f6e65010000000201c001a00180"
    "01000000000000000020000d000000000000000000000000000000000068000000000000000000000004030201000000"
    "000000000003000000000000000000000020000000000000004000000005000000030000000000000001000000ffffff"
    "ff0000000000000000bbffffff"
)


def test_numbers_and_layouts_stand() -> None:
    assert {kind.name: kind.value for kind in Kind} == {
        "PACK": 1,
        "META": 2,
        "RING": 3,
        "MANIFEST": 4,
        "MARK": 5,
        "LEASE": 6,
        "DAMAGED": 7,
        "CONDEMNED": 8,
        "CHECKED": 9,
        "WAL": 10,
        "LINE": 11,
    }
    assert format_one.MASKED == 1
    assert (format_one.HEADER.size, format_one.TRAILER.size, format_one.TAG_BYTES) == (64, 16, 16)
    assert (format_one.MAGIC, format_one.END_MAGIC, format_one.SIGNATURE) == (b"DMPG0001", b"DMPG0END", b"dmpg1")
    assert (DIRECTORY_NUMBER, format_one.PADDING_NUMBER, ZERO_PACK) == (2**32 - 1, 2**32 - 2, 2**32 - 1)
    assert (format_one.PAGES_PER_CHUNK, format_one.PADDING_BYTES, format_one.PACK_BYTES) == (32, 65536, 33554432)


def test_names_of_objects_stand() -> None:
    assert pack_key(IDENTITY) == "packs/50/505152535455565758595a5b5c5d5e5f"
    assert meta_keys(IDENTITY) == (
        "meta/50/505152535455565758595a5b5c5d5e5f",
        "meta-b/50/505152535455565758595a5b5c5d5e5f",
    )
    assert slot_keys(IDENTITY) == ("keys/" + IDENTITY.hex() + "-a", "keys/" + IDENTITY.hex() + "-b")
    assert ring_keys(1) == ("ring/00000001-a", "ring/00000001-b")
    assert manifest_keys("20261123T020000Z-0123abcd") == (
        "manifests/20261123T020000Z-0123abcd",
        "manifests-b/20261123T020000Z-0123abcd",
    )
    assert named_id("manifests/20261123T020000Z-0123abcd").hex() == "a1ff89378488cc349b11daaa6be36273"
    folder = system_folder(0x66B677A0466EBAC0)
    assert folder == "wal/66b677a0466ebac0/"
    key = stretch_key(f"{folder}00000002-40ee3be0/", 0x1_FFF0_0010, 0x200)
    assert key == "wal/66b677a0466ebac0/00000002-40ee3be0/00000001/fff00010-00000200"
    assert {"packs/00", "packs/ff", "meta/00", "meta-b/ff", "keys", "ring", "marks", "leases"} <= set(folders())


def test_keys_are_derived_as_written() -> None:
    expected = "829c3766ce7f09ef81555f69eebde40a6cb8f47b6204161378e073f588f30c50"
    assert derive(KEY, SALT, b"dmpg1\x01" + REPOSITORY).hex() == expected
    assert rescue.derive(KEY, SALT, b"dmpg1\x01" + REPOSITORY, 32).hex() == expected


def test_the_container_header_stands() -> None:
    assert HEADER.pack().hex() == (
        "444d50473030303101000700000000005051525354555657"
        "58595a5b5c5d5e5f202122232425262728292a2b2c2d2e2f"
        "303132333435363738393a3b3c3d3e3f"
    )
    assert Header.parse(HEADER.pack(), "vector") == HEADER


def test_sealing_gives_the_same_bytes() -> None:
    sealer = Sealer(KEY, HEADER, REPOSITORY)
    out = bytearray(64)
    size = sealer.seal_into(5, b"page", memoryview(out))
    assert bytes(out[:size]).hex() == "9405b573d5dac2674e520d8ff6ba469e190d0922"
    assert sealer.seal(DIRECTORY_NUMBER, b"directory").hex() == "b0aec653a007086110eecc534973929b4980e117792269fbfc"
    small = Sealer(KEY, Header(Kind.MANIFEST, 1, named_id("manifests/x"), SALT), REPOSITORY)
    assert small.seal(0, b"{}").hex() == "7faf9af54d34ed6e97906807c014959d8d90"


def test_fingerprints_stand() -> None:
    assert fingerprint(KEY, b"page" * 2048).hex() == "a0f6b5f8786add04bf23f215fbae9ae5"


@pytest.mark.parametrize(
    ("stored", "secret"),
    [
        (CODE_SLOT, SlotSecret(SlotKind.RECOVERY_CODE, Secret(bytes(range(20))))),
        (KEY_FILE_SLOT, SlotSecret(SlotKind.KEY_FILE, Secret(bytes(range(32))))),
        (PASSPHRASE_SLOT, SlotSecret.passphrase(Secret("Grüße, 4711"))),
        (PASSPHRASE_SLOT, SlotSecret.passphrase(Secret("Gru\u0308ße, 4711"))),
        (OPEN_SLOT, SlotSecret.open()),
    ],
)
def test_stored_slots_open(stored: str, secret: SlotSecret) -> None:
    slot = Slot.parse(bytes.fromhex(stored), "vector")
    assert (slot.kind, slot.repository, slot.label) == (secret.kind, REPOSITORY, "Praxis")
    assert slot.open(secret) == ROOT
    theirs = rescue.Slot.parse(bytes.fromhex(stored), "vector")
    libraries = rescue.Libraries(rescue._aes_package(), rescue._zstd_package(), "")
    assert theirs.open(rescue.Secret(secret.kind, secret.secret.reveal()), libraries) == ROOT


def test_the_printed_forms_of_secrets_stand() -> None:
    code = SlotSecret(SlotKind.RECOVERY_CODE, Secret(bytes(range(20))))
    printed = "000G-40R4-0M30-E209-185G-R38E-1W81-24GK-1FK3"
    assert code.recovery_code() == Secret(printed)
    assert SlotSecret.from_recovery_code(Secret(printed.lower().replace("0", "o"))) == code
    assert rescue.secret_of_code(printed) == rescue.Secret(2, bytes(range(20)))
    key = SlotSecret(SlotKind.KEY_FILE, Secret(bytes(range(32))))
    assert key.key_file() == b"datamanager-key-1\n" + bytes(range(32)).hex().encode() + b"\n"
    assert SlotSecret.open().secret == Secret(b"datamanager: this repository is not encrypted")


def sample_layer() -> LayerBuilder:
    builder = LayerBuilder()
    builder.begin_file("base/ü".encode(), FileKind.REGULAR, 0o640)
    builder.add_row(0, 32, builder.pack_number(b"P" * 16), 0)
    builder.add_row(32, 32, 0, 32)
    builder.add_row(96, 5, builder.pack_number(b"Q" * 16), 64)
    builder.add_row(101, 3, ZERO_PACK, 0)
    builder.end_file(852000, kept=104, crc32c=0x01020304, flags=FileFlag.BADSUM)
    builder.begin_file(b"base", FileKind.DIRECTORY, 0o700)
    builder.end_file(0)
    builder.begin_file(b"gone", FileKind.REGULAR, 0o600)
    builder.end_file(0, flags=FileFlag.GONE)
    builder.set_digest(b"P" * 16, b"p" * 16)
    builder.set_digest(b"Q" * 16, b"q" * 16)
    return builder


def test_a_layer_is_encoded_to_the_same_bytes() -> None:
    encoded = sample_layer().encode()
    assert [block.hex() for block in encoded.blocks] == [BLOCK]
    assert encoded.table == [b"P" * 16 + b"p" * 16 + b"Q" * 16 + b"q" * 16]
    assert encoded.index == [struct.pack("<IH", 1, 4) + b"base"]


def test_both_readers_read_the_stored_layer_alike() -> None:
    ours, _ = decode_block(bytes.fromhex(BLOCK), 2)
    theirs, _ = rescue.decode_block(bytes.fromhex(BLOCK), 2, 0)
    assert [entry.path for entry in ours] == [b"base", "base/ü".encode(), b"gone"]
    rows = list(zip(*(column.tolist() for column in ours[1].rows), strict=True))
    assert rows == [(0, 64, 0, 0), (96, 5, 1, 64), (101, 3, ZERO_PACK, 0)]
    for mine, other in zip(ours, theirs, strict=True):
        assert (
            tuple(getattr(mine, name) for name in ("path", "kind", "flags", "mode", "size", "kept", "crc32c"))
            == (other[:-1])
        )
        assert list(zip(*(column.tolist() for column in mine.rows), strict=True)) == list(other.rows)


def test_a_pack_is_laid_out_as_written() -> None:
    builder = PackBuilder(Kind.PACK, KEY, 7, REPOSITORY, bytearray(PackBuilder.BUFFER_BYTES))
    chunks = [b"one" * 100, b"two" * 200]
    prints = [bytes([number]) * 16 for number in (1, 2)]
    frames = [zstandard.compress(chunk) for chunk in chunks]
    for frame, chunk, print_ in zip(frames, chunks, prints, strict=True):
        builder.add(frame, len(chunk), print_)
    pack = builder.finish()
    data = b"".join(pack.parts)
    assert len(data) % 65536 == 0
    header = Header.parse(data[:64], "vector")
    assert (header.kind, header.epoch, header.id) == (Kind.PACK, 7, pack.id)
    length, zero, end = struct.unpack("<II8s", data[-16:])
    assert (zero, end) == (0, b"DMPG0END")
    sealer = Sealer(KEY, header, REPOSITORY)
    directory = zstandard.decompress(sealer.open(DIRECTORY_NUMBER, data[-16 - length : -16], "vector", whole=True))
    stored = [len(frame) + 16 for frame in frames]
    assert directory == struct.pack("<6I", 2, 0, *stored, 300, 600) + b"".join(prints)
    first_end = 64 + stored[0]
    assert sealer.open(0, data[64:first_end], "vector") == frames[0]
    assert sealer.open(1, data[first_end : first_end + stored[1]], "vector") == frames[1]
    padding = sealer.open(2**32 - 2, data[first_end + stored[1] : -16 - length], "vector", whole=True)
    assert padding.count(0) == len(padding)
    assert pack.digest == hashlib.sha256(struct.pack("<2I", 300, 600) + b"".join(prints)).digest()[:16]


def test_the_manifest_is_written_as_before() -> None:
    manifest = Manifest(
        backup="20261123T020000Z-0123abcd",
        sequence=2,
        previous={"backup": "20261122T020000Z-0123abcd", "sha256": "00"},
        cluster="Praxis",
        label="nächtlich",
        program="datamanager 0.1.0",
        started="2026-11-23T02:00:00+00:00",
        ended="2026-11-23T02:01:00+00:00",
        system_identifier="7000000000000000001",
        version="17.11",
        major=17,
        page_size=8192,
        segment_size=1 << 30,
        wal_segment_size=16 << 20,
        checksums=True,
        timeline=1,
        start_lsn="0/2000028",
        stop_lsn="0/2000120",
        method="compared",
        parent="20261122T020000Z-0123abcd",
        layers=[LayerReference([("50" * 16, 0, 3)], 1, 1, 1, 3, 4)],
        tablespaces=[Tablespace(16401, "/srv/fast", 15000)],
        volumes={"base": 1, "16401": 15000},
        files=3,
        bytes_read=4,
        bytes_stored=5,
        bytes_reused=6,
        server={"operating_system": "Linux"},
        checksum_failures=[ChecksumFailure("base/1/2", [7])],
        warnings=["one"],
    )
    assert manifest.to_json().decode() == (
        '{"backup":"20261123T020000Z-0123abcd","bytes_read":4,"bytes_reused":6,"bytes_stored":5,'
        '"checksum_failures":[{"blocks":[7],"path":"base/1/2"}],"checksums":true,"cluster":"Praxis",'
        '"ended":"2026-11-23T02:01:00+00:00","files":3,"format":1,"label":"nächtlich",'
        '"layers":[{"blocks":1,"files":3,"index":1,"rows":4,"spans":[["' + "50" * 16 + '",0,3]],"table":1}],'
        '"major":17,"method":"compared","page_size":8192,"parent":"20261122T020000Z-0123abcd",'
        '"previous":{"backup":"20261122T020000Z-0123abcd","sha256":"00"},"program":"datamanager 0.1.0",'
        '"segment_size":1073741824,"sequence":2,"server":{"operating_system":"Linux"},'
        '"start_lsn":"0/2000028","started":"2026-11-23T02:00:00+00:00","stop_lsn":"0/2000120",'
        '"system_identifier":"7000000000000000001","tablespaces":[{"location":"/srv/fast","oid":16401,"size":15000}],'
        '"timeline":1,"version":"17.11","volumes":{"16401":15000,"base":1},"wal_segment_size":16777216,'
        '"warnings":["one"]}'
    )
    assert Manifest.from_json(manifest.to_json(), "vector") == dataclasses.replace(
        manifest, layers=[LayerReference([("50" * 16, 0, 3)], 1, 1, 1, 3, 4)]
    )


def test_the_other_records_are_written_as_before() -> None:
    lease = LeaseRecord(
        "0123456789abcdef", "host", "machine", "boot", 42, "backup", "7", ["parent"], "2026-11-23T02:00:00+00:00"
    )
    assert lease.to_json() == (
        b'{"boot":"boot","host":"host","kind":"backup","machine":"machine","parents":["parent"],"pid":42,'
        b'"started":"2026-11-23T02:00:00+00:00","subject":"7","writer":"0123456789abcdef"}'
    )
    assert canonical_json({"b": "ü", "a": [1, None]}) == '{"a":[1,null],"b":"ü"}'.encode()
