"""Repositories stored in this tree by earlier releases open with every secret and restore to the same files."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Secret
from datamanager.engine.restore.layout import Destination
from datamanager.engine.restore.materialize import Materializer
from datamanager.repository.keys import SlotSecret
from datamanager.repository.repository import Repository
from datamanager.rescue import rescue_script
from datamanager.storage.local import LocalStorage
from tests.rescue.build import read_tree

HERE = Path(__file__).resolve().parent
RELEASES = sorted(path.name for path in HERE.glob("release-*"))


class Stored:
    """A copy of a stored repository, with what is published about it."""

    def __init__(self, source: Path, root: Path) -> None:
        shutil.copytree(source / "repository", root)
        shutil.copytree(root / "meta", root / "meta-b")
        self.root = root
        self.expected: dict[str, dict[str, Any]] = json.loads((source / "expected.json").read_text())
        self.secrets: dict[str, str] = json.loads((source / "secrets.json").read_text())

    def slot_secrets(self) -> list[SlotSecret]:
        return [
            SlotSecret.passphrase(Secret(self.secrets["passphrase"])),
            SlotSecret.from_recovery_code(Secret(self.secrets["recovery_code"])),
            SlotSecret.from_key_file(self.secrets["key_file"].encode()),
        ]

    def open(self, secret: SlotSecret) -> Repository:
        return Repository.open(LocalStorage(self.root), secret, SystemClock())


@pytest.fixture(params=RELEASES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Stored:
    return Stored(HERE / str(request.param), tmp_path / "repository")


def digests(root: Path) -> dict[str, str | None]:
    return {
        path.decode("utf-8", "surrogateescape"): None if content is None else hashlib.sha256(content).hexdigest()
        for path, content in read_tree(root).items()
    }


def test_every_release_opens_with_every_secret(stored: Stored) -> None:
    for secret in stored.slot_secrets():
        repository = stored.open(secret)
        assert [manifest.backup for manifest in repository.manifests()] == sorted(stored.expected)
        assert [mark.name for mark in repository.marks()] == ["deleted"]


def test_every_release_is_restored_by_this_program(stored: Stored, tmp_path: Path) -> None:
    repository = stored.open(stored.slot_secrets()[1])
    for backup, files in stored.expected.items():
        target = tmp_path / backup
        target.mkdir()
        destination = Destination(root=target, links={}, renamed={}, owner=None)
        contents = repository.contents(repository.manifest(backup))
        with StopToken() as stop:
            Materializer(repository, contents, destination, 1, lambda size: None).run(stop)
        assert digests(target) == files


def test_every_release_is_restored_by_rescue_py(stored: Stored, tmp_path: Path) -> None:
    script = tmp_path / "rescue.py"
    script.write_bytes(rescue_script([]))
    for backup, files in stored.expected.items():
        target = tmp_path / backup
        words = [sys.executable, "-I", "-B", str(script), "restore", "--check-crc", "--repository", str(stored.root)]
        done = subprocess.run(
            [*words, backup, str(target)],
            input=stored.secrets["recovery_code"] + "\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = digests(target)
        if "backup_manifest" not in files:  # an increment stores none, so it is written anew
            found.pop("backup_manifest", None)
        assert found == files


def test_the_stored_repositories_stay_small() -> None:
    assert RELEASES
    for release in RELEASES:
        assert sum(path.stat().st_size for path in (HERE / release).rglob("*") if path.is_file()) < 300_000
