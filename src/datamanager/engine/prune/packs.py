"""The data packs of a prune: how much of each is live, and writing them again.

A new generation is put, made durable, read back from the store and authenticated whole before the one that it replaces
is touched. Source: ``docs/format.md``, Packs and Prune.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from datamanager.base.errors import IntegrityError, ObjectExists, StoreFull
from datamanager.base.pipeline import StopToken
from datamanager.repository.format import TRAILER, Kind, pack_generation, pack_key
from datamanager.repository.liveness import LivePages
from datamanager.repository.objects import UNREADABLE, OpenPack
from datamanager.repository.packs.generation import check_pages, keep_pages
from datamanager.repository.packs.pack import PackDirectory, SealedPack, check_padding, parse_directory
from datamanager.repository.prune_plan import PackState, Rewrite, judge_pack
from datamanager.repository.repository import Repository
from datamanager.storage.base import StoredObject

_BATCH_BYTES = 256 << 20  # written between two barriers: a hard disk syncs it in some seconds
_FLOOR_BYTES = 1000**3  # room that stays on the volume; deleting needs none, writing again can wait


class PackSurveyor:
    """Reads the directories of packs with live pages. Used by one thread."""

    def __init__(self, repository: Repository, live: LivePages, stop: StopToken) -> None:
        self._repository = repository
        self._live = live
        self._stop = stop
        self.warnings: list[str] = []

    def states(self, listed: Iterable[StoredObject]) -> list[PackState]:
        """One for each pack with live pages that is stored. Raises: StoreError, Cancelled."""
        stored: dict[bytes, dict[int, int]] = {}
        for one in listed:
            place = pack_generation(one.key)
            if place is not None and place[0] in self._live.masks:
                stored.setdefault(place[0], {})[place[1]] = one.size
        found = []
        for pack, generations in stored.items():
            self._stop.check()
            sizes = self._live.page_sizes[pack]
            if len(sizes) == 1:  # clusters of different page sizes that share a pack: it stays as it is
                found.append(self._state(pack, generations, next(iter(sizes))))
        return found

    def _state(self, pack: bytes, generations: dict[int, int], page_size: int) -> PackState:
        directories: dict[int, PackDirectory] = {}
        for number in generations:
            key = pack_key(pack, number)
            try:
                directory = self._repository.objects.open_pack((key,), pack, Kind.PACK).directory
                if self._live.named[pack] == {directory.digest()}:
                    directories[number] = directory
            except UNREADABLE as error:
                self.warnings.append(f"{error.message}; what is left of that pack stays as it is")
        state = judge_pack(pack, generations, directories, self._live.masks[pack], page_size)
        if state.keeper is None:
            self.warnings.append(f"{pack_key(pack)} is not what a backup needs, or lacks pages; it stays as it is")
        return state


@dataclass(frozen=True, slots=True)
class Written:
    """A generation that was read back. ``replaced`` are the sizes of those below it, by key."""

    pack: bytes
    size: int
    replaced: dict[str, int]


class PackWriter:
    """Writes packs again and reads them whole. Used by one thread; holds two packs in memory."""

    def __init__(self, repository: Repository, live: LivePages) -> None:
        self._repository = repository
        self._storage = repository.storage
        self._live = live
        self._key = repository.ring.fingerprint_key.reveal()

    def write(
        self, rewrites: Sequence[Rewrite], check: Callable[[], None], warnings: list[str]
    ) -> Iterator[list[Written]]:
        """Carry out rewrites in batches; what is handed over is durable and was read back.

        A pack that cannot be read whole is left alone with a warning, as are all others once the volume is full.
        Raises: what ``check`` raises; StoreError.
        """
        batch: list[tuple[Rewrite, int]] = []
        written = 0
        for one in rewrites:
            check()
            try:
                size = self._put(one)
            except UNREADABLE as error:
                warnings.append(f"{error.message}; {pack_key(one.pack)} stays as it is")
                continue
            except StoreFull as error:
                warnings.append(f"{error.message}; packs that are worn stay as they are until there is room")
                break
            if size:
                batch.append((one, size))
                written += size
            if written >= _BATCH_BYTES:
                yield self._read_back(batch, warnings)
                batch, written = [], 0
        yield self._read_back(batch, warnings)

    def _put(self, one: Rewrite) -> int:
        """The size of the new generation, 0 when another prune put it or nothing would be gained."""
        source = self._open(one.pack, one.source)
        data = self._storage.get(source.key)
        directory = source.directory
        live = self._live.masks[one.pack].tolist()
        live += [0] * (len(directory) - len(live))
        builder = self._repository.objects.new_generation(one.pack, next(iter(self._live.page_sizes[one.pack])))
        keep_pages(builder, directory, source.opener(), memoryview(data), live, self._key)
        sealed = builder.finish()
        if sealed.digest != directory.digest():
            raise IntegrityError(f"write {pack_key(one.pack, one.target)}: it became another pack")
        if sealed.size >= one.size:
            return 0
        self._require_room(sealed)
        try:
            self._storage.put(pack_key(one.pack, one.target), sealed.parts)
        except ObjectExists:
            return 0
        return sealed.size

    def _require_room(self, sealed: SealedPack) -> None:
        space = self._storage.space()
        if space is not None and space.free - sealed.size < min(_FLOOR_BYTES, space.total // 20):
            raise StoreFull(f"write pack to {self._storage.url}: the volume is nearly full")

    def _read_back(self, batch: list[tuple[Rewrite, int]], warnings: list[str]) -> list[Written]:
        if not batch:
            return []
        self._storage.barrier()
        found = []
        for one, size in batch:
            try:
                self.check(one.pack, one.target)
            except UNREADABLE as error:
                warnings.append(f"{error.message}; the generation before it stays")
                continue
            generations = self._generations_below(one.pack, one.target)
            found.append(Written(one.pack, size, generations))
        return found

    def _generations_below(self, pack: bytes, target: int) -> dict[str, int]:
        folder = pack_key(pack).rpartition("/")[0] + "/"
        found = {}
        for stored in self._storage.list(folder):
            place = pack_generation(stored.key)
            if place is not None and place[0] == pack and place[1] < target:
                found[stored.key] = stored.size
        return found

    def check(self, pack: bytes, generation: int) -> None:
        """Read a generation whole, from the store: every byte authenticates and every live page is there.

        Raises: IntegrityError, ObjectMissing, FormatUnsupported, StoreUnavailable.
        """
        opened = self._open(pack, generation)
        data = memoryview(self._storage.get(opened.key))
        start, _ = parse_directory(bytes(data[-TRAILER.size :]), len(data), opened.key)
        check_pages(opened.directory, opened.opener(), data, self._live.masks[pack], self._key)
        check_padding(data[int(opened.directory.offsets[-1]) : start], opened.sealer, opened.key)

    def _open(self, pack: bytes, generation: int) -> OpenPack:
        key = pack_key(pack, generation)
        self._repository.objects.forget_packs([key])
        return self._repository.objects.open_pack((key,), pack, Kind.PACK)
