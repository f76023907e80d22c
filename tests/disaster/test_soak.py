"""Fifty kills at random moments, one after the other, in the same repository."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from datamanager.storage.local import LocalStorage, sweep_temporaries
from tests.conftest import NewServer
from tests.disaster.conftest import Scene
from tests.disaster.scene import assert_cannot_start, assert_server_is_free, content_of, start_victim, temporaries

KILLS = 50
SEED = 7


def _restore(scene: Scene, target: Path) -> dict[str, Any]:
    """What the victim is told to restore."""
    spaces = {str(scene.tablespace): target.with_name(f"{target.name}-space")}
    return {"backup": scene.first, "target": target, "tablespaces": spaces}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_after_fifty_kills_at_random_moments_every_backup_is_whole(
    scene_18: Scene, tmp_path: Path, open_folder: Path, new_server: NewServer
) -> None:
    office = scene_18.office.copy(tmp_path)
    chance = random.Random(SEED)
    finished = 0
    for number in range(KILLS):
        scene_18.server.sql("update ledger set entry = entry || '.' where mod(id, 100) = %s", number % 100)
        restored = open_folder / f"restored-{number}"
        with start_victim(office, **(_restore(scene_18, restored) if number % 5 == 4 else {})) as process:
            try:
                process.communicate(timeout=chance.uniform(0.2, 2.5))
                finished += 1
            except subprocess.TimeoutExpired:
                process.kill()
        if (restored / "global/pg_control").exists():  # the last step was done: it is whole, or it is nothing
            new_server.adopt(restored).destroy()
        elif number % 5 == 4:
            assert_cannot_start(scene_18.server, restored)
        assert_server_is_free(scene_18.server)
        listed = office.repository().backup_ids()
        assert scene_18.first in listed
        if number % 10 == 9:
            assert all(verdict.ok for verdict in office.verify().backups)
    assert finished < KILLS

    last = office.back_up()
    result = office.verify()
    assert result.damages == []
    assert all(verdict.ok for verdict in result.backups)
    sweep_temporaries(LocalStorage(office.root), older_than_seconds=0)
    assert temporaries(office.root) == []
    assert [*(office.root / "leases").iterdir()] == []
    office.restore(last.manifest, open_folder / "new", {str(scene_18.tablespace): open_folder / "space"})
    with new_server.adopt(open_folder / "new").connect() as connection:
        assert content_of(connection) == office.expected[last.manifest.backup]
