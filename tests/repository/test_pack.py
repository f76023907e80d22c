"""Packs: what their directory says is what they hold, within the bounds of the format."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.errors import IntegrityError
from datamanager.repository.format import (
    DIRECTORY_NUMBER,
    HEADER,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS_PER_PACK,
    MAX_CONTAINER_BYTES,
    MAX_DIRECTORY_BYTES,
    PACK_BYTES,
    PADDING_BYTES,
    TRAILER,
    Kind,
)
from datamanager.repository.packs.pack import (
    ChunkOpener,
    PackBuilder,
    PackDirectory,
    check_padding,
    fingerprint,
    open_directory,
    parse_directory,
)
from datamanager.repository.sealing import Header, Sealer, compress_small

KEY, REPOSITORY = bytes(range(32)), bytes(range(16))
BUFFER = bytearray(PackBuilder.BUFFER_BYTES)  # one for all, as packs here are copied out of it at once


def new_builder() -> PackBuilder:
    return PackBuilder(Kind.PACK, KEY, 1, REPOSITORY, BUFFER)


def build(chunks: list[bytes]) -> bytes:
    builder = new_builder()
    for chunk in chunks:
        builder.add(compress_small(chunk), len(chunk), fingerprint(KEY, chunk))
    return b"".join(builder.finish().parts)


def parse(data: bytes) -> tuple[PackDirectory, Sealer, int]:
    header = Header.parse(data, "pack")
    sealer = Sealer(KEY, header, REPOSITORY)
    start, length = parse_directory(data[-TRAILER.size :], len(data), "pack")
    return open_directory(data[start : start + length], header, sealer, "pack", start), sealer, start


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=3000), max_size=20))
def test_a_pack_gives_back_its_chunks(chunks: list[bytes]) -> None:
    data = build(chunks)
    directory, sealer, start = parse(data)
    opener = ChunkOpener(sealer, directory, "pack")
    offsets = directory.offsets.tolist()
    found = [opener.open(number, data[offsets[number] : offsets[number + 1]]) for number in range(len(directory))]
    assert found == chunks
    assert [directory.fingerprint(number) for number in range(len(chunks))] == [fingerprint(KEY, one) for one in chunks]
    check_padding(data[offsets[-1] : start], sealer, "pack")
    assert len(data) % PADDING_BYTES == 0


def test_the_builder_tells_the_digest_that_the_directory_has() -> None:
    builder = new_builder()
    builder.add(compress_small(b"abc"), 3, fingerprint(KEY, b"abc"))
    pack = builder.finish()
    data = b"".join(pack.parts)
    assert parse(data)[0].digest() == pack.digest
    assert (pack.size, pack.chunks) == (len(data), 1)


@pytest.mark.parametrize("seed", range(3))
def test_padding_of_every_size_is_authenticated(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(40):
        data = build([chance.randbytes(chance.randrange(1, 200)) for _ in range(chance.randrange(4))])
        directory, sealer, start = parse(data)
        first = int(directory.offsets[-1])
        padding = bytearray(data[first:start])
        assert len(padding) >= 16
        padding[chance.randrange(len(padding))] ^= 1
        with pytest.raises(IntegrityError):
            check_padding(padding, sealer, "pack")
        with pytest.raises(IntegrityError):
            check_padding(data[first : start - 1], sealer, "pack")


def test_padding_smaller_than_a_tag_becomes_longer() -> None:
    chunk = os.urandom(PADDING_BYTES - 320)
    # Some length near 64 KiB leaves a gap below 16 bytes: every one of them must do.
    for size in range(PADDING_BYTES - 320, PADDING_BYTES - 120):
        builder = new_builder()
        builder.add(chunk[:1] * size, size, bytes(16))
        data = b"".join(builder.finish().parts)
        directory, sealer, start = parse(data)
        check_padding(data[int(directory.offsets[-1]) : start], sealer, "pack")
        assert len(data) % PADDING_BYTES == 0


def test_a_full_pack_has_no_padding_and_stays_within_its_buffer() -> None:
    builder = new_builder()
    chunk = os.urandom(MAX_CHUNK_BYTES)
    frame = zstandard.ZstdCompressor(level=1).compress(chunk)
    assert len(frame) > MAX_CHUNK_BYTES  # incompressible chunks grow
    while not builder.full:
        builder.add(frame, len(chunk), bytes(16))
    pack = builder.finish()
    assert PACK_BYTES <= pack.size <= PackBuilder.BUFFER_BYTES
    assert len(pack.parts[1]) == 0
    data = b"".join(pack.parts)
    directory, _, start = parse(data)
    assert int(directory.offsets[-1]) == start


def test_a_pack_of_very_many_chunks_closes_before_its_directory_is_too_big() -> None:
    builder = new_builder()
    while not builder.full:
        builder.add(b"", 1, os.urandom(16))
    pack = builder.finish()
    assert pack.chunks <= MAX_CHUNKS_PER_PACK
    assert len(pack.parts[2]) <= MAX_DIRECTORY_BYTES
    assert pack.size <= MAX_CONTAINER_BYTES
    header = Header.parse(b"".join(pack.parts)[: HEADER.size], "pack")
    assert header.id == pack.id


# -- directories that lie, sealed by someone who has the key -----------------------------------------------------------


def forged(plain: bytes) -> bytes:
    header = Header(Kind.PACK, 1, bytes(16), bytes(32))
    directory = Sealer(KEY, header, REPOSITORY).seal(DIRECTORY_NUMBER, plain)
    return header.pack() + bytes(100) + directory + TRAILER.pack(len(directory), 0, b"DMPG0END")


def plain_directory(stored: list[int], raw: list[int], count: int | None = None, zero: int = 0) -> bytes:
    head = np.array([len(raw) if count is None else count, zero], "<u4").tobytes()
    return head + np.array(stored + raw, "<u4").tobytes() + bytes(16 * len(raw))


@pytest.mark.parametrize(
    "plain",
    [
        plain_directory([50], [100], count=2),
        plain_directory([50], [100], count=0),
        plain_directory([50], [100], count=0xFFFF_FFFF),
        plain_directory([50], [100], zero=1),
        plain_directory([101], [100]),
        plain_directory([0xFFFF_FFFF], [100]),
        plain_directory([0xFFFF_FFFF] * 3, [100] * 3),
        plain_directory([16], [100]),
        plain_directory([50], [MAX_CHUNK_BYTES + 1]),
        b"",
        b"1234567",
    ],
)
def test_a_directory_out_of_bounds_is_refused(plain: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse(forged(compress_small(plain)))


def test_a_directory_that_is_no_frame_or_a_bomb_is_refused() -> None:
    for plain in (b"not compressed", compress_small(bytes(MAX_CHUNKS_PER_PACK * 24 + 9))):
        with pytest.raises(IntegrityError):
            parse(forged(plain))


@pytest.mark.parametrize(
    ("length", "zero", "magic"),
    [(0, 0, b"DMPG0END"), (16, 0, b"DMPG0END"), (10_000, 0, b"DMPG0END"), (40, 1, b"DMPG0END"), (40, 0, b"DMPG0ENd")],
)
def test_a_trailer_out_of_bounds_is_refused(length: int, zero: int, magic: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse_directory(TRAILER.pack(length, zero, magic), 5000, "pack")


@pytest.mark.parametrize("size", [0, 95, MAX_CONTAINER_BYTES + 1])
def test_a_pack_of_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(IntegrityError, match="impossible size"):
        parse_directory(TRAILER.pack(40, 0, b"DMPG0END"), size, "pack")


def test_a_chunk_that_is_another_size_than_its_directory_says_is_refused() -> None:
    header = Header(Kind.PACK, 1, bytes(16), bytes(32))
    sealer = Sealer(KEY, header, REPOSITORY)
    frame = compress_small(bytes(500))
    sealed = bytearray(len(frame) + 16)
    sealer.seal_into(0, frame, memoryview(sealed))
    for raw in (499, 501, 0):
        directory = PackDirectory(bytes(16), header, np.array([64, 64 + len(sealed)]), np.array([raw], "u4"), bytes(16))
        with pytest.raises(IntegrityError, match="impossible size"):
            ChunkOpener(sealer, directory, "pack").open(0, sealed)


def test_a_chunk_that_authenticates_but_is_no_frame_is_refused() -> None:
    header = Header(Kind.PACK, 1, bytes(16), bytes(32))
    sealer = Sealer(KEY, header, REPOSITORY)
    sealed = bytearray(20)
    sealer.seal_into(0, b"????", memoryview(sealed))
    directory = PackDirectory(bytes(16), header, np.array([64, 84]), np.array([4], "u4"), bytes(16))
    with pytest.raises(IntegrityError):
        ChunkOpener(sealer, directory, "pack").open(0, sealed)
