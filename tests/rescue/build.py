"""Small repositories with synthetic backups, made of the repository package's own parts.

``Maker.backup`` stores whole files as a full read does; ``Maker.increment`` adds a layer of changed pages. Both know
what a restore must give, so that a test can compare.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import zstandard
from crc32c import crc32c

from datamanager.base.clock import SystemClock
from datamanager.base.pipeline import StopToken, TaskGroup
from datamanager.base.units import Secret
from datamanager.repository.commit import next_in_line, publish
from datamanager.repository.format import PAGES_PER_CHUNK, Kind, folders
from datamanager.repository.keys import SlotSecret
from datamanager.repository.layers.builder import LayerBuilder
from datamanager.repository.layers.layer import FileFlag, FileKind
from datamanager.repository.manifest import LayerReference, Manifest, Tablespace
from datamanager.repository.packs.pack import NO_FINGERPRINT, SealedPack, fingerprint
from datamanager.repository.packs.stream import PackStream
from datamanager.repository.repository import Repository
from datamanager.rescue import rescue_script
from datamanager.storage.local import LocalStorage

PAGE = 8192
PASSPHRASE = Secret("Grüße aus der Praxis, 4711")
SERVER_FACTS = {
    "operating_system": "Linux",
    "architecture": "x86_64",
    "databases": [{"name": "clinic", "extensions": [{"name": "pgvector", "version": "0.8"}]}],
    "max_connections": 100,
}

Tree = dict[bytes, bytes | None]  # a path's content; None for a directory
Mangle = Callable[[list[bytes]], list[bytes]]  # what a hostile writer does to the raw blocks of a layer


@dataclass(frozen=True)
class Change:
    """What an increment says about a file: its new size, its truncation length in pages, and the pages sent."""

    size: int
    kept: int
    pages: Mapping[int, bytes] = field(default_factory=dict)


class Maker:
    """A repository in a folder, with a passphrase, a recovery code and a key file."""

    def __init__(self, root: Path, *, page: int = PAGE, open_slot: bool = False) -> None:
        self.root = root
        self.page = page
        self.code = SlotSecret.new_recovery_code()
        self.key = SlotSecret.new_key_file()
        self.storage = LocalStorage.create(root, folders())
        keys = [
            (SlotSecret.passphrase(PASSPHRASE), "passphrase"),
            (self.code, "printed kit"),
            (self.key, "key file"),
        ]
        keys = [(SlotSecret.open(), "not encrypted: a test")] if open_slot else keys
        self.repository = Repository.create(self.storage, keys, SystemClock())
        self.expected: dict[str, Tree] = {}
        self._minute = 0

    # -- backups ----------------------------------------------------------------------------------------------------
    def backup(
        self, tree: Tree, *, mangle: Mangle | None = None, mode: int = 0o600, alter: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Store every file whole. Args: alter - fields of the manifest that differ."""
        layer = LayerBuilder()
        with _Packs(self.repository, layer) as packs:
            for path, content in tree.items():
                kind = FileKind.DIRECTORY if content is None else FileKind.REGULAR
                layer.begin_file(path, kind, 0o700 if content is None else mode)
                step = self.page * PAGES_PER_CHUNK
                for start in range(0, len(content or b""), step):
                    raw = (content or b"")[start : start + step]
                    if raw.count(0) != len(raw):
                        pages = -(-len(raw) // self.page)
                        layer.add_row(start // self.page, pages, *packs.add(raw))
                layer.end_file(len(content or b""), crc32c=crc32c(content or b""))
        return self._publish(layer, [], tree, "full", mangle, alter or {})

    def increment(
        self,
        parent: Manifest,
        changes: Mapping[bytes, Change | bytes | None],
        *,
        alter: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Add a layer: changed pages, whole new files (bytes), or files that are gone (None)."""
        tree = dict(self.expected[parent.backup])
        layer = LayerBuilder()
        with _Packs(self.repository, layer) as packs:
            places = self._scattered(packs, changes)
            for path, change in sorted(changes.items()):
                layer.begin_file(path, FileKind.REGULAR, 0o600)
                if change is None:
                    del tree[path]
                    layer.end_file(0, flags=FileFlag.GONE)
                    continue
                content = change if isinstance(change, bytes) else applied(tree[path] or b"", change, self.page)
                tree[path] = content
                if isinstance(change, bytes):
                    for start in range(0, len(change), self.page * PAGES_PER_CHUNK):
                        raw = change[start : start + self.page * PAGES_PER_CHUNK]
                        layer.add_row(start // self.page, -(-len(raw) // self.page), *packs.add(raw))
                    layer.end_file(len(change), crc32c=crc32c(change))
                    continue
                for number in sorted(change.pages):
                    layer.add_row(number, 1, *places[path, number])
                layer.end_file(change.size, kept=change.kept, crc32c=crc32c(content))
        return self._publish(layer, parent.layers, tree, "native", None, {"parent": parent.backup, **(alter or {})})

    def _scattered(
        self, packs: _Packs, changes: Mapping[bytes, Change | bytes | None]
    ) -> dict[tuple[bytes, int], tuple[int, int]]:
        """Store changed pages in (file, page) order; pages of different files share chunks."""
        pages = [
            (path, number, data)
            for path, change in sorted(changes.items())
            if isinstance(change, Change)
            for number, data in sorted(change.pages.items())
        ]
        places: dict[tuple[bytes, int], tuple[int, int]] = {}
        for start in range(0, len(pages), PAGES_PER_CHUNK):
            group = pages[start : start + PAGES_PER_CHUNK]
            pack, position = packs.add(b"".join(data.ljust(self.page, b"\0") for _, _, data in group))
            for offset, (path, number, _) in enumerate(group):
                places[path, number] = pack, position + offset
        return places

    def _publish(
        self,
        layer: LayerBuilder,
        older: Sequence[LayerReference],
        tree: Tree,
        method: str,
        mangle: Mangle | None,
        alter: Mapping[str, Any],
    ) -> Manifest:
        lease = self.repository.take_lease("backup", "7000000000000000001")
        try:
            reference = _store_layer(self.repository, layer, mangle)
            manifest = self._manifest([reference, *older], tree, method, alter)
            publish(self.repository, lease, manifest)
        finally:
            lease.release()
        self.expected[manifest.backup] = tree
        return manifest

    def _manifest(self, layers: list[LayerReference], tree: Tree, method: str, alter: Mapping[str, Any]) -> Manifest:
        self._minute += 1
        moment = datetime(2026, 11, 23, 2, 0, tzinfo=UTC) + timedelta(minutes=self._minute)
        manifest = Manifest(
            backup=f"{moment:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
            **next_in_line(self.repository.manifests(), self.repository),
            cluster="clinic",
            label="nightly",
            program="datamanager test",
            started=moment.isoformat(),
            ended=moment.isoformat(),
            system_identifier="7000000000000000001",
            version="17.11",
            major=17,
            page_size=self.page,
            segment_size=1 << 30,
            wal_segment_size=16 << 20,
            checksums=True,
            timeline=1,
            start_lsn="0/2000028",
            stop_lsn="0/2000120",
            method=method,
            parent=None,
            layers=layers,
            tablespaces=[],
            volumes={"base": sum(len(content or b"") for content in tree.values())},
            files=len(tree),
            bytes_read=0,
            bytes_stored=0,
            bytes_reused=0,
            server=SERVER_FACTS,
        )
        return replace(manifest, **alter)

    # -- running rescue.py ------------------------------------------------------------------------------------------
    def deliver(self, wheels: Sequence[Path] = ()) -> Path:
        """Put rescue.py, and wheels beside it, into the repository's folder."""
        for wheel in wheels:
            (self.root / "wheels" / wheel.name).write_bytes(wheel.read_bytes())
        script = self.root / "rescue.py"
        script.write_bytes(rescue_script(list(wheels)))
        return script

    def code_text(self) -> str:
        return self.code.recovery_code().reveal().decode()

    def rescue(
        self, *words: str, python: Sequence[str] = (sys.executable, "-I"), typed: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the delivered rescue.py; the recovery code is typed unless something else is."""
        return subprocess.run(
            [*python, "-B", str(self.root / "rescue.py"), *words],
            input=self.code_text() + "\n" if typed is None else typed,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )


def applied(old: bytes, change: Change, page: int) -> bytes:
    """What a file holds after a change: old pages below ``kept``, the pages sent, zeros elsewhere."""
    content = bytearray(old[: change.kept * page].ljust(change.size, b"\0")[: change.size])
    for number, data in change.pages.items():
        data = data[: change.size - number * page]
        content[number * page : number * page + len(data)] = data
    return bytes(content)


def read_tree(root: Path) -> Tree:
    """Every file and folder below ``root``; links are not followed and count as files that hold their target."""
    tree: Tree = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root)).encode("utf-8", "surrogateescape")
        if path.is_symlink():
            tree[name] = str(path.readlink()).encode()
        else:
            tree[name] = None if path.is_dir() else path.read_bytes()
    return tree


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Turn one bit of a file; a negative position counts from its end."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


def sample_tree() -> Tree:
    """Files of every kind that matters: empty, short, odd sizes, zeros inside, more than a chunk, odd names."""

    def noise(size: int, seed: int) -> bytes:
        return (b"%d clinic rows and notes " % seed * (size // 20 + 1))[:size]

    chunk = PAGE * PAGES_PER_CHUNK
    return {
        b"PG_VERSION": b"17\n",
        b"backup_label": b"START WAL LOCATION: 0/2000028\n",
        b"base": None,
        b"base/1": None,
        b"base/1/1259": noise(3 * chunk + 5 * PAGE, 1),
        b"base/1/16384": noise(chunk, 2) + bytes(2 * chunk) + noise(PAGE, 3),
        b"base/1/16385": bytes(5 * chunk),
        b"base/1/16386": b"",
        b"base/1/16387_vm": noise(PAGE, 4),
        b"base/1/short": noise(2 * PAGE + 17, 5),
        b"base/1/sparse_end": noise(100, 6) + bytes(chunk + 3),
        b"base/leer": None,
        b"global": None,
        b"global/pg_control": noise(8192, 7),
        "base/Müller & Söhne.txt".encode(): b"umlauts",
        b"base/odd\xff\xfe name": b"not UTF-8",
        b"base/with:colon and\\backslash": b"a stray file",
        b"base/line\nbreak \x1b[31m": b"control characters",
        b"pg_tblspc": None,
        b"pg_wal": None,
        b"pg_wal/000000010000000000000002": noise(1 << 20, 8) + bytes(15 << 20),
        b"postgresql.conf": b"port = 5432\n",
    }


def tablespace_tree() -> tuple[Tree, dict[str, Any]]:
    """A backup with a tablespace outside the data directory and one inside; the manifest's fields for it."""
    tree = sample_tree()
    tree |= {
        b"pg_tblspc/16401/PG_17_202406281": None,
        b"pg_tblspc/16401/PG_17_202406281/5": None,
        b"pg_tblspc/16401/PG_17_202406281/5/16402": b"row" * 5000,
        b"pg_tblspc/16500": None,
        b"pg_tblspc/16500/PG_17_202406281": None,
        b"pg_tblspc/16500/PG_17_202406281/file": b"in place",
    }
    places = [Tablespace(16401, "/srv/fast disk", 15000), Tablespace(16500, "pg_tblspc/16500", 8)]
    return tree, {"tablespaces": places, "volumes": {"base": 20 << 20, "16401": 15000}}


class _Packs:
    """Data packs of one backup: ``add`` stores a chunk and gives its row's pack number and position."""

    def __init__(self, repository: Repository, layer: LayerBuilder) -> None:
        self._repository = repository
        self._layer = layer
        self._compressor = zstandard.ZstdCompressor(level=3)

    def __enter__(self) -> _Packs:
        self._stop = StopToken()
        self._group = TaskGroup(self._stop)
        self._group.__enter__()
        self._digests: dict[bytes, bytes] = {}
        self._stream = PackStream(self._repository.objects, Kind.PACK, self._group, self._stored, lambda size: None)
        return self

    def _stored(self, pack: SealedPack) -> None:
        self._digests[pack.id] = pack.digest

    def add(self, raw: bytes) -> tuple[int, int]:
        print_ = fingerprint(self._repository.ring.fingerprint_key.reveal(), raw)
        pack, number = self._stream.add(self._compressor.compress(raw), len(raw), print_)
        return self._layer.pack_number(pack), number * PAGES_PER_CHUNK

    def __exit__(self, *exc: Any) -> None:
        try:
            if exc[0] is None:
                self._stream.finish()
        finally:
            self._group.__exit__(*exc)
            self._stop.close()
        for pack, _ in list(self._layer.packs):
            self._layer.set_digest(pack, self._digests[pack])


def _store_layer(repository: Repository, layer: LayerBuilder, mangle: Mangle | None) -> LayerReference:
    """As ``commit.write_layer``, with a hook for what no writer of ours would write."""
    encoded = layer.encode()
    blocks = mangle(encoded.blocks) if mangle else encoded.blocks
    spans: list[tuple[str, int, int]] = []
    with StopToken() as stop, TaskGroup(stop) as group:
        stream = PackStream(repository.objects, Kind.META, group, lambda pack: None, lambda size: None)
        for chunk in blocks + encoded.table + encoded.index:
            pack, number = stream.add(zstandard.ZstdCompressor().compress(chunk), len(chunk), NO_FINGERPRINT)
            if spans and spans[-1][0] == pack.hex():
                spans[-1] = (spans[-1][0], spans[-1][1], spans[-1][2] + 1)
            else:
                spans.append((pack.hex(), number, 1))
        stream.finish()
    return LayerReference(spans, len(blocks), len(encoded.table), len(encoded.index), encoded.files, encoded.rows)
