"""Parts of rescue.py against independent oracles: painting, CRC-32C, zstd headers, wheels' names, what it imports."""

from __future__ import annotations

import ast
import hashlib
import itertools
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from datamanager import rescue as package
from datamanager.repository.layers.layer import FileEntry, FileFlag, FileKind
from datamanager.repository.layers.layer import Rows as TheirRows
from datamanager.repository.layers.reader import compose
from datamanager.rescue import bundled_wheels, is_of_this_release, rescue, rescue_script, script_sha256

SOURCE = Path(package.__file__).with_name("rescue.py")
PAGE = 8192


def test_it_needs_the_standard_library_alone() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"), feature_version=(3, 8))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names <= set(sys.stdlib_module_names)
    text = SOURCE.read_text(encoding="utf-8")
    assert "blake3" not in text.lower()
    assert "numpy" not in text


def test_the_delivered_script_names_the_wheels_it_goes_with(tmp_path: Path) -> None:
    wheel = tmp_path / "x-1-py3-none-any.whl"
    wheel.write_bytes(b"content")
    script = rescue_script([wheel])
    assert hashlib.sha256(b"content").hexdigest().encode() in script
    assert script == rescue_script([wheel])
    assert hashlib.sha256(script).hexdigest() == script_sha256([wheel])
    assert rescue_script([]) == SOURCE.read_bytes()
    assert rescue_script() == rescue_script(bundled_wheels())
    compile(script, "rescue.py", "exec")


def test_a_script_of_this_release_is_told_without_the_digests_of_its_wheels() -> None:
    script = rescue_script()
    assert is_of_this_release(script)
    assert not is_of_this_release(script + b"# one line more\n")
    assert not is_of_this_release(b"")
    for wheel in bundled_wheels():
        assert not is_of_this_release(script.replace(wheel.name.encode(), b"other.whl", 1))
    if bundled_wheels():
        assert not is_of_this_release(rescue_script([]))


# -- painting ---------------------------------------------------------------------------------------------------------

Layers = list[tuple[int, int, bool, list[tuple[int, int, int, int]]]]


@st.composite
def layers(draw: st.DrawFn) -> Layers:
    """A few layers of one file: (size in pages, kept, gone, sorted disjoint rows)."""
    result: Layers = []
    for number in range(draw(st.integers(1, 5))):
        rows, first = [], 0
        for _ in range(draw(st.integers(0, 6))):
            first += draw(st.integers(0, 5))
            pages = draw(st.integers(1, 8))
            pack = draw(st.sampled_from([number, number, rescue.ZERO_PACK]))
            rows.append((first, pages, pack, draw(st.integers(0, 999))))
            first += pages
        size = draw(st.integers(0, 40))
        gone = draw(st.integers(0, 9)) == 0
        kept = draw(st.integers(0, 40)) if number and not gone else 0
        result.append((size, kept, gone, [] if gone else rows))
    return result


@given(layers())
def test_painting_agrees_with_a_page_array_and_with_the_repository(stack: Layers) -> None:
    ours, theirs = [], []
    pages: dict[int, tuple[int, int]] = {}
    for size, kept, gone, rows in stack:
        own = rescue.Rows()
        for row in rows:
            own.add(*row)
        flags = FileFlag.GONE if gone else FileFlag.NONE
        ours.append(rescue.Entry(b"f", 0, int(flags), 0o600, size * PAGE, kept, 0, own))
        columns = (np.array([row[place] for row in rows], np.uint32) for place in range(4))
        theirs.append(FileEntry(b"f", FileKind.REGULAR, 0o600, size * PAGE, kept, flags, 0, TheirRows(*columns)))
        pages = {} if gone else {page: place for page, place in pages.items() if page < kept}
        for first, count, pack, position in rows:
            for page in range(count):
                pages[first + page] = (pack, position + page)
    composed, oracle = rescue.compose(ours), compose(theirs, PAGE)
    assert (composed is None) == (oracle is None) == stack[-1][2]
    if composed is None or oracle is None:
        return
    expected = {page: place for page, place in pages.items() if page < stack[-1][0] and place[0] != rescue.ZERO_PACK}
    assert spread(list(composed.rows), stack[-1][0]) == expected
    assert spread(list(zip(*(column.tolist() for column in oracle.rows), strict=True)), stack[-1][0]) == expected
    starts = [(first, first + count) for first, count, _, _ in composed.rows]
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(starts))


def spread(rows: list[tuple[int, int, int, int]], size: int) -> dict[int, tuple[int, int]]:
    return {
        first + page: (pack, position + page)
        for first, count, pack, position in rows
        for page in range(count)
        if first + page < size and pack != rescue.ZERO_PACK
    }


# -- small parts ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 300_000), st.binary(max_size=40)), max_size=6))
def test_crc32c_with_holes_agrees_with_the_library(parts: list[tuple[int, bytes]]) -> None:
    crc, content = rescue.Crc32c(), bytearray()
    for hole, data in parts:
        content += bytes(hole)
        crc.to(len(content))
        crc.add(data)
        content += data
    assert crc.result() == crc32c(bytes(content))


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65_791, 65_792, 300_000])
def test_the_size_a_zstd_frame_states_is_read(size: int) -> None:
    frame = zstandard.compress(bytes(size))
    assert rescue.frame_size(frame) == size == zstandard.frame_content_size(frame)
    for cut in range(6):
        assert rescue.frame_size(frame[:cut]) == -1
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(size))
    assert rescue.frame_size(streamed) == -1


@given(st.binary(max_size=40))
def test_no_bytes_make_the_size_reader_fail(data: bytes) -> None:
    assert rescue.frame_size(data) >= -1
    assert rescue.frame_size(b"\x28\xb5\x2f\xfd" + data) >= -1


def test_wheels_are_chosen_by_their_names() -> None:
    minor = sys.version_info[1]
    assert rescue.wheel_fits("pure-1-py3-none-any.whl")
    assert rescue.wheel_fits("pure-1-py2.py3-none-any.whl")
    assert rescue.wheel_fits(f"native-1-cp3{minor}-cp3{minor}-any.whl")
    assert rescue.wheel_fits("stable-1-1build-cp38-abi3-any.whl")
    for name in (
        f"next-1-cp3{minor + 1}-cp3{minor + 1}-any.whl",
        f"next-1-cp3{minor + 1}-abi3-any.whl",
        f"threads-1-cp3{minor}-cp3{minor}t-any.whl",
        "other-1-pp39-pypy39_pp73-any.whl",
        "other-1-py3-none-win32.whl",
        "other-1-py3-none-manylinux2014_sparc.whl",
        "noname.whl",
    ):
        assert not rescue.wheel_fits(name), name


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_wheels_for_a_newer_c_library_are_left_alone() -> None:
    machine = platform.machine()
    assert rescue.platform_fits(f"manylinux2014_{machine}")
    assert rescue.platform_fits(f"manylinux_2_17_{machine}")
    assert not rescue.platform_fits(f"manylinux_2_999_{machine}")
    assert not rescue.platform_fits(f"musllinux_1_2_{machine}")


def test_secrets_never_show_in_a_representation() -> None:
    assert repr(rescue.secret_of_passphrase("hunter2")) == "Secret(***)"
    assert "hunter2" not in str([rescue.secret_of_passphrase("hunter2")])
