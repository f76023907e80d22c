"""The tar stream in pieces of any size, from real tar writers and from hostile ones."""

from __future__ import annotations

import io
import itertools
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.errors import StreamBroken
from datamanager.postgres.source import SourceStart
from datamanager.postgres.tar_stream import BLOCK, TarReader


class Receiver:
    """Keeps what it is given and checks the order of the calls."""

    def __init__(self) -> None:
        self.files: dict[bytes, bytes] = {}
        self.modes: dict[bytes, int] = {}
        self.directories: dict[bytes, int] = {}
        self._open: tuple[bytes, int, bytearray] | None = None

    def start(self, start: SourceStart) -> None:
        raise AssertionError("an archive has no start")

    def begin_file(self, path: bytes, mode: int, size: int) -> None:
        assert self._open is None
        self._open = (path, size, bytearray())
        self.modes[path] = mode

    def write(self, data: memoryview) -> None:
        assert self._open is not None
        self._open[2].extend(data)

    def end_file(self) -> None:
        assert self._open is not None
        path, size, content = self._open
        assert len(content) == size
        self.files[path] = bytes(content)
        self._open = None

    def directory(self, path: bytes, mode: int) -> None:
        assert self._open is None
        self.directories[path] = mode


def archive(files: dict[str, bytes], directories: dict[str, int] | None = None) -> bytes:
    """A ustar archive, with its trailer, as another program writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, mode in (directories or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, mode
            tar.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o600
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def read(data: bytes, cuts: list[int] | None = None, prefix: bytes = b"") -> Receiver:
    receiver = Receiver()
    reader = TarReader(receiver, prefix)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts or []), len(data)]
    for begin, end in itertools.pairwise(places):
        reader.feed(memoryview(data)[begin:end])
    reader.finish()
    return receiver


def header(
    name: bytes = b"base/1/2",
    size: bytes = b"00000000005\0",
    mode: bytes = b"0000600\0",
    kind: bytes = b"0",
    checksum: bytes | None = None,
) -> bytes:
    """One header block, right in itself unless told otherwise."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:108], block[124:136], block[156:157] = mode, size, kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = checksum if checksum is not None else b"%06o\0 " % sum(block)
    return bytes(block)


_names = st.text("abcdefgh0123456789_./", min_size=1, max_size=60).filter(
    lambda name: all(part not in ("", ".", "..") for part in name.split("/"))
)


@settings(max_examples=150, deadline=None)
@given(
    files=st.dictionaries(_names, st.binary(max_size=2000), max_size=8),
    cuts=st.lists(st.integers(0, 1 << 20), max_size=30),
    trailer=st.booleans(),
)
def test_files_arrive_whole_whatever_the_pieces(files: dict[str, bytes], cuts: list[int], trailer: bool) -> None:
    data = archive(files)
    if not trailer:  # as 14 sends it
        data = data[: sum(BLOCK + -(-len(content) // BLOCK) * BLOCK for content in files.values())]
    assert read(data, cuts).files == {name.encode(): content for name, content in files.items()}


def test_one_byte_at_a_time_gives_the_same_with_prefix_modes_and_directories() -> None:
    data = archive({"base/5/1": b"abc", "empty": b""}, {"base": 0o700, "base/5": 0o750, "open": 0o7777})
    receiver = read(data, list(range(len(data))), b"pg_tblspc/16385/")
    assert receiver.files == {b"pg_tblspc/16385/base/5/1": b"abc", b"pg_tblspc/16385/empty": b""}
    assert receiver.modes == {b"pg_tblspc/16385/base/5/1": 0o600, b"pg_tblspc/16385/empty": 0o600}
    assert receiver.directories == {
        b"pg_tblspc/16385/base": 0o700,
        b"pg_tblspc/16385/base/5": 0o750,
        b"pg_tblspc/16385/open": 0o777,
    }


@pytest.mark.decision(1)
def test_links_are_dropped_and_other_kinds_refused() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        link = tarfile.TarInfo("pg_tblspc/16385")
        link.type, link.linkname = tarfile.SYMTYPE, "/the/live/tablespace"
        tar.addfile(link)
    receiver = read(out.getvalue())
    assert (receiver.files, receiver.directories) == ({}, {})
    for kind in (b"1", b"3", b"4", b"6", b"x", b"g", b"L"):
        with pytest.raises(StreamBroken, match="unknown kind"):
            read(header(kind=kind, size=b"00000000000\0"))


def test_a_set_user_id_bit_of_a_server_is_never_passed_on() -> None:
    receiver = read(header(mode=b"0004755\0", size=b"00000000000\0"))
    assert receiver.modes == {b"base/1/2": 0o755}


def test_sizes_in_base_256_are_understood() -> None:
    size = b"\x80" + (5).to_bytes(11, "big")
    assert read(header(size=size) + b"hello".ljust(BLOCK, b"\0")).files == {b"base/1/2": b"hello"}
    huge = TarReader(Receiver(), b"")
    huge.feed(memoryview(header(size=b"\x80" + (1 << 40).to_bytes(11, "big"))))
    with pytest.raises(StreamBroken, match="middle of a file"):
        huge.finish()


@pytest.mark.parametrize(
    "data",
    [
        header(checksum=b"0000001\0"),
        header(checksum=b"zzzzzz\0 "),
        header(mode=b"rw-rw--\0"),
        header(size=b"-0000000005\0"),
        header(size=b"00000000009\0"),
        header(size=b"0x000000005\0"),
        b"\1" * BLOCK,
        bytes(BLOCK) + header(),
    ],
    ids=["checksum", "no number", "mode", "negative", "no octal", "hexadecimal", "noise", "after the end"],
)
def test_what_is_no_tar_is_a_broken_stream(data: bytes) -> None:
    with pytest.raises(StreamBroken, match=r"tar header is damaged|end of an archive"):
        read(data)


@pytest.mark.parametrize("kept", [1, 511, 513, 516, 517, 600, 1023])
def test_an_archive_that_ends_in_the_middle_of_something_is_a_broken_stream(kept: int) -> None:
    data = header() + b"hello".ljust(BLOCK, b"\0")
    with pytest.raises(StreamBroken, match="middle of a file"):
        read(data[:kept])


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=1600), cuts=st.lists(st.integers(0, 1 << 20), max_size=5))
def test_noise_is_refused_or_read_and_nothing_else(data: bytes, cuts: list[int]) -> None:
    try:
        read(data, cuts)
    except StreamBroken:
        return
    assert not any(data)


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, BLOCK - 1), value=st.integers(0, 255))
def test_any_changed_byte_of_a_header_is_noticed(place: int, value: int) -> None:
    right = header() + b"hello".ljust(BLOCK, b"\0")
    changed = bytearray(right)
    changed[place] = value
    try:
        found = read(bytes(changed)).files
    except StreamBroken:
        return
    assert found == read(right).files
