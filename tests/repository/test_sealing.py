"""Sealing: what goes in comes out, and nothing that was changed does."""

from __future__ import annotations

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.errors import FormatUnsupported, IntegrityError
from datamanager.repository.format import HEADER, MAX_SMALL_OBJECT_BYTES, Kind
from datamanager.repository.sealing import (
    Header,
    Sealer,
    compress_small,
    decompress,
    derive,
    fresh_salt,
    open_small,
    seal_small,
)

KEY, REPOSITORY, IDENTITY = bytes(range(32)), bytes(range(16)), bytes(range(50, 66))


def seal(plain: bytes, kind: Kind = Kind.MANIFEST) -> bytes:
    return seal_small(kind, KEY, 1, REPOSITORY, IDENTITY, plain)


def unseal(data: bytes, kind: Kind = Kind.MANIFEST, key: bytes = KEY, repository: bytes = REPOSITORY) -> bytes:
    return open_small(data, kind, Header.parse(data, "object"), key, repository, IDENTITY, "object")


@given(st.binary(max_size=5000))
def test_a_small_object_opens_to_what_was_sealed(plain: bytes) -> None:
    assert unseal(seal(plain)) == plain


@given(st.binary(max_size=300), st.data())
def test_any_flipped_bit_of_a_small_object_is_detected(plain: bytes, data: st.DataObject) -> None:
    sealed = bytearray(seal(plain))
    position = data.draw(st.integers(0, len(sealed) - 1))
    sealed[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((IntegrityError, FormatUnsupported)):
        # The epoch chooses the key before anything is authenticated, so here the header alone shows that it changed.
        unseal(bytes(sealed))


def test_every_bit_of_one_object_is_authenticated() -> None:
    sealed = seal(b"some manifest")
    for position in range(len(sealed)):
        for bit in range(8):
            spoilt = bytearray(sealed)
            spoilt[position] ^= 1 << bit
            with pytest.raises((IntegrityError, FormatUnsupported)):
                unseal(bytes(spoilt))


@given(st.binary(max_size=200), st.data())
def test_an_object_cut_short_or_made_longer_is_detected(plain: bytes, data: st.DataObject) -> None:
    sealed = seal(plain)
    with pytest.raises(IntegrityError):
        unseal(sealed[: data.draw(st.integers(0, len(sealed) - 1))])
    with pytest.raises(IntegrityError):
        unseal(sealed + data.draw(st.binary(min_size=1, max_size=40)))


@pytest.mark.parametrize(
    ("kind", "key", "repository"),
    [(Kind.MARK, KEY, REPOSITORY), (Kind.MANIFEST, bytes(32), REPOSITORY), (Kind.MANIFEST, KEY, bytes(16))],
)
def test_kind_key_and_repository_are_bound(kind: Kind, key: bytes, repository: bytes) -> None:
    with pytest.raises(IntegrityError):
        unseal(seal(b"x"), kind, key, repository)


def test_an_object_under_another_name_is_detected() -> None:
    data = seal(b"x")
    with pytest.raises(IntegrityError, match="holds another object"):
        open_small(data, Kind.MANIFEST, Header.parse(data, "n"), KEY, REPOSITORY, bytes(16), "n")


def test_no_two_writes_share_a_salt_or_a_ciphertext() -> None:
    sealed = {seal(b"the same") for _ in range(200)}
    assert len(sealed) == 200
    assert len({one[32:64] for one in sealed}) == 200
    assert len({fresh_salt() for _ in range(1000)}) == 1000


def test_an_object_of_a_newer_format_is_named_as_such_and_an_older_number_is_damage() -> None:
    data = seal(b"x")
    with pytest.raises(FormatUnsupported, match="format 2"):
        Header.parse(b"DMPG0002" + data[8:], "n")
    with pytest.raises(IntegrityError):
        Header.parse(b"DMPG0000" + data[8:], "n")


def test_an_object_too_big_for_the_format_is_never_written() -> None:
    with pytest.raises(IntegrityError, match="exceed"):
        seal(bytes(MAX_SMALL_OBJECT_BYTES + 1))


def test_key_derivation_is_that_of_rfc_5869() -> None:
    # RFC 5869, appendix A.1.
    info = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    salt = bytes.fromhex("000102030405060708090a0b0c")
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert derive(b"\x0b" * 22, salt, info, 42).hex() == expected


# -- chunks ---------------------------------------------------------------------------------------------------------


def sealer(number_of_repository: int = 0) -> Sealer:
    return Sealer(KEY, Header(Kind.PACK, 1, IDENTITY, bytes(32)), bytes([number_of_repository] * 16))


@settings(max_examples=50)
@given(st.binary(max_size=2000), st.integers(0, 131_071))
def test_a_chunk_opens_under_its_own_number_only(plain: bytes, number: int) -> None:
    buffer = bytearray(len(plain) + 16)
    size = sealer().seal_into(number, plain, memoryview(buffer))
    assert size == len(buffer)
    assert sealer().open(number, buffer, "pack") == plain
    with pytest.raises(IntegrityError):
        sealer().open(number + 1, buffer, "pack")
    with pytest.raises(IntegrityError):
        sealer(1).open(number, buffer, "pack")


def test_a_chunk_shorter_than_a_tag_is_cut_short() -> None:
    with pytest.raises(IntegrityError, match="cut short"):
        sealer().open(0, b"abc", "pack")


# -- decompressing --------------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_by_its_declared_size_before_anything_is_allocated() -> None:
    bomb = compress_small(bytes(200 << 20))
    assert len(bomb) < 20_000
    with pytest.raises(IntegrityError, match="impossible size"):
        decompress(bomb, 1 << 20, "bomb")


def test_a_frame_that_hides_its_size_is_refused() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(IntegrityError, match="impossible size"):
        decompress(compressor.compress(b"x" * 100), 1000, "frame")


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    # A single-segment frame has its content size right after the frame header byte (RFC 8878, section 3.1.1.1).
    frame = bytearray(compress_small(b"y" * 100))
    assert frame[5] == 100
    frame[5] = 50
    with pytest.raises(IntegrityError):
        decompress(bytes(frame), 1000, "frame")


@given(st.binary(max_size=100))
def test_bytes_that_are_no_frame_are_damage(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decompress(b"no" + data, 1000, "frame")


def test_an_empty_content_is_a_content() -> None:
    assert decompress(compress_small(b""), 10, "frame") == b""


def test_the_header_has_64_bytes() -> None:
    assert HEADER.size == len(Header(Kind.RING, 0, IDENTITY, bytes(32)).pack()) == 64
