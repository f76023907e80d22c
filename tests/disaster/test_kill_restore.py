"""kill -9 of a restore at every named step: what it leaves cannot start, says what it is, and hurts nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.base.errors import TargetUnfit
from tests.conftest import NewServer
from tests.disaster.conftest import Scene
from tests.disaster.scene import Office, assert_cannot_start, content_of, objects_below
from tests.disaster.test_kill_backup import assert_clean
from tests.servers import make_folder, remove_folder

# In the order in which they come.
STEPS = {
    "after the lease": "stored leases/ 1",
    "before the first file": "audit:os.truncate any 1",
    "among the files": "audit:os.truncate any 300",
    "before the control file": "audit:open pg_control.unfinished-restore 1",
    "before the first pack is read": "get packs/ 1",
    "after the first writes": "progress any 1",
    "before the tablespace is linked": "audit:os.symlink any 1",
    "before everything is synced": "phase writing_to_disk 1",
    "before the marks go": "audit:os.remove unfinished-restore 1",
    "before the control file gets its name": "audit:os.rename pg_control.unfinished-restore 1",
}


@pytest.fixture(scope="module")
def offices(scene_18: Scene) -> Iterator[tuple[Office, str]]:
    """A repository whose newest backup holds everything; restores leave nothing in it."""
    folder = make_folder("restores")
    office = scene_18.office.copy(folder)
    yield office, office.back_up().manifest.backup
    remove_folder(folder)


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_restore_cannot_start_and_says_so_when_it_is_run_again(
    scene_18: Scene, offices: tuple[Office, str], open_folder: Path, step: str
) -> None:
    office, backup = offices
    target, space = open_folder / "new", open_folder / "space"
    order = {"backup": backup, "target": target, "tablespaces": {str(scene_18.tablespace): space}}
    before = objects_below(office.root)

    office.kill(STEPS[step], **order)

    assert_cannot_start(scene_18.server, target)
    left = {name for name in objects_below(office.root) - before if not name.startswith("leases/")}
    assert left == set()
    manifest = office.repository().manifest(backup)
    if step == "after the lease":
        assert not target.exists()
    else:
        with pytest.raises(TargetUnfit, match=f"target {target} holds an unfinished restore") as refused:
            office.restore(manifest, target, {str(scene_18.tablespace): space})
        assert "Delete that directory" in refused.value.hint
        with pytest.raises(TargetUnfit, match=r"holds an unfinished restore|is not empty"):
            office.restore(manifest, open_folder / "other", {str(scene_18.tablespace): space})
        assert not (open_folder / "other").exists()
    assert scene_18.server.value("select count(*) from ledger") == 20000  # the server itself is untouched


def test_after_a_killed_restore_the_repository_is_clean_and_a_new_one_works(
    scene_18: Scene, offices: tuple[Office, str], open_folder: Path, new_server: NewServer
) -> None:
    office, backup = offices
    spaces = {str(scene_18.tablespace): open_folder / "space"}
    office.kill("progress any 2", backup=backup, target=open_folder / "cut", tablespaces=spaces)
    assert_clean(office)
    manifest = office.repository().manifest(backup)
    with pytest.raises(TargetUnfit, match=r"directory of tablespace .* holds an unfinished restore"):
        office.restore(manifest, open_folder / "new", spaces)
    remove_folder(open_folder / "space")

    office.restore(manifest, open_folder / "new", spaces)

    assert not list(open_folder.glob("new/unfinished*")) + list(open_folder.glob("space/unfinished*"))
    with new_server.adopt(open_folder / "new").connect() as connection:
        assert content_of(connection) == office.expected[backup]
    assert office.back_up().stored < 4 << 20
    assert [*(office.root / "leases").iterdir()] == []  # the next backup removed what dead sessions left
