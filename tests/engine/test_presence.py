"""Whether a deleted backup can come back: every page that it needs must still be stored."""

from __future__ import annotations

import pytest

from datamanager.base.errors import IntegrityError
from datamanager.base.pipeline import StopToken
from datamanager.engine.presence import require_pages
from datamanager.repository.format import Kind, pack_key
from datamanager.repository.manifest import Manifest
from datamanager.repository.packs.generation import keep_pages
from datamanager.repository.packs.pack import full_mask
from datamanager.repository.repository import Repository
from tests.engine.synthetic_source import make_cluster
from tests.repository.parts import backup, flip, keys, new_repository, reopen


def check(repository: Repository, manifest: Manifest) -> None:
    """As another process would."""
    with StopToken() as stop:
        require_pages(reopen(repository), manifest, stop)


def write_again(repository: Repository, key: str, lost_pages: int) -> None:
    """Store generation 2 of a pack, without the pages of that mask in its first chunk."""
    identity = bytes.fromhex(key[-32:])
    opened = repository.objects.open_pack((key,), identity, Kind.PACK)
    masks = [full_mask(int(raw), 8192) for raw in opened.directory.raw]
    masks[0] &= ~lost_pages
    builder = repository.objects.new_generation(identity, 8192)
    data = memoryview(repository.storage.get(key))
    keep_pages(builder, opened.directory, opened.opener(), data, masks, repository.ring.fingerprint_key.reveal())
    repository.storage.put(pack_key(identity, 2), builder.finish().parts)


def test_a_backup_of_which_everything_is_there_can_come_back() -> None:
    repository = new_repository()
    check(repository, backup(repository, make_cluster(pages=40)).manifest)


def test_pages_that_a_pack_written_again_lacks_are_missed_unless_the_older_generation_is_there() -> None:
    repository = new_repository()
    manifest = backup(repository, make_cluster(pages=40)).manifest
    (key,) = keys(repository.storage, "packs/")
    write_again(repository, key, lost_pages=1)
    check(repository, manifest)
    repository.storage.delete(key)
    with pytest.raises(IntegrityError, match="lacks pages that it needs"):
        check(repository, manifest)


def test_a_pack_written_again_with_all_its_pages_is_as_good_as_the_first() -> None:
    repository = new_repository()
    manifest = backup(repository, make_cluster(pages=40)).manifest
    (key,) = keys(repository.storage, "packs/")
    write_again(repository, key, lost_pages=0)
    repository.storage.delete(key)
    check(repository, manifest)


@pytest.mark.parametrize("folder", ["packs/", "meta/", "meta-b/"])
def test_an_object_that_is_gone_is_missed(folder: str) -> None:
    repository = new_repository()
    manifest = backup(repository, make_cluster(pages=40)).manifest
    repository.storage.delete(keys(repository.storage, folder)[0])
    with pytest.raises(IntegrityError, match="is not there"):
        check(repository, manifest)


def test_a_pack_that_cannot_be_opened_is_missed() -> None:
    repository = new_repository()
    manifest = backup(repository, make_cluster(pages=40)).manifest
    (key,) = keys(repository.storage, "packs/")
    flip(repository.storage, key, repository.storage.stat(key).size - 3)
    with pytest.raises(IntegrityError, match="lacks pages"):
        check(repository, manifest)
