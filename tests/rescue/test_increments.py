"""rescue.py on repositories that have grown old: many layers, packs written again with masks, files outside.

Whatever it restores is what the engine restores, byte for byte.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.restore.plan import RestoreOptions, plan_restore
from datamanager.engine.restore.run import apply_restore
from datamanager.postgres.outside_model import OutsideFile
from datamanager.postgres.server_manifest import check_manifest
from datamanager.repository.format import PAGES_PER_CHUNK, ZERO_PACK, Kind, pack_key
from datamanager.repository.manifest import Manifest
from datamanager.repository.packs.generation import GenerationBuilder, keep_pages
from tests.rescue.build import PAGE, Change, Maker, Tree, flip, read_tree, sample_tree
from tests.servers import binaries

OUTSIDE = [
    OutsideFile("/etc/postgresql/17/main/pg_hba.conf", "hba_file", 0o640, 9, "# Gr\xc3\xbc\xc3\x9fe\n", "disk"),
    OutsideFile("/etc/postgresql/17/main/postgresql.conf", "config_file", 0o644, 8, "port=1\n", "disk"),
    OutsideFile("C:\\data\\ssl\\server.key", "private_key", 0o600, 1, "k", "server"),
    OutsideFile("/etc/postgresql/17/main/huge.conf", "included", 0o640, 1 << 30, None, "", "it is too large"),
]


def grown(root: Path, seed: int = 1, layers: int = 7) -> tuple[Maker, list[Manifest]]:
    """A repository with a full backup and increments on it."""
    chance = random.Random(seed)
    maker = Maker(root, open_slot=True)
    names = [b"base/5/%d" % (16384 + number) for number in range(4)]
    tree: Tree = (
        sample_tree() | {b"base/5": None} | {name: chance.randbytes(PAGE * chance.randrange(1, 60)) for name in names}
    )
    manifests = [maker.backup(tree)]
    for _ in range(layers):
        changes: dict[bytes, Change | bytes | None] = {}
        for name in names:
            if chance.random() < 0.1 and name in maker.expected[manifests[-1].backup]:
                changes[name] = None
                continue
            pages = chance.randrange(1, 60)
            sent = {number: chance.randbytes(PAGE) for number in range(pages) if chance.random() < 0.3}
            sent |= {number: bytes(PAGE) for number in range(pages) if chance.random() < 0.05}
            gone = name not in maker.expected[manifests[-1].backup]
            changes[name] = b"made again" if gone else Change(pages * PAGE, chance.randrange(pages + 1), sent)
        manifests.append(maker.increment(manifests[-1], changes))
    maker.deliver()
    return maker, manifests


def by_engine(maker: Maker, manifest: Manifest, target: Path) -> Tree:
    # The pages here are noise, without the checksums that a server with checksums would have written.
    without = replace(manifest, checksums=False, server={}, volumes={"base": 0})
    with StopToken() as stop:
        plan = plan_restore(maker.repository, without, RestoreOptions(target))
        apply_restore(maker.repository, plan, stop, ignore)
    return read_tree(target)


def by_rescue(maker: Maker, manifest: Manifest, target: Path, *, code: int = 0) -> tuple[Tree, str]:
    done = maker.rescue("restore", manifest.backup, str(target))
    assert done.returncode == code, done.stdout + done.stderr
    return read_tree(target) if code in (0, 3) else {}, done.stdout


def without_manifest(tree: Tree) -> Tree:
    return {path: content for path, content in tree.items() if path != b"backup_manifest"}


@pytest.mark.parametrize("seed", [1, 2])
def test_every_backup_of_many_layers_is_what_the_engine_restores(tmp_path: Path, seed: int) -> None:
    maker, manifests = grown(tmp_path / "repository", seed)
    assert len(manifests[-1].layers) == 8
    for manifest in (manifests[0], manifests[-1]):
        mine, _ = by_rescue(maker, manifest, tmp_path / manifest.backup)
        theirs = by_engine(maker, manifest, tmp_path / f"{manifest.backup}-engine")
        assert mine.keys() == theirs.keys()
        assert without_manifest(mine) == without_manifest(theirs) == maker.expected[manifest.backup]


# -- packs written again --------------------------------------------------------------------------------------------


def needed_pages(maker: Maker, manifest: Manifest) -> dict[bytes, dict[int, int]]:
    """The masks of the pages that a backup needs, by pack and chunk."""
    contents = maker.repository.contents(manifest)
    masks: dict[bytes, dict[int, int]] = {}
    for entry in contents.files():
        for _, pages, pack, position in zip(*(column.tolist() for column in entry.rows), strict=True):
            for place in range(position, position + pages) if pack != ZERO_PACK else ():
                chunk, page = divmod(place, PAGES_PER_CHUNK)
                own = masks.setdefault(contents.packs[pack][0], {})
                own[chunk] = own.get(chunk, 0) | 1 << page
    return masks


def write_again(maker: Maker, identity: bytes, masks: dict[int, int], generation: int = 2) -> Path:
    """Put a later generation of a pack that has only these pages; returns its file."""
    opened = maker.repository.objects.open_pack((pack_key(identity),), identity, Kind.PACK)
    ring = maker.repository.ring
    builder = GenerationBuilder(ring.newest.key.reveal(), ring.newest.number, ring.repository, identity, maker.page)
    data = memoryview(maker.storage.get(opened.key))
    wanted = [masks.get(chunk, 0) for chunk in range(len(opened.directory))]
    keep_pages(builder, opened.directory, opened.opener(), data, wanted, ring.fingerprint_key.reveal())
    key = pack_key(identity, generation)
    maker.storage.put(key, builder.finish().parts)
    return maker.root / key


def pack_file(maker: Maker, identity: bytes) -> Path:
    return maker.root / pack_key(identity)


def test_a_backup_whose_packs_were_written_again_with_masks_comes_back(tmp_path: Path) -> None:
    maker, manifests = grown(tmp_path / "repository")
    newest = manifests[-1]
    holes = 0
    for identity, masks in needed_pages(maker, newest).items():
        holes += any(mask not in (0, 0xFFFFFFFF) for mask in masks.values())
        write_again(maker, identity, masks, generation=12)
        pack_file(maker, identity).unlink()
    assert holes > 3
    mine, said = by_rescue(maker, newest, tmp_path / "mine")
    assert "NOTE" not in said
    assert without_manifest(mine) == maker.expected[newest.backup]
    assert without_manifest(by_engine(maker, newest, tmp_path / "engine")) == maker.expected[newest.backup]
    # The full backup needs pages that no mask has any more: never zeros in their place.
    _, said = by_rescue(maker, manifests[0], tmp_path / "first", code=40)
    assert "lacks pages that the backup needs" in said or "packs of this backup are not here" in said


def test_a_damaged_generation_gives_way_to_the_one_before_with_a_notice(tmp_path: Path) -> None:
    maker, manifests = grown(tmp_path / "repository", layers=2)
    newest = manifests[-1]
    for number, (identity, masks) in enumerate(sorted(needed_pages(maker, newest).items())):
        later = write_again(maker, identity, masks)
        flip(later, [100, -30][number % 2])
    mine, said = by_rescue(maker, newest, tmp_path / "mine", code=3)
    assert "an earlier copy of the pack was used" in said
    assert without_manifest(mine) == maker.expected[newest.backup]


def test_masks_that_name_pages_beyond_their_chunk_are_refused(tmp_path: Path) -> None:
    maker, manifests = grown(tmp_path / "repository", layers=1)
    identity = next(iter(needed_pages(maker, manifests[-1])))
    ring = maker.repository.ring
    builder = GenerationBuilder(ring.newest.key.reveal(), ring.newest.number, ring.repository, identity, maker.page)
    opened = maker.repository.objects.open_pack((pack_key(identity),), identity, Kind.PACK)
    for chunk in range(len(opened.directory)):
        raw = int(opened.directory.raw[chunk])
        builder.add(np.random.default_rng(1).bytes(40), raw // 33, opened.directory.fingerprint(chunk), 0xFFFFFFFF)
    maker.storage.put(pack_key(identity, 2), builder.finish().parts)
    pack_file(maker, identity).unlink()
    _, said = by_rescue(maker, manifests[-1], tmp_path / "mine", code=40)
    assert "beyond the bounds of the format" in said


# -- backup_manifest and files outside ------------------------------------------------------------------------------


def verify(major: int, *words: str | Path) -> Sequence[str]:
    done = subprocess.run([binaries(major) / "pg_verifybackup", *words], capture_output=True, text=True, check=False)
    return [str(done.returncode), done.stdout + done.stderr]


def test_the_manifest_that_it_writes_for_an_increment_is_accepted_by_the_servers_program(tmp_path: Path) -> None:
    maker, manifests = grown(tmp_path / "repository", layers=1)
    parent = manifests[-1]
    # Version 2, of 17 and newer, makes the program read a real control file; version 1 does not.
    older = maker.increment(parent, {b"base/5/new": b"new"}, alter={"major": 16, "version": "16.15"})
    tree, _ = by_rescue(maker, older, tmp_path / "mine")
    written = tree[b"backup_manifest"] or b""
    check_manifest(written)
    assert json.loads(written)["WAL-Ranges"][0]["Start-LSN"] == older.start_lsn
    assert verify(16, "-n", tmp_path / "mine")[0] == "0", verify(16, "-n", tmp_path / "mine")
    (tmp_path / "mine" / "base" / "5" / "new").write_bytes(b"old")
    assert "checksum mismatch" in verify(16, "-n", tmp_path / "mine")[1]
    newer, _ = by_rescue(maker, parent, tmp_path / "newer")
    assert json.loads(newer[b"backup_manifest"] or b"")["System-Identifier"] == int(parent.system_identifier)


def test_settings_from_outside_the_data_directory_come_back_beside_it(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository", open_slot=True)
    manifest = maker.backup({b"PG_VERSION": b"17\n"}, alter={"outside": OUTSIDE})
    maker.deliver()
    _, said = by_rescue(maker, manifest, tmp_path / "new")
    outside = read_tree(tmp_path / "new.outside")
    found = {path: content for path, content in outside.items() if content is not None}
    assert found == {
        b"etc/postgresql/17/main/pg_hba.conf": "# Grüße\n".encode(),
        b"etc/postgresql/17/main/postgresql.conf": b"port=1\n",
        b"C/data/ssl/server.key": b"k",
    }
    assert f"-c 'config_file={tmp_path}/new.outside/etc/postgresql/17/main/postgresql.conf'" in said
    assert "new.outside" in said
    assert (tmp_path / "new.outside/C/data/ssl/server.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("path", ["/etc/../../evil", "", "/a/\0"])
def test_a_path_outside_that_leads_astray_is_refused(tmp_path: Path, path: str) -> None:
    maker = Maker(tmp_path / "repository", open_slot=True)
    evil = [OutsideFile(path, "config_file", 0o644, 1, "x", "disk")]
    manifest = maker.backup({b"PG_VERSION": b"17\n"}, alter={"outside": evil})
    maker.deliver()
    by_rescue(maker, manifest, tmp_path / "new", code=40)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["repository"]
