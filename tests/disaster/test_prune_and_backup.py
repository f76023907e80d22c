"""Backups and prunes from several processes at once, killed at random: every backup that is listed restores."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.prune.run import PruneOptions, prune_repository
from datamanager.repository.format import folders
from datamanager.repository.keys import SlotSecret
from datamanager.repository.mark import DELETED, UNDELETED
from datamanager.repository.repository import Repository
from datamanager.storage.local import LocalStorage
from tests.disaster.prune_child import cluster_of
from tests.engine.synthetic_source import tree
from tests.engine.test_materialize import expected, restore
from tests.repository.parts import verify

DAY = 86_400
KEPT = 4


class Yard:
    """A repository on this disk, and processes let loose on it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.root = folder / "repository"
        self.key_file = folder / "key"
        self.chance = random.Random(seed)
        self.number = 0
        self.ended: list[str] = []
        self.key_file.write_bytes(SlotSecret.new_key_file().key_file())
        secret = SlotSecret.from_key_file(self.key_file.read_bytes())
        Repository.create(LocalStorage.create(self.root, folders()), [(secret, "tests")], SystemClock())
        self.secret = secret

    def repository(self) -> Repository:
        return Repository.open(LocalStorage(self.root), self.secret, SystemClock())

    def start(self, work: str, number: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.disaster.prune_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        order = {"work": work, "number": number, "repository": str(self.root), "key_file": str(self.key_file)}
        assert process.stdin is not None
        process.stdin.write(json.dumps(order))
        process.stdin.close()
        process.stdin = None
        return process

    def round(self) -> None:
        """One backup and one or two prunes at once; most of them are killed on the way."""
        self.number += 1
        jobs = ["backup", "prune", *(["prune"] if self.chance.random() < 0.3 else [])]
        running = [self.start(job, self.number) for job in jobs]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()  # imports are done
        for process in sorted(running, key=lambda one: self.chance.random()):
            if self.chance.random() < 0.6:
                time.sleep(self.chance.uniform(0, 0.25))
                process.kill()
        for process in running:
            out, _ = process.communicate(timeout=300)
            self.ended.append(out.strip() if process.returncode == 0 else f"killed ({process.returncode})")
            assert process.returncode in (0, -9)

    def pass_time(self) -> None:
        """Between the rounds a day goes by for the lists, or a week for the packs of killed backups."""
        if self.chance.random() < 0.5:
            self.age("condemned", DAY + 600)
        if self.chance.random() < 0.2:
            self.age("packs", 8 * DAY)
            self.age("meta", 8 * DAY)
            self.age("meta-b", 8 * DAY)

    def age(self, folder: str, seconds: float) -> None:
        for path in (self.root / folder).rglob("*"):
            if path.is_file():
                then = path.stat().st_mtime - seconds
                os.utime(path, (then, then))

    def mark(self) -> None:
        """Give old backups up; sometimes take that back while the backup is there."""
        repository = self.repository()
        for manifest in repository.manifests()[:-KEPT]:
            repository.put_mark(manifest.backup, DELETED)
        if self.chance.random() < 0.3:
            present = {one.key.removeprefix("manifests/") for one in repository.storage.list("manifests/")}
            for backup in sorted(present & repository.deleted().keys())[:1]:
                repository.put_mark(backup, UNDELETED)

    def check(self) -> None:
        """Every backup that exists restores to its cluster."""
        repository = self.repository()
        for manifest in repository.manifests():
            target = self.folder / "restored"
            restore(repository, manifest, target)
            assert tree(target) == expected(cluster_of(int(manifest.label))), manifest.backup
            shutil.rmtree(target)

    def finish(self) -> None:
        """Nothing is left of the fights after quiet prunes, and what is kept is whole."""
        for _ in range(2):
            self.age("condemned", DAY + 600)
            for folder in ("packs", "meta", "meta-b"):
                self.age(folder, 8 * DAY)
            with StopToken() as stop:
                result = prune_repository(self.repository(), PruneOptions(), stop, ignore)
            assert result.exclusive
        repository = self.repository()
        assert (result.objects_deleted, result.packs_rewritten, result.later_bytes) == (0, 0, 0)
        for folder in ("condemned/", "leases/"):
            assert list(repository.storage.list(folder)) == []
        verified = verify(repository)
        assert verified.ok
        assert verified.unreferenced_packs == []
        self.check()


def fight(folder: Path, rounds: int, seed: int) -> Yard:
    yard = Yard(folder, seed)
    for _ in range(rounds):
        yard.round()
        yard.check()
        yard.mark()
        yard.pass_time()
    yard.finish()
    return yard


@pytest.mark.decision(5)
@pytest.mark.timeout(240)
def test_backups_and_prunes_at_once_with_kills_lose_no_backup(tmp_path: Path) -> None:
    yard = fight(tmp_path, rounds=8, seed=1)
    assert yard.repository().backup_ids() or all("killed" in one for one in yard.ended)


@pytest.mark.slow
@pytest.mark.decision(5)
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [2, 3])
def test_fifty_rounds_of_backups_and_prunes_at_once_with_kills_lose_no_backup(seed: int, tmp_path: Path) -> None:
    yard = fight(tmp_path, rounds=50, seed=seed)
    assert any(one.startswith("pruned") for one in yard.ended)
    assert any("killed" in one for one in yard.ended)
