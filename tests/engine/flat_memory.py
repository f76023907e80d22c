"""Run as a program: what a backup of a huge cluster holds in memory beside its fixed buffers, measured for real.

    python -m tests.engine.flat_memory FILES SEGMENTS

Builds the layer of a cluster of FILES small files and SEGMENTS 1 GiB segments, encodes it, reads it back as a parent
would be read, looks places up, and prints its own peak of anonymous memory in MiB, less what the interpreter and its
libraries took before.
"""

from __future__ import annotations

import secrets
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from datamanager.repository.damaged import DamagedChunks
from datamanager.repository.format import PAGES_PER_CHUNK
from datamanager.repository.known import ParentFiles
from datamanager.repository.layers.builder import LayerBuilder
from datamanager.repository.layers.contents import Contents
from datamanager.repository.layers.layer import FileKind
from datamanager.repository.layers.reader import LayerReader
from datamanager.repository.manifest import LayerReference, Manifest
from datamanager.repository.repository import Repository

PAGE = 8192
SEGMENT_PAGES = (1 << 30) // PAGE
CHUNKS_PER_PACK = 512


def anonymous_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not say RssAnon")


class Sampler:
    """The highest value seen, looked at every 5 ms."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(0.005):
            self.peak = max(self.peak, anonymous_mib())

    def close(self) -> float:
        self._ended.set()
        self._thread.join()
        return self.peak


def build(files: int, segments: int) -> LayerBuilder:
    """A layer as a fresh full read makes it: chunks in stream order, packs of 512 chunks."""
    layer = LayerBuilder()
    chunk = 0
    pack = secrets.token_bytes(16)

    def add(first: int, pages: int) -> None:
        nonlocal chunk, pack
        if chunk == CHUNKS_PER_PACK:
            chunk, pack = 0, secrets.token_bytes(16)
        layer.add_row(first, pages, layer.pack_number(pack), chunk * PAGES_PER_CHUNK)
        chunk += 1

    for number in range(files):
        layer.begin_file(b"base/5/%d" % (100_000 + number), FileKind.REGULAR, 0o600)
        add(0, 2)
        layer.end_file(2 * PAGE)
    for number in range(segments):
        layer.begin_file(b"base/5/16384.%d" % number, FileKind.REGULAR, 0o600)
        for first in range(0, SEGMENT_PAGES, PAGES_PER_CHUNK):
            add(first, PAGES_PER_CHUNK)
        layer.end_file(SEGMENT_PAGES * PAGE)
    for one, _ in list(layer.packs):
        layer.set_digest(one, bytes(16))
    return layer


def main(files: int, segments: int) -> None:
    before = anonymous_mib()
    sampler = Sampler()
    layer = build(files, segments)
    encoded = layer.encode()
    chunks = encoded.chunks()
    reader = LayerReader(chunks.__getitem__, len(encoded.blocks), len(encoded.table), len(encoded.index))
    reference = LayerReference([], len(encoded.blocks), len(encoded.table), len(encoded.index), files, layer.rows)
    contents = Contents(reader.packs, [reader], PAGE)
    manifest = cast("Manifest", SimpleNamespace(layers=[reference]))  # nothing else of it is looked at
    parent = ParentFiles(Repository.__new__(Repository), contents, manifest, DamagedChunks.none())
    for number in range(segments):
        file = parent.find(b"base/5/16384.%d" % number)
        found = parent.grid(file, SEGMENT_PAGES // PAGES_PER_CHUNK) if file is not None else None
        if found is None or (found[0] < 0).any():
            raise RuntimeError("a chunk of the parent was not found")
    print(f"{sampler.close() - before:.1f} {layer.rows}")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
