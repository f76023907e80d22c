"""The power goes during a backup: what was committed is whole, what was not is absent, and nothing torn is used."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from datamanager.base.errors import DataManagerError
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.restore.plan import RestoreOptions, plan_restore
from datamanager.engine.restore.run import apply_restore
from datamanager.repository.format import folders
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from datamanager.storage.local import LocalStorage
from tests.engine.synthetic_source import SyntheticCluster, make_cluster, tree
from tests.repository.parts import backup, new_repository, reopen, verify
from tests.storage import mounts
from tests.storage.faults import Call, FaultyStorage
from tests.storage.mounts import MIB, Volume

pytestmark = pytest.mark.mounts

SEED = 20250301

# Before the first call (method, beginning of the key), or so many seconds after it: five moments around the commit,
# five seeded ones while packs are being written.
CUTS: list[tuple[str, str, float]] = [
    ("put", "meta/", 0),
    ("barrier", "", 0),
    ("put", "manifests-b/", 0),
    ("put", "manifests/", 0),
    ("delete", "leases/", 0),
    *(("put", "packs/", delay) for delay in random.Random(SEED).choices([n / 1000 for n in range(1, 250)], k=5)),
]


@dataclass
class Drive:
    """A drive with one committed backup, and what each backup must restore to.

    Args: made - the repository as it was made; only its keys and clock are used later.
    """

    volume: Volume
    made: Repository
    clusters: dict[str, SyntheticCluster] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.volume.folder / "repository"

    def open(self) -> Repository:
        """The repository an hour later, as another process: until then the lease of the dead one counts."""
        for lease in (self.root / "leases").iterdir():
            os.utime(lease, (time.time() - 3600,) * 2)
        return reopen(self.made, LocalStorage(self.root))


def grown(cluster: SyntheticCluster, seed: int) -> SyntheticCluster:
    """The same cluster with 70 MB more that does not compress: three packs."""
    chance = random.Random(seed)
    return cluster.with_files({b"base/5/9%d%d" % (seed, number): chance.randbytes(14 * MIB) for number in range(5)})


def assert_restores(repository: Repository, manifest: Manifest, cluster: SyntheticCluster, target: Path) -> None:
    """Every file of the backup comes back as it was."""
    with StopToken() as stop:
        plan = plan_restore(repository, manifest, RestoreOptions(target, any_platform=True))
        apply_restore(repository, plan, stop, ignore)
    files, _ = tree(target)
    files.pop(b"backup_manifest")
    assert files == cluster.files


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Drive]:
    with mounts.ext4(tmp_path / "drive", 400 * MIB) as volume:
        made = new_repository(LocalStorage.create(volume.folder / "repository", folders()))
        cluster = make_cluster()
        yield Drive(volume, made, {backup(made, cluster).manifest.backup: cluster})


@pytest.mark.parametrize("cut", CUTS, ids=[f"{method}-{key}+{delay:g}s" for method, key, delay in CUTS])
def test_after_a_power_cut_every_reported_backup_is_whole_and_the_cut_one_is_whole_or_absent(
    drive: Drive, tmp_path: Path, cut: tuple[str, str, float]
) -> None:
    (first,) = drive.clusters
    second = grown(drive.clusters[first], 1)
    reported = _cut_backup(drive, second, cut)

    drive.volume.remount()
    repository = drive.open()

    listed = set(repository.backup_ids())
    assert first in listed
    assert reported is None or reported in listed
    assert reported or cut[0] != "delete"  # the last moment: both copies are read back by then
    drive.clusters |= dict.fromkeys(listed - {first}, second)
    result = verify(repository)
    assert [damage for damage in result.damages if not damage.redundant] == []
    assert all(verdict.ok for verdict in result.backups)
    for number, manifest in enumerate(repository.manifests()):
        assert_restores(repository, manifest, drive.clusters[manifest.backup], tmp_path / f"restored-{number}")

    again = backup(drive.open(), second)
    result = verify(drive.open())
    assert result.damages == []
    assert all(verdict.ok for verdict in result.backups)
    assert_restores(drive.open(), again.manifest, second, tmp_path / "restored-again")


def _cut_backup(drive: Drive, cluster: SyntheticCluster, cut: tuple[str, str, float]) -> str | None:
    """Run a backup during which the power goes; the id of the backup if it was reported committed all the same."""
    method, key, delay = cut
    ended = threading.Event()
    timers: list[threading.Timer] = []

    def before(call: Call) -> None:
        if call.method != method or not call.key.startswith(key) or ended.is_set():
            return
        if method == "delete" and sum(one.method == "barrier" for one in storage.calls) < 2:
            return  # the lease's own renewal, before the commit
        ended.set()
        if delay:
            timers.append(threading.Timer(delay, drive.volume.cut_power))
            timers[0].start()
        else:
            drive.volume.cut_power()

    storage = FaultyStorage(LocalStorage(drive.root), hook=before)
    try:
        return backup(reopen(drive.made, storage), cluster).manifest.backup
    except DataManagerError:
        return None
    finally:
        for timer in timers:
            timer.join()
        assert ended.is_set()


def test_a_pack_whose_tail_the_power_cut_took_is_never_used(drive: Drive, tmp_path: Path) -> None:
    (first,) = drive.clusters
    second = grown(drive.clusters[first], 2)
    assert _cut_backup(drive, second, ("put", "manifests-b/", 0)) is None  # just before the commit
    drive.volume.remount()
    storage = LocalStorage(drive.root)
    known = {pack for pack, _ in drive.open().contents(drive.open().manifest(first)).packs}
    left = [one.key for one in storage.list("packs/") if bytes.fromhex(one.key[-32:]) not in known]
    assert len(left) >= 2
    # What a drive without a working cache flush leaves: blocks of a synced file that read as zeros.
    for number, key in enumerate(left):
        path = drive.root / key
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // (number + 2))
            file.write(bytes(8192))
    again = backup(drive.open(), second)
    used = {pack.hex() for pack, _ in drive.open().contents(again.manifest).packs}
    assert not used & {key[-32:] for key in left}
    assert all(verdict.ok for verdict in verify(drive.open()).backups)
    assert_restores(drive.open(), again.manifest, second, tmp_path / "restored")


def test_a_lost_power_is_a_named_error_and_nothing_was_reported(drive: Drive) -> None:
    (first,) = drive.clusters
    storage = FaultyStorage(LocalStorage(drive.root))
    repository = reopen(drive.made, storage)
    drive.volume.cut_power()
    with pytest.raises(DataManagerError, match=str(drive.root)) as failed:
        backup(repository, drive.clusters[first])
    assert failed.value.exit_code == 30
    assert failed.value.hint
