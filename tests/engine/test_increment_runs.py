"""Runs of increments under attack: counts, second attempts, cancelling, parents that are not what they should be."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from datamanager.base.errors import Cancelled, IncrementRefused
from datamanager.base.events import Event, PhaseStarted, ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.backup.run import BackupResult, run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.postgres.source import FileReceiver, SourceEnd, SourceStart
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from tests.engine.conftest import Heard
from tests.engine.synthetic_increment import PAGE, SyntheticServer
from tests.engine.synthetic_source import SyntheticCluster
from tests.engine.test_increment_attacks import TABLE, assert_comes_back, one_table, stub, with_page
from tests.engine.test_increments import back_up, relations
from tests.repository.parts import backup, keys, new_repository, overwrite, reopen, verify

# -- counts ----------------------------------------------------------------------------------------------------------


def test_an_increment_counts_the_pages_that_it_read() -> None:
    repository, first = new_repository(), one_table(400)
    server = SyntheticServer(first, rewritten=0)
    back_up(repository, server)
    cluster = first
    for page in range(0, 400, 4):
        cluster = with_page(cluster, page, random.Random(page).randbytes(PAGE))
    server.moved(cluster)
    result = back_up(repository, server)
    assert result.manifest.method == "native"
    assert result.manifest.pages_changed == 100
    rest = 3 + 200  # PG_VERSION and the label
    assert 100 * PAGE <= result.manifest.bytes_read <= 100 * PAGE + rest


def test_an_increment_is_as_far_as_the_files_that_it_went_past() -> None:
    repository, server = new_repository(), SyntheticServer(relations())
    back_up(repository, server)
    server.moved(with_page(server.cluster, 0, b"z" * PAGE))
    heard = Heard()
    assert back_up(repository, server, listener=heard).manifest.method == "native"
    shares = [one.fraction for one in heard.progress]
    assert shares
    assert all(share is not None and 0 <= share <= 1 for share in shares)
    assert shares == sorted(shares, key=lambda share: share or 0.0)
    assert (shares[-1] or 0) > 0.9  # the manifest of the server is of the parent alone
    assert all(one.total_bytes is None for one in heard.progress)


def test_counts_of_an_increment_are_those_of_the_cluster() -> None:
    repository, server = new_repository(), SyntheticServer(relations())
    back_up(repository, server)
    server.moved(with_page(server.cluster, 0, b"z" * PAGE))
    manifest = back_up(repository, server).manifest
    cluster = server.cluster
    label = next(one for one in repository.contents(manifest).files() if one.path == b"backup_label")
    tablespaces = sum(len(data) for path, data in cluster.files.items() if path.startswith(b"pg_tblspc/"))
    whole = sum(len(data) for data in cluster.files.values())
    assert manifest.files == len(cluster.files) + len(cluster.directories) + 1
    assert manifest.volumes == {"base": whole - tablespaces + label.size, "16400": tablespaces}


def test_a_short_last_page_that_changed_is_counted_as_the_bytes_that_it_has() -> None:
    repository, first = new_repository(), one_table(200)
    first = first.with_files({TABLE: first.files[TABLE] + b"y" * 100})
    backup(repository, first)
    counts = backup(repository, first.with_files({TABLE: first.files[TABLE][:-100] + b"z" * 100})).counts
    assert counts.pages == 1
    assert counts.read - counts.reused == 100 + server_manifest_bytes(repository)


def server_manifest_bytes(repository: Repository) -> int:
    """Of the newest backup; a new one each time."""
    entry = repository.contents(repository.manifests()[-1]).find(b"backup_manifest")
    assert entry is not None
    return entry.size


# -- the second attempt ----------------------------------------------------------------------------------------------


@dataclass
class Breaking:
    """An increment source that spoils its increments, never a full read."""

    server: SyntheticServer
    spoil: Callable[[FileReceiver, bytes], bool]
    runs: list[bool] = field(default_factory=list)

    def run(self, receiver: FileReceiver, stop: StopToken, upload: bytes | None = None) -> SourceEnd:
        self.runs.append(upload is not None)
        if upload is None:
            return self.server.source().run(receiver, stop)
        return self.server.source().run(Spoiled(receiver, self.spoil), stop, upload)


class Spoiled(FileReceiver):
    """Passes on all files but those that ``spoil`` took for itself."""

    def __init__(self, inner: FileReceiver, spoil: Callable[[FileReceiver, bytes], bool]) -> None:
        self._inner, self._spoil, self._skipping = inner, spoil, False

    def start(self, start: SourceStart) -> None:
        self._inner.start(start)

    def directory(self, path: bytes, mode: int) -> None:
        self._inner.directory(path, mode)

    def begin_file(self, path: bytes, mode: int, size: int) -> None:
        self._skipping = self._spoil(self._inner, path)
        if not self._skipping:
            self._inner.begin_file(path, mode, size)

    def write(self, data: memoryview) -> None:
        if not self._skipping:
            self._inner.write(data)

    def end_file(self) -> None:
        if not self._skipping:
            self._inner.end_file()


def nonsense(receiver: FileReceiver, path: bytes) -> bool:
    """Another stub than the server's, after many pages were taken."""
    if path != b"base/5/INCREMENTAL.16390":
        return False
    receiver.begin_file(path, 0o600, 4)
    receiver.write(memoryview(b"nope"))
    receiver.end_file()
    return True


def unknown(receiver: FileReceiver, path: bytes) -> bool:
    """A stub of a file that the parent does not have."""
    if path != b"base/5/INCREMENTAL.16390":
        return False
    data = stub([0], 1, bytes(PAGE))
    receiver.begin_file(b"base/5/INCREMENTAL.99999", 0o600, len(data))
    receiver.write(memoryview(data))
    receiver.end_file()
    return True


def refused(receiver: FileReceiver, path: bytes) -> bool:
    if path == b"base/5/INCREMENTAL.16390":
        raise IncrementRefused("run on server: WAL summaries are required")
    return False


def visibility_map(receiver: FileReceiver, path: bytes) -> bool:
    """A server that does not send a visibility map whole (decision 2)."""
    if path != TABLE + b"_vm":
        return False
    data = stub([], 3)
    receiver.begin_file(b"base/5/INCREMENTAL.16386_vm", 0o600, len(data))
    receiver.write(memoryview(data))
    receiver.end_file()
    return True


@pytest.mark.parametrize("spoil", [nonsense, unknown, refused, visibility_map])
def test_an_increment_that_breaks_off_becomes_one_clean_full_read(
    spoil: Callable[[FileReceiver, bytes], bool], tmp_path: Path
) -> None:
    first = one_table(300).with_files(
        {b"base/5/%d" % n: random.Random(n).randbytes(PAGE * 40) for n in (16385, 16390, 16395)}
    )
    first = first.with_files({TABLE + b"_vm": random.Random(5).randbytes(PAGE * 3)})
    repository, server = new_repository(), SyntheticServer(first, rewritten=0)
    back_up(repository, server)
    server.moved(first.with_files({TABLE: random.Random(77).randbytes(PAGE * 300)}))
    source = Breaking(server, spoil)
    result = back_up(repository, server, source=source)
    assert source.runs == [True, False]
    manifest = result.manifest
    assert manifest.method == "compared"
    assert sum("given up" in one for one in manifest.warnings) == 1
    assert manifest.reason
    assert "given up" not in manifest.reason
    whole = sum(len(one) for one in server.cluster.files.values())
    assert result.counts.read >= whole
    assert manifest.files == len(server.cluster.files) + len(server.cluster.directories) + 2
    assert keys(repository.storage, "leases/") == []
    assert_comes_back(repository, manifest, server.cluster, tmp_path / "r")
    found = verify(repository)
    assert found.ok, [str(one) for one in found.damages]


def test_an_increment_refused_in_a_worker_by_the_audit_stores_the_truth(tmp_path: Path) -> None:
    """The server did not notice a change; the slice that comes whole shows it sooner or later."""

    def page(lsn: int, fill: bytes) -> bytes:
        return struct.pack("<II", 0, lsn) + fill * (PAGE - 8)

    tables = {b"base/5/%d" % (16384 + n): page(0x30, b"a") * 5 for n in range(60)}
    first = SyntheticCluster(PAGE, tables, (b"base", b"base/5"))
    repository, server = new_repository(), SyntheticServer(first, rewritten=0, silent=tuple(tables))
    back_up(repository, server)
    server.moved(first.with_files({path: page(0x38, b"b") * 5 for path in tables}))
    manifest = back_up(repository, server).manifest
    assert manifest.method == "compared"
    assert manifest.audit["mismatches"]
    assert any("given up" in one for one in manifest.warnings)
    assert keys(repository.storage, "leases/") == []
    assert_comes_back(repository, manifest, server.cluster, tmp_path / "r")


# -- cancel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["reading what is stored", "copying", "checking", "publishing"])
def test_cancelled_in_any_phase_an_increment_leaves_no_backup_and_no_lease(phase: str, tmp_path: Path) -> None:
    repository, server = new_repository(), SyntheticServer(relations())
    kept = back_up(repository, server).manifest
    before = server.cluster
    server.moved(with_page(before, 0, b"z" * PAGE))
    with StopToken() as stop:

        def listener(event: Event) -> None:
            if isinstance(event, PhaseStarted) and event.phase == phase:
                stop.stop("by the test")

        options = BackupOptions("office", "test", audit_pace_seconds=0)
        with pytest.raises(Cancelled):
            run_backup(repository, server.source(), server.facts, options, stop, listener, server.summaries)
    assert repository.backup_ids() == [kept.backup]
    assert keys(repository.storage, "leases/") == []
    again = back_up(repository, server).manifest
    assert (again.method, again.sequence) == ("native", 2)
    assert_comes_back(repository, again, server.cluster, tmp_path / "again")
    assert_comes_back(repository, kept, before, tmp_path / "kept")


# -- parents that are not what they should be ------------------------------------------------------------------------


def meta_packs(repository: Repository, manifest: Manifest) -> list[str]:
    return [span[0] for reference in manifest.layers for span in reference.spans]


@pytest.mark.parametrize("folder", ["meta", "meta-b"])
def test_a_parent_of_which_one_copy_of_the_layer_is_lost_is_still_a_parent(folder: str, tmp_path: Path) -> None:
    repository, server = new_repository(), SyntheticServer(relations())
    first = back_up(repository, server).manifest
    (pack,) = meta_packs(repository, first)
    repository.storage.delete(f"{folder}/{pack[:2]}/{pack}")
    repository = reopen(repository)
    server.moved(with_page(server.cluster, 0, b"z" * PAGE))
    manifest = back_up(repository, server).manifest
    assert manifest.method == "native"
    assert pack in meta_packs(repository, manifest)
    assert_comes_back(repository, manifest, server.cluster, tmp_path / "r")


def lose_layer(repository: Repository, manifest: Manifest) -> None:
    pack = manifest.layers[0].spans[0][0]
    for folder in ("meta", "meta-b"):
        repository.storage.delete(f"{folder}/{pack[:2]}/{pack}")


def test_without_the_layers_of_the_newest_the_backup_before_is_the_parent(tmp_path: Path) -> None:
    repository, server = new_repository(), SyntheticServer(relations(), rewritten=0)
    first = back_up(repository, server).manifest
    server.moved(with_page(server.cluster, 0, b"z" * PAGE))
    second = back_up(repository, server).manifest
    lose_layer(repository, second)
    repository = reopen(repository)
    server.moved(with_page(server.cluster, 1, b"y" * PAGE))
    result = back_up(repository, server)
    assert (result.manifest.method, result.manifest.parent) == ("native", first.backup)
    assert result.manifest.sequence == 3
    assert sum(second.backup in one for one in result.warnings) == 1
    assert_comes_back(repository, result.manifest, server.cluster, tmp_path / "r")


def test_without_any_readable_backup_everything_is_read_and_the_reason_is_true(tmp_path: Path) -> None:
    repository, server = new_repository(), SyntheticServer(relations(), rewritten=0)
    lose_layer(repository, back_up(repository, server).manifest)
    repository = reopen(repository)
    server.moved(server.cluster)
    result = back_up(repository, server)
    assert (result.manifest.method, result.manifest.parent) == ("full", None)
    assert "first backup" not in result.manifest.reason
    assert "cannot be read" in result.manifest.reason
    assert result.counts.resumed > 0  # its pages are there all the same
    assert_comes_back(repository, result.manifest, server.cluster, tmp_path / "r")


@pytest.mark.parametrize("full", [False, True])
def test_pages_of_the_parent_that_cannot_be_read_are_stored_anew(full: bool, tmp_path: Path) -> None:
    repository, server = new_repository(), SyntheticServer(relations(), rewritten=0)
    back_up(repository, server)
    (pack,) = keys(repository.storage, "packs/")
    data = bytearray(repository.storage.get(pack))
    data[10_000] ^= 1
    overwrite(repository.storage, pack, bytes(data))
    repository = reopen(repository)
    assert not verify(repository).ok
    repository = reopen(repository)
    server.moved(server.cluster)
    result = back_up(repository, server, full=full)
    assert result.manifest.method == "compared"
    assert 0 < result.counts.compressed < result.counts.read
    assert_comes_back(repository, result.manifest, server.cluster, tmp_path / "r")
    server.moved(with_page(server.cluster, 0, b"z" * PAGE))
    after = back_up(reopen(repository), server).manifest
    assert after.method == "native"
    assert_comes_back(repository, after, server.cluster, tmp_path / "after")


# -- several clusters, several names ---------------------------------------------------------------------------------


def test_two_clusters_in_one_repository_build_on_their_own_backups(tmp_path: Path) -> None:
    repository = new_repository()
    servers = [SyntheticServer(replace(relations(seed), system_identifier=7000 + seed), rewritten=0) for seed in (1, 2)]
    taken = []
    for number in range(3):
        for server in servers:
            manifest = back_up(repository, server).manifest
            assert manifest.method == ("native" if number else "full")
            taken.append((manifest, server.cluster))
            server.moved(with_page(server.cluster, number, b"z" * PAGE))
    assert [one.sequence for one, _ in taken] == [1, 2, 3, 4, 5, 6]
    for manifest, cluster in taken:
        assert_comes_back(repository, manifest, cluster, tmp_path / manifest.backup)


def test_a_cluster_known_under_two_names_builds_on_its_newest_backup() -> None:
    repository, server = new_repository(), SyntheticServer(relations(), rewritten=0)
    found: list[BackupResult] = []
    for name in ("office", "surgery", "office"):
        with StopToken() as stop:
            source, options = server.source(), BackupOptions(name, "test", audit_pace_seconds=0)
            found.append(run_backup(repository, source, server.facts, options, stop, ignore, server.summaries))
        server.moved(with_page(server.cluster, 0, name.encode() * (PAGE // len(name)) + b"." * (PAGE % len(name))))
    assert [one.manifest.parent for one in found] == [None, *(one.manifest.backup for one in found[:2])]


# -- the label -------------------------------------------------------------------------------------------------------


@dataclass
class GroupReadable:
    """A server whose files its group may read."""

    server: SyntheticServer

    def run(self, receiver: FileReceiver, stop: StopToken, upload: bytes | None = None) -> SourceEnd:
        begin = receiver.begin_file
        receiver.begin_file = lambda path, mode, size: begin(path, 0o640, size)  # type: ignore[method-assign]
        return self.server.source().run(receiver, stop, upload)


def test_the_label_of_an_increment_has_the_mode_that_the_server_gave_it() -> None:
    repository, server = new_repository(), SyntheticServer(relations(), rewritten=0)
    for method in ("full", "native"):
        manifest = back_up(repository, server, source=GroupReadable(server)).manifest
        assert manifest.method == method
        modes = {entry.path: entry.mode for entry in repository.contents(manifest).files()}
        assert modes[b"backup_label"] == modes[TABLE] == 0o640
        server.moved(server.cluster)
