"""Damaged and hostile repositories: second copies are used, nothing wrong is ever restored, bounds hold."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datamanager.repository.format import Kind, canonical_json, manifest_keys
from datamanager.repository.manifest import LayerReference
from datamanager.rescue import rescue
from tests.rescue.build import PAGE, Maker, Tree, flip, read_tree, sample_tree


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """A repository with one backup that tests copy."""
    maker = Maker(tmp_path_factory.mktemp("damage") / "repository")
    maker.backup(sample_tree())
    maker.deliver()
    return maker


@pytest.fixture
def copied(original: Maker, tmp_path: Path) -> Maker:
    """A copy of that repository to damage."""
    root = tmp_path / "repository"
    shutil.copytree(original.root, root)
    copy = object.__new__(Maker)
    copy.__dict__.update(original.__dict__, root=root)
    return copy


def objects(root: Path, *folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*") if path.is_file())


# -- second copies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_second_copies_replace_every_first_copy(copied: Maker, tmp_path: Path, damage: str) -> None:
    first = [path for path in objects(copied.root, "keys", "ring") if path.name.endswith("-a")]
    for path in [*first, *objects(copied.root, "meta", "manifests"), copied.root / "config"]:
        if damage == "flip":
            flip(path, path.stat().st_size // 3)
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.unlink()
    done = copied.rescue("restore", str(tmp_path / "new"))
    assert done.returncode == 3, done.stdout
    assert "second copy" in done.stdout
    assert read_tree(tmp_path / "new") == sample_tree()


def test_first_copies_serve_when_the_second_are_gone(copied: Maker, tmp_path: Path) -> None:
    shutil.rmtree(copied.root / "meta-b")
    shutil.rmtree(copied.root / "manifests-b")
    assert copied.rescue("restore", str(tmp_path / "new")).returncode == 0
    assert read_tree(tmp_path / "new") == sample_tree()


def test_a_backup_without_any_readable_manifest_is_named(copied: Maker) -> None:
    (name,) = copied.expected
    for path in objects(copied.root, "manifests", "manifests-b"):
        flip(path, 100)
    done = copied.rescue("list")
    assert f"{name}  CANNOT BE READ" in done.stdout
    assert done.returncode == 3


# -- data packs -------------------------------------------------------------------------------------------------------


def test_a_damaged_chunk_is_found_named_and_never_restored(copied: Maker, tmp_path: Path) -> None:
    (pack,) = objects(copied.root, "packs")
    flip(pack, 70)  # in the first chunk
    done = copied.rescue("check")
    assert done.returncode == 40
    assert "  PG_VERSION: 3 bytes" in done.stdout
    stopped = copied.rescue("restore", str(tmp_path / "new"))
    assert stopped.returncode == 40
    assert "incomplete and cannot start" in stopped.stdout
    assert not (tmp_path / "new/global/pg_control").exists()
    salvaged = copied.rescue("restore", "--salvage", str(tmp_path / "salvaged"))
    assert salvaged.returncode == 40
    damaged = {path for path, content in sample_tree().items() if f"  {rescue.shown(path)}: " in salvaged.stdout}
    tree = read_tree(tmp_path / "salvaged")
    assert b"PG_VERSION" in damaged
    assert len(damaged) < 5
    assert {path: content for path, content in tree.items() if path not in damaged} == {
        path: content for path, content in sample_tree().items() if path not in damaged
    }
    assert tree[b"PG_VERSION"] == bytes(3)


def test_a_missing_pack_is_refused_before_anything_is_written(copied: Maker, tmp_path: Path) -> None:
    (pack,) = objects(copied.root, "packs")
    pack.unlink()
    done = copied.rescue("restore", str(tmp_path / "new"))
    assert done.returncode == 40
    assert "1 packs of this backup are not here" in done.stdout
    assert not (tmp_path / "new").exists()


def test_a_pack_of_another_repository_is_not_accepted(copied: Maker, tmp_path: Path) -> None:
    other = Maker(tmp_path / "other")
    other.backup(sample_tree())
    (theirs,) = objects(other.root, "packs")
    (ours,) = objects(copied.root, "packs")
    ours.write_bytes(theirs.read_bytes())
    assert copied.rescue("check").returncode == 40


def test_chunks_that_were_swapped_inside_a_pack_are_found(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    blocks = [bytes([number]) * PAGE for number in (1, 2)]
    maker.backup({b"a": blocks[0], b"b": blocks[1]})
    maker.deliver()
    (pack,) = objects(maker.root, "packs")
    data = bytearray(pack.read_bytes())
    directory = maker.repository.pack(bytes.fromhex(pack.name)).directory
    start, middle, end = directory.offsets.tolist()
    assert middle - start == end - middle
    data[start:middle], data[middle:end] = data[middle:end], data[start:middle]
    pack.write_bytes(bytes(data))
    assert maker.rescue("check").returncode == 40


def run_here(maker: Maker, code: Path, *words: str) -> int:
    """rescue.py in this process, for tests that run it often."""
    return rescue.main([*words, "--repository", str(maker.root), "--code-file", str(code)])


def test_no_flipped_bit_anywhere_gives_wrong_data(copied: Maker, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.write_text(copied.code_text())
    files = objects(copied.root, "config", "keys", "ring", "manifests", "manifests-b", "meta", "meta-b", "packs")
    files.append(copied.root / "config")
    chance = random.Random(20261123)
    outcomes = set()
    for number in range(60):
        path = chance.choice(files)
        reach = min(path.stat().st_size, 2500)  # padding, which no restore reads, lies in the middle
        position, bit = chance.randrange(-reach, reach), chance.randrange(8)
        flip(path, position, bit)
        target = tmp_path / f"new{number}"
        outcome = run_here(copied, code, "restore", str(target))
        outcomes.add(outcome)
        if outcome in (0, 3):
            assert read_tree(target) == sample_tree(), path
        else:
            assert outcome in (40, 41, 42), path
            assert not (target / "global/pg_control").exists()
        flip(path, position, bit)
        shutil.rmtree(target, ignore_errors=True)
    assert {3, 40} <= outcomes


# -- hostile writers --------------------------------------------------------------------------------------------------


def renamed(old: bytes, new: bytes) -> Callable[[list[bytes]], list[bytes]]:
    """Blocks with one path replaced by another of the same length, as only a hostile writer makes them."""
    assert len(old) == len(new)

    def mangle(blocks: list[bytes]) -> list[bytes]:
        assert blocks[0].count(old) == 1
        return [blocks[0].replace(old, new), *blocks[1:]]

    return mangle


@pytest.mark.parametrize("evil", [b"../evil", b"/x/evil", b"a//evil", b"a/../ev", b"./aevil", b"aevil/.", b"a\0\0evil"])
def test_a_path_that_leaves_the_target_is_refused(tmp_path: Path, evil: bytes) -> None:
    maker = Maker(tmp_path / "repository")
    name = b"q" * len(evil)
    maker.backup({name: b"payload"}, mangle=renamed(name, evil))
    maker.deliver()
    done = maker.rescue("restore", str(tmp_path / "new"))
    assert done.returncode == 40
    assert "refused" in done.stdout
    assert not (tmp_path / "new").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"repository"}


def test_a_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    maker.backup({b"abc": b"file", b"xxx/d": b"below"}, mangle=renamed(b"xxx/d", b"abc/d"))
    maker.deliver()
    assert maker.rescue("restore", str(tmp_path / "new")).returncode == 1


def patched(position: int, data: bytes) -> Callable[[list[bytes]], list[bytes]]:
    def mangle(blocks: list[bytes]) -> list[bytes]:
        return [blocks[0][:position] + data + blocks[0][position + len(data) :]]

    return mangle


# A block of one file named "file" with one row: 16 of head, 2 of length, 4 of path, then the columns.
_KIND, _FLAGS, _SIZE, _ROWS, _FIRST, _PAGES, _PACK, _POSITION = 22, 23, 26, 42, 46, 50, 54, 58


@pytest.mark.parametrize(
    ("position", "data"),
    [
        (0, struct.pack("<I", 0xFFFFFFFF)),
        (4, struct.pack("<I", 0xFFFFFFFF)),
        (12, struct.pack("<I", 2)),
        (12, struct.pack("<I", 1)),
        (16, struct.pack("<H", 0xFFFF)),
        (_KIND, b"\x02"),
        (_FLAGS, b"\x08"),
        (_SIZE, struct.pack("<Q", 1 << 63)),
        (_ROWS, struct.pack("<I", 2)),
        (_FIRST, struct.pack("<I", 0xFFFFFFFF)),
        (_PAGES, struct.pack("<I", 0)),
        (_PACK, struct.pack("<I", 1)),
        (_POSITION, struct.pack("<I", 32)),
        (_POSITION, struct.pack("<I", 1)),
        (_POSITION, struct.pack("<I", 0xFFFFFFE0)),
    ],
)
def test_a_malformed_block_is_refused(tmp_path: Path, position: int, data: bytes) -> None:
    maker = Maker(tmp_path / "repository")
    maker.backup({b"file": b"x" * PAGE}, mangle=patched(position, data), alter={"volumes": {}})
    maker.deliver()
    done = maker.rescue("restore", "--ignore-space", str(tmp_path / "new"))
    assert done.returncode == 40, done.stdout
    assert "Traceback" not in done.stderr


def test_a_file_of_four_exabytes_of_zeros_is_refused_for_lack_of_room(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    maker.backup({b"file": b"x" * PAGE}, mangle=patched(_SIZE, struct.pack("<Q", 1 << 44)), alter={"volumes": {}})
    maker.deliver()
    assert maker.rescue("restore", str(tmp_path / "new")).returncode == 51


def rewritten(maker: Maker, **changes: Any) -> None:
    """Store the newest manifest again under its name with other fields, sealed as a writer with the key would."""
    (name,) = maker.expected
    value = json.loads(maker.repository.manifest(name).to_json()) | changes
    for key in manifest_keys(name):
        (maker.root / key).unlink()
    maker.repository.objects.put_small(Kind.MANIFEST, f"manifests/{name}", manifest_keys(name), canonical_json(value))


def layer(maker: Maker, **changes: Any) -> dict[str, Any]:
    (name,) = maker.expected
    (reference,) = maker.repository.manifest(name).layers
    value = replace(reference, **changes)
    return {field: getattr(value, field) for field in LayerReference.__dataclass_fields__}


@pytest.mark.parametrize(
    "change",
    [
        lambda maker: {"layers": [layer(maker)] * 9},
        lambda maker: {"layers": []},
        lambda maker: {"layers": [layer(maker, spans=[("00" * 16, 0, 1 << 60)], blocks=1 << 60, table=0, index=0)]},
        lambda maker: {"layers": [layer(maker, spans=[("../../../etc", 0, 3)])]},
        lambda maker: {"layers": [layer(maker, spans=[("00" * 16, -1, 3)])]},
        lambda maker: {"page_size": 0},
        lambda maker: {"page_size": 1 << 40},
        lambda maker: {"page_size": "8192"},
        lambda maker: {"tablespaces": [{"oid": "../x", "location": "/x", "size": 1}]},
        lambda maker: {"volumes": {"base": -1}},
        lambda maker: {"backup": "20260101T000000Z-00000000"},
        lambda maker: {"sequence": None},
    ],
)
def test_an_impossible_manifest_is_refused(tmp_path: Path, change: Callable[[Maker], dict[str, Any]]) -> None:
    maker = Maker(tmp_path / "repository")
    maker.backup({b"file": b"x" * PAGE})
    maker.deliver()
    rewritten(maker, **change(maker))
    done = maker.rescue("restore", str(tmp_path / "new"))
    assert done.returncode in (2, 40), done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_slot_that_asks_for_64_gib_is_refused_without_deriving(copied: Maker) -> None:
    for path in objects(copied.root, "keys"):
        data = bytearray(path.read_bytes())
        if data[8] == 1:
            data[9] = 29
            path.write_bytes(bytes(data))
    done = copied.rescue("list", typed="Grüße aus der Praxis, 4711\n")
    assert done.returncode == 42
    assert "impossible amount of memory" in done.stdout


def test_a_newer_format_is_refused_with_the_remedy(copied: Maker) -> None:
    config = json.loads((copied.root / "config").read_bytes())
    for change in ({"format": 2}, {"incompat": ["repacked"]}):
        (copied.root / "config").write_bytes(canonical_json(config | change))
        done = copied.rescue("list")
        assert done.returncode == 41
        assert "Use the rescue.py of a newer release" in done.stdout


def test_a_config_of_another_repository_does_not_lead_astray(copied: Maker) -> None:
    config = json.loads((copied.root / "config").read_bytes())
    (copied.root / "config").write_bytes(canonical_json(config | {"repository": "00" * 16}))
    done = copied.rescue("list")
    assert done.returncode == 3
    assert "config was changed" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_objects_that_are_links_are_not_followed(copied: Maker, tmp_path: Path) -> None:
    (pack,) = objects(copied.root, "packs")
    pack.rename(tmp_path / "elsewhere")
    pack.symlink_to(tmp_path / "elsewhere")
    for path in objects(copied.root, "manifests"):
        path.unlink()
        path.symlink_to("/dev/zero")
    assert copied.rescue("check").returncode == 40


def test_words_from_the_repository_cannot_drive_the_terminal(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    tree: Tree = {b"PG_VERSION": b"17\n"}
    maker.backup(tree, alter={"label": "\x1b]0;owned\x07", "cluster": "a\u202eb\nDONE"})
    maker.deliver()
    done = maker.rescue("list")
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "\\x1b]0;owned\\x07" in done.stdout
