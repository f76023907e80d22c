"""Putting one data pack together from every copy of it that can be read, and writing it as its next generation.

A copy is a generation of the pack, here or in another repository. It counts when its directory authenticates and names
the content that the layers say; each of its chunks counts when it authenticates and, where all its pages are there, has
its fingerprint. Source: ``docs/format.md`` decision 6.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from datamanager.base.errors import IntegrityError, ObjectExists, StoreUnavailable
from datamanager.base.pipeline import StopToken
from datamanager.engine.verify.findings import require_store
from datamanager.engine.verify.packs import PackVerifier
from datamanager.repository.format import MAX_CONTAINER_BYTES, TRAILER, Kind, pack_generation, pack_key
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.packs.generation import GenerationBuilder
from datamanager.repository.packs.pack import (
    ChunkOpener,
    PackDirectory,
    fingerprint,
    full_mask,
    open_directory,
    parse_directory,
)
from datamanager.repository.repository import Repository
from datamanager.repository.sealing import Header, Sealer


@dataclass(frozen=True, slots=True)
class _Copy:
    """One generation of a pack in memory, 33 MiB as a rule."""

    key: str
    directory: PackDirectory
    opener: ChunkOpener
    data: memoryview

    def mask(self, chunk: int, page_size: int) -> int:
        if self.directory.masks is not None:
            return int(self.directory.masks[chunk])
        return full_mask(int(self.directory.raw[chunk]), page_size)

    def sealed(self, chunk: int) -> memoryview:
        start, end = (int(one) for one in self.directory.offsets[chunk : chunk + 2])
        return self.data[start:end]


@dataclass(slots=True)
class _Chunk:
    """What is at hand of one chunk: its frame when all pages are, else raw bytes with holes. Masks are of pages."""

    raw_bytes: int
    print_: bytes
    wanted: int
    mask: int = 0
    frame: bytes | None = None
    raw: bytes = b""


@dataclass(slots=True)
class Gathered:
    """A pack put together.

    Args:
        used: keys of the copies that gave something.
        gained: chunks of which more is at hand than readers find here now.
        newest: the highest generation that is stored here, 0 for none.
    """

    pack: bytes
    page_size: int
    chunks: list[_Chunk] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    gained: set[int] = field(default_factory=set)
    newest: int = 0

    def begin(self, directory: PackDirectory, damaged: Collection[int] | None) -> None:
        """Take over the chunks of the first copy.

        The new generation is to have no more than readers have now, and the damaged chunks whole.
        Args: damaged - their numbers; None for all.
        """
        for number, raw in enumerate(directory.raw.tolist()):
            wanted = full_mask(raw, self.page_size)
            if directory.masks is not None and damaged is not None and number not in damaged:
                wanted &= int(directory.masks[number])
            self.chunks.append(_Chunk(raw, directory.fingerprint(number), wanted))

    @property
    def wanting(self) -> list[int]:
        """Chunks of which a page is at hand nowhere."""
        return [number for number, one in enumerate(self.chunks) if one.wanted & ~one.mask]


class PackHealer:
    """Heals packs of one repository from itself and another. Used by one thread; holds two packs at a time."""

    def __init__(self, repository: Repository, source: Repository, stop: StopToken) -> None:
        self._ours = repository
        self._source = source
        self._stop = stop
        self._print_key = repository.ring.fingerprint_key.reveal()

    def gather(
        self, pack: bytes, digests: Collection[bytes], page_size: int, damaged: Collection[int] | None
    ) -> Gathered:
        """Read one copy after another, ours first and of each the newest, until nothing is wanting.

        Args:
            digests: by which the layers know the pack.
            page_size: bytes of its pages.
            damaged: chunks that readers cannot rely on; None for the whole pack.
        Raises: StoreError when a store as a whole does not answer, Cancelled.
        """
        found = Gathered(pack, page_size)
        for store in (self._ours, self._source):
            keys = _generations(store, pack)
            if store is self._ours and keys:
                found.newest = keys[0][0]
            for _, key in keys:
                copy = self._read(store, key, pack)
                if copy is None or copy.directory.digest() not in digests:
                    continue
                current = not found.chunks and store is self._ours  # the generation that readers take now
                if not found.chunks:
                    found.begin(copy.directory, damaged if current else None)
                if self._take(found, copy, gains=not current):
                    found.used.append(key if store is self._ours else f"{key} of {store.storage.url}")
                if not found.wanting:
                    return found
        return found

    def _read(self, store: Repository, key: str, pack: bytes) -> _Copy | None:
        try:
            data = store.storage.get(key, 0, MAX_CONTAINER_BYTES + 1)
            header = Header.parse(data, key)
            if header.kind is not Kind.PACK or header.id != pack:
                return None
            sealer = Sealer(store.ring.epoch_key(header.epoch, key), header, store.ring.repository)
            start, length = parse_directory(data[-TRAILER.size :], len(data), key)
            directory = open_directory(data[start : start + length], header, sealer, key, start)
        except UNREADABLE as error:
            if isinstance(error, StoreUnavailable):
                require_store(store.storage)
            return None
        return _Copy(key, directory, ChunkOpener(sealer, directory, key), memoryview(data))

    def _take(self, found: Gathered, copy: _Copy, *, gains: bool) -> bool:
        """Add what this copy has and ``found`` lacks; whether there was any."""
        took = False
        for number, chunk in enumerate(found.chunks):
            self._stop.check()
            offered = copy.mask(number, found.page_size) & chunk.wanted & ~chunk.mask
            if offered and self._take_chunk(found, copy, number, offered):
                took = True
                if gains:
                    found.gained.add(number)
        return took

    def _take_chunk(self, found: Gathered, copy: _Copy, number: int, offered: int) -> bool:
        chunk = found.chunks[number]
        whole = full_mask(chunk.raw_bytes, found.page_size)
        try:
            raw = copy.opener.open(number, copy.sealed(number))
        except IntegrityError:
            return False
        if copy.directory.complete(number):
            if fingerprint(self._print_key, raw) != chunk.print_:
                return False
            chunk.mask, chunk.raw = chunk.wanted, raw
        else:
            merged, mask = _merged(chunk, raw, offered, found.page_size), chunk.mask | offered
            if mask == whole and fingerprint(self._print_key, merged) != chunk.print_:
                return False
            chunk.mask, chunk.raw = mask, merged
        if chunk.mask == whole and copy.directory.complete(number):
            chunk.frame, chunk.raw = copy.opener.frame(number, copy.sealed(number)), b""
        return True

    def write(self, found: Gathered) -> str:
        """Store the next generation, read it back and return its key.

        Raises: StoreError; IntegrityError, when it does not read back, and then it is deleted again.
        """
        epoch = self._ours.ring.newest
        builder = GenerationBuilder(
            epoch.key.reveal(), epoch.number, self._ours.ring.repository, found.pack, found.page_size
        )
        for chunk in found.chunks:
            if chunk.frame is not None:
                builder.add(chunk.frame, chunk.raw_bytes, chunk.print_, chunk.mask)
            elif chunk.mask:
                builder.add_pages(chunk.raw, chunk.print_, chunk.mask)
            else:
                builder.add(None, chunk.raw_bytes, chunk.print_, 0)
        sealed = builder.finish()
        key = self._put(found, sealed.parts)
        report = PackVerifier(self._ours.storage, self._ours.ring, self._stop).read(key, found.pack, Kind.PACK)
        masks = [] if report.masks is None else report.masks.tolist()
        if report.faults or report.digest != sealed.digest or masks != [one.mask for one in found.chunks]:
            self._ours.storage.delete(key)
            raise IntegrityError(f"heal pack: {key} does not read back as written")
        return key

    def _put(self, found: Gathered, parts: tuple[bytes | bytearray | memoryview, ...]) -> str:
        generation = max(found.newest, 1) + 1
        while True:
            key = pack_key(found.pack, generation)
            try:
                self._ours.storage.put(key, parts)
            except ObjectExists:  # somebody else wrote the pack again meanwhile
                generation += 1
                if generation > found.newest + 9:
                    raise
                continue
            self._ours.storage.barrier()
            return key


def _generations(store: Repository, pack: bytes) -> list[tuple[int, str]]:
    """Generations of a pack and their keys, the newest first."""
    name = pack.hex()
    found = []
    for one in store.storage.list(f"packs/{name[:2]}/"):
        identity, generation = pack_generation(one.key) or (b"", 0)
        if identity == pack:
            found.append((generation, one.key))
    return sorted(found, reverse=True)


def _merged(chunk: _Chunk, raw: bytes, pages: int, page_size: int) -> bytes:
    """The chunk's raw bytes with these pages of ``raw`` in it; holes stay zeros."""
    merged = bytearray(chunk.raw or bytes(chunk.raw_bytes))
    for page in _pages(pages):
        merged[page * page_size : (page + 1) * page_size] = raw[page * page_size : (page + 1) * page_size]
    return bytes(merged)


def _pages(mask: int) -> Iterator[int]:
    return (page for page in range(mask.bit_length()) if mask >> page & 1)
