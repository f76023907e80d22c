"""kill -9 of a backup at every named step: nothing half-made counts, and the next backup uses what was stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamanager.repository.repository import Repository
from datamanager.storage.local import LocalStorage, sweep_temporaries
from tests.conftest import NewServer
from tests.disaster.conftest import Scene
from tests.disaster.scene import Office, assert_server_is_free, content_of, temporaries

# Step: the moment (see ``trap``), whether packs were stored by then, whether the backup is committed by then.
# The victim is the second backup: its lease is put, then renewed with its parent, so one lease is deleted on the way.
STEPS = {
    "before the lease": ("put leases/ 1", False, False),
    "after the lease": ("stored leases/ 1", False, False),
    "after the lease with its parents": ("stored leases/ 2", False, False),
    "while the server waits for its checkpoint": ("phase waiting_for_the_server's_checkpoint 1", False, False),
    "after the slot": ("slot any 1", False, False),
    "in the first pack's temporary file": ("sync packs/ 1", False, False),
    "after the first pack": ("stored packs/ 1", True, False),
    "before the metadata": ("put meta/ 1", True, False),
    "between the twins of the metadata": ("stored meta/ 1", True, False),
    "before the manifest": ("put manifests-b/ 1", True, False),
    "in the manifest's temporary file": ("sync manifests-b/ 1", True, False),
    "between the twins of the manifest": ("stored manifests-b/ 1", True, True),
    "before the manifest is read back": ("stored manifests/ 1", True, True),
    "before the lease is released": ("delete leases/ 2", True, True),
}


def packs_of(repository: Repository) -> set[str]:
    return {one.key for one in repository.storage.list("packs/")}


def assert_clean(office: Office) -> None:
    """Every byte is right, no backup is damaged, and there is no object that verify does not know."""
    result = office.verify()
    assert result.damages == []
    assert result.warnings == []
    assert all(verdict.ok for verdict in result.backups)


@pytest.mark.pg("18")
@pytest.mark.parametrize("step", STEPS)
def test_a_killed_backup_leaves_a_clean_repository_and_the_next_one_uses_what_was_stored(
    scene: Scene, tmp_path: Path, step: str
) -> None:
    moment, stored, committed = STEPS[step]
    office = scene.office.copy(tmp_path)
    before = packs_of(office.repository())

    office.kill(moment)

    assert_server_is_free(scene.server)
    repository = office.repository()
    leftover = packs_of(repository) - before
    assert bool(leftover) == stored
    listed = repository.backup_ids()
    assert scene.first in listed
    assert len(listed) == 1 + committed
    if step == "between the twins of the manifest":
        # Its only copy says all there is to say; the next backup writes the other one.
        (damage,) = office.verify().damages
        assert damage.redundant
        assert damage.key.startswith("manifests/")
    else:
        assert_clean(office)

    again = office.back_up()
    assert again.stored < 20 << 20 if stored else again.stored > 40 << 20
    used = {f"packs/{pack.hex()[:2]}/{pack.hex()}" for pack, _ in office.repository().contents(again.manifest).packs}
    assert leftover <= used if step != "after the first pack" else used & leftover
    assert_clean(office)
    assert [*office.repository().storage.list("leases/")] == []


@pytest.mark.pg("18")
def test_the_temporary_file_of_a_killed_put_is_no_object_and_is_swept(scene: Scene, tmp_path: Path) -> None:
    office = scene.office.copy(tmp_path)
    office.kill("sync packs/ 1")
    (left,) = temporaries(office.root)
    assert left.stat().st_size > 30 << 20
    assert left.name not in {one.key.rpartition("/")[2] for one in office.repository().storage.list("")}
    assert sweep_temporaries(LocalStorage(office.root)) == 0  # it may be a put under way, for a day
    assert sweep_temporaries(LocalStorage(office.root), older_than_seconds=0) == 1
    assert temporaries(office.root) == []


@pytest.mark.pg("15,18")
@pytest.mark.parametrize("step", ["after the first pack", "between the twins of the manifest"])
def test_what_follows_a_killed_backup_restores_and_starts_with_the_same_rows(
    scene: Scene, tmp_path: Path, open_folder: Path, new_server: NewServer, step: str
) -> None:
    office = scene.office.copy(tmp_path)
    office.kill(STEPS[step][0])
    if step == "after the first pack":
        backup = office.back_up().manifest
    else:
        backup = office.repository().manifests()[-1]
        assert backup.label == "victim"
    office.restore(backup, open_folder / "new", {str(scene.tablespace): open_folder / "space"})
    with scene.server.connect() as connection:
        expected = content_of(connection)
    with new_server.adopt(open_folder / "new").connect() as connection:
        assert content_of(connection) == expected


@pytest.mark.pg("18")
def test_a_leftover_pack_that_was_torn_is_not_used(scene: Scene, tmp_path: Path) -> None:
    office = scene.office.copy(tmp_path)
    before = packs_of(office.repository())
    office.kill("put meta/ 1")
    first, second = sorted(packs_of(office.repository()) - before)
    torn = office.root / first
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    flipped = office.root / second
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 4
    flipped.write_bytes(content)

    again = office.back_up()

    used = {f"packs/{pack.hex()[:2]}/{pack.hex()}" for pack, _ in office.repository().contents(again.manifest).packs}
    assert not used & {first, second}
    assert again.stored > 40 << 20
    result = office.verify()
    assert result.damages == []
    assert {warning.partition(":")[0] for warning in result.warnings} == {first, second}
