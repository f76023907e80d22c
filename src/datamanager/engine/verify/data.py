"""Data packs: which generation of each readers take, and what it holds.

A pack may be stored several times, since prune and heal write it again under its next number. Readers take the highest
generation that can be read, and an older one only for pages that the newer ones were not given; what else is wrong with
a superseded generation harms nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from datamanager.base.pipeline import StopToken
from datamanager.engine.verify.findings import Findings
from datamanager.engine.verify.packs import PackReport, PackVerifier, is_plausible, read_all
from datamanager.engine.verify.rows import LOST, HeldPack
from datamanager.repository.damaged import DamagedItem
from datamanager.repository.format import Kind, pack_generation, pack_id, pack_key
from datamanager.repository.repository import Repository
from datamanager.storage.base import StoredObject

Users = Mapping[bytes, Mapping[bytes, set[str]]]


@dataclass(slots=True)
class Suspect:
    """A pack that does not hold all it should; whether a backup needs what is missing, its rows say.

    Args:
        key: the generation that readers take, or would.
        chunks: what cannot be read, None for the whole pack.
        missing: there is no such object.
    """

    key: str
    what: str
    chunks: tuple[int, ...] | None
    missing: bool = False


class DataVerifier:
    """Reads the data packs of one repository. Used by one thread; several read for it.

    Args:
        users: digests by which backups know each pack, and which backups; packs without an entry are unreferenced.
        listed: everything below ``packs/`` that is a pack, by key.
    """

    def __init__(
        self,
        repository: Repository,
        findings: Findings,
        users: Users,
        listed: Mapping[str, StoredObject],
        stop: StopToken,
    ) -> None:
        self._findings = findings
        self._verifier = PackVerifier(repository.storage, repository.ring, stop)
        self._users = users
        self._listed = listed
        self._stop = stop
        self.keys: dict[bytes, list[str]] = {}  # of each pack, the newest generation first
        for key in listed:
            self.keys.setdefault(pack_id(key) or b"", []).append(key)
        for keys in self.keys.values():
            keys.sort(key=_generation, reverse=True)
        self.held: dict[bytes, HeldPack] = {}  # packs that were judged
        self.current: dict[bytes, str] = {}  # the generation that readers take, of packs that were read
        self.suspects: dict[bytes, Suspect] = {}
        self.mistaken: set[bytes] = set()  # packs that hold another content than a layer says
        self.read_keys: set[str] = set()
        self.packs_read = 0

    @property
    def unreferenced(self) -> list[str]:
        """Keys of packs that no backup uses."""
        return sorted(key for key in self._listed if (pack_id(key) or b"") not in self._users)

    def look(self) -> None:
        """Every pack that backups use is there, with a size that a pack can have."""
        for pack in self._users:
            keys = self.keys.get(pack, [])
            if not keys:
                self._lose(pack, pack_key(pack), "it is missing", missing=True)
            elif not any(is_plausible(self._listed[key].size) for key in keys):
                size = self._listed[keys[0]].size
                self._lose(pack, keys[0], f"it has {size} bytes, which no pack can have")

    def read(self, packs: Collection[bytes], threads: int) -> None:
        """Read every generation of these packs whole. Raises: StoreError, Cancelled."""
        wanted = [pack for pack in packs if pack in self.keys and pack not in self.suspects]
        self._findings.expect(sum(self._listed[key].size for pack in wanted for key in self.keys[pack]))
        jobs = ((key, pack, Kind.PACK) for pack in wanted for key in self.keys[pack])
        waiting: dict[bytes, list[PackReport]] = {}
        for report in read_all(self._verifier, jobs, threads, self._findings, self._stop):
            self.read_keys.add(report.key)
            reports = waiting.setdefault(report.identity, [])
            reports.append(report)
            if len(reports) == len(self.keys[report.identity]):
                self._judge(report.identity, waiting.pop(report.identity))

    def _judge(self, pack: bytes, reports: list[PackReport]) -> None:
        if pack not in self._users:
            for report in reports:
                if report.faults and not report.missing:
                    self._findings.warn(f"{report.key}: {'; '.join(report.faults)}; no backup uses it")
            return
        self.packs_read += 1
        reports.sort(key=lambda one: _generation(one.key), reverse=True)
        readable = [report for report in reports if report.readable]
        if not readable:
            first = reports[0]
            self._lose(pack, first.key, first.faults[0], missing=all(report.missing for report in reports))
            return
        digests = self._users[pack]
        fitting = [report for report in readable if report.digest in digests]
        taken = (fitting or readable)[0]
        self.current[pack] = taken.key
        for newer in reports[: reports.index(taken)]:
            if not newer.missing:
                what = "it is another pack" if newer.readable else newer.faults[0]
                self._findings.damage(newer.key, f"{what}; the generation before it is used", [], redundant=True)
        self.held[pack] = _held(fitting or [taken])
        for digest, backups in digests.items():
            if digest != taken.digest:
                self._findings.damage(taken.key, "it is another pack than the backup was made with", backups)
                self.mistaken.add(pack)
        for fault in taken.faults if not taken.bad else taken.faults[:-1]:
            self._findings.damage(taken.key, fault, [], redundant=True)
        if taken.bad:
            self.suspects[pack] = Suspect(taken.key, taken.faults[-1], taken.bad)

    def _lose(self, pack: bytes, key: str, what: str, *, missing: bool = False) -> None:
        self.held[pack] = LOST
        self.suspects[pack] = Suspect(key, what, None, missing)

    def damaged(self, needed: Mapping[bytes, Iterable[int]]) -> list[DamagedItem]:
        """What writers must not rely on.

        Args: needed - by pack, the chunks of which some backup needs a page that is not there.
        """
        items = []
        for pack in {*self.suspects, *self.mistaken, *needed}:
            suspect = self.suspects.get(pack)
            if suspect is not None and (suspect.chunks is not None or pack in needed):
                items.append(DamagedItem(suspect.key, suspect.chunks, suspect.what))
            if pack in self.mistaken:
                items.append(DamagedItem(self.current[pack], None, "it is another pack"))
            elif pack in needed and pack in self.current:
                bad = set(suspect.chunks or ()) if suspect else set()
                lacking = tuple(sorted(set(needed[pack]) - bad))
                if lacking:
                    items.append(DamagedItem(self.current[pack], lacking, "pages that a backup needs are not there"))
        return sorted(items, key=lambda one: one.key)


def _held(reports: list[PackReport]) -> HeldPack:
    """What readers find in the generations of one pack, newest first: of each page the newest that holds it."""
    if len(reports) == 1 or reports[0].masks is None:
        return HeldPack(reports[0].raw, reports[0].masks)
    lengths = np.maximum.reduce([report.raw for report in reports])
    good = np.zeros(len(lengths), np.uint32)
    seen = np.zeros(len(lengths), np.uint32)
    for report in reports:
        masks = np.full(len(lengths), 0xFFFF_FFFF, np.uint32) if report.masks is None else report.masks
        whole = np.ones(len(lengths), np.bool_)
        whole[list(report.bad)] = False
        good |= np.where(whole, masks & ~seen, np.uint32(0))
        seen |= masks
    return HeldPack(lengths, good)


def _generation(key: str) -> int:
    found = pack_generation(key)
    return found[1] if found else 0
