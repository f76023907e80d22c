"""Reading whole packs: every stored byte authenticated, every chunk recognized by its fingerprint.

A pack is read in one piece (33 MiB at most in practice) by each thread; what stays in memory is the raw length of each
chunk: 17 MB per TiB of database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from datamanager.base.errors import IntegrityError, ObjectMissing, StoreUnavailable
from datamanager.base.pipeline import Channel, StopToken, TaskGroup
from datamanager.engine.verify.findings import Findings, cause, require_store
from datamanager.engine.verify.rows import NO_CHUNKS, U32
from datamanager.repository.format import HEADER, MAX_CONTAINER_BYTES, TRAILER, Kind
from datamanager.repository.keys import Ring
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.packs.pack import (
    NO_FINGERPRINT,
    ChunkOpener,
    PackDirectory,
    check_padding,
    fingerprint,
    open_directory,
    parse_directory,
)
from datamanager.repository.sealing import Header, Sealer
from datamanager.storage.base import Storage


@dataclass(frozen=True, slots=True)
class PackReport:
    """What reading one copy of a pack showed.

    Args:
        digest: of its directory; empty if that cannot be read.
        raw: raw bytes of each chunk, 0 for one that is damaged.
        faults: what is wrong, for people.
        bad: numbers of the damaged chunks.
        sha256: of all its bytes, for metadata packs, whose twins must be equal.
        missing: the object was not there.
        masks: which pages of each chunk this generation holds; None when all are there.
    """

    key: str
    identity: bytes
    size: int
    digest: bytes
    raw: U32
    faults: tuple[str, ...]
    bad: tuple[int, ...]
    sha256: bytes = b""
    missing: bool = False
    masks: U32 | None = None

    @property
    def readable(self) -> bool:
        """The directory authenticates, so that its whole chunks can be restored."""
        return bool(self.digest)


class PackVerifier:
    """Reads packs of one repository. Thread-safe."""

    def __init__(self, storage: Storage, ring: Ring, stop: StopToken) -> None:
        self._storage = storage
        self._ring = ring
        self._stop = stop

    def read(self, key: str, identity: bytes, kind: Kind) -> PackReport:
        """Read and authenticate one copy. Raises: StoreError when the store is gone, Cancelled."""
        try:
            data = self._storage.get(key, 0, MAX_CONTAINER_BYTES + 1)
            return self._verify(key, identity, kind, data)
        except UNREADABLE as error:
            if isinstance(error, StoreUnavailable):
                require_store(self._storage)
            missing = isinstance(error, ObjectMissing)
            return PackReport(key, identity, 0, b"", NO_CHUNKS, (cause(error),), (), missing=missing)

    def _verify(self, key: str, identity: bytes, kind: Kind, data: bytes) -> PackReport:
        header = Header.parse(data, key)
        if header.kind is not kind or header.id != identity:
            raise IntegrityError(f"read {key}: holds another object")
        sealer = Sealer(self._ring.epoch_key(header.epoch, key), header, self._ring.repository)
        start, length = parse_directory(data[-TRAILER.size :], len(data), key)
        view = memoryview(data)
        directory = open_directory(data[start : start + length], header, sealer, key, start)
        faults: list[str] = []
        try:
            check_padding(view[int(directory.offsets[-1]) : start], sealer, key)
        except IntegrityError:
            faults.append("its padding was changed")
        bad = self._bad_chunks(directory, sealer, view, key, kind)
        if bad:
            faults.append(f"{len(bad)} of its {len(directory)} chunks are damaged: {_numbers(bad)}")
        raw = directory.raw.copy()
        raw[bad] = 0
        sha256 = hashlib.sha256(data).digest() if kind is Kind.META else b""
        return PackReport(
            key,
            identity,
            len(data),
            directory.digest(),
            raw,
            tuple(faults),
            tuple(bad),
            sha256,
            masks=directory.masks,
        )

    def _bad_chunks(
        self, directory: PackDirectory, sealer: Sealer, view: memoryview, key: str, kind: Kind
    ) -> list[int]:
        opener = ChunkOpener(sealer, directory, key)
        secret = self._ring.fingerprint_key.reveal()
        offsets = directory.offsets.tolist()
        bad = []
        for chunk in range(len(directory)):
            self._stop.check()
            if directory.masks is not None and not directory.masks[chunk]:
                continue  # nothing of it is stored in this generation
            try:
                raw = opener.open(chunk, view[offsets[chunk] : offsets[chunk + 1]])
            except IntegrityError:
                bad.append(chunk)
                continue
            if not directory.complete(chunk):
                continue  # authentic and as long as its pages; the fingerprint is that of all its pages
            expected = NO_FINGERPRINT if kind is Kind.META else fingerprint(secret, raw)
            if directory.fingerprint(chunk) != expected:
                bad.append(chunk)
        return bad


def _numbers(values: Sequence[int]) -> str:
    shown = ", ".join(str(value) for value in values[:8])
    return shown if len(values) <= 8 else f"{shown} and {len(values) - 8} more"


def is_plausible(size: int) -> bool:
    """Whether a pack can have that many bytes."""
    return HEADER.size + TRAILER.size < size <= MAX_CONTAINER_BYTES


def read_all(
    verifier: PackVerifier,
    wanted: Iterable[tuple[str, bytes, Kind]],
    threads: int,
    findings: Findings,
    stop: StopToken,
) -> Iterator[PackReport]:
    """Read many packs by several threads, in no order; at most ``threads`` of them are in memory.

    Raises: StoreError, Cancelled.
    """
    with TaskGroup(stop) as group:
        work: Channel[tuple[str, bytes, Kind]] = group.channel(threads)
        reports: Channel[PackReport | None] = group.channel(2 * threads)

        def feed() -> None:
            for one in wanted:
                work.put(one)
            work.close()

        def read() -> None:
            for key, identity, kind in work:
                report = verifier.read(key, identity, kind)
                findings.read(report.size)
                reports.put(report)
            reports.put(None)

        group.start("verify-feed", feed)
        for number in range(threads):
            group.start(f"verify-{number}", read)
        ended = 0
        for report in reports:
            if report is not None:
                yield report
                continue
            ended += 1
            if ended == threads:
                return
