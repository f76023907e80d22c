"""A server of 17 or newer that needs no PostgreSQL: it knows what changed since the backup before and sends that."""

from __future__ import annotations

import itertools
import json
import random
import struct
from dataclasses import dataclass, field, replace

from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.postgres.facts import ServerFacts, SettingFact
from datamanager.postgres.incremental import MAGIC
from datamanager.postgres.page import relation_segment
from datamanager.postgres.source import FileReceiver, SourceEnd, SourceStart
from datamanager.postgres.wal_summaries import Summaries, SummaryRange
from tests.engine.synthetic_source import DIRECTORY_MODE, SyntheticCluster, server_manifest

PAGE = 8192
_STEP = 0x1000000


@dataclass
class SyntheticServer:
    """A cluster through time; each ``source`` is one look at it.

    Args:
        cluster: its files now; ``moved`` makes it another one.
        rewritten: share of the pages that were written although they are as before.
        silent: files of which the server does not notice changes.
        settings: what it says of its settings.
    """

    cluster: SyntheticCluster
    number: int = 1
    rewritten: float = 0.02
    silent: tuple[bytes, ...] = ()
    settings: tuple[SettingFact, ...] = ()
    _states: dict[Lsn, SyntheticCluster] = field(default_factory=dict)

    @property
    def start(self) -> Lsn:
        return Lsn(self.number * _STEP + 0x28)

    @property
    def stop(self) -> Lsn:
        return Lsn(self.number * _STEP + 0x158)

    @property
    def facts(self) -> ServerFacts:
        return replace(self.cluster.facts, settings=self.settings, timeline=1)

    def moved(self, cluster: SyntheticCluster) -> None:
        self.cluster = cluster
        self.number += 1

    def source(self, chance: random.Random | None = None) -> SyntheticIncrementSource:
        self._states[self.start] = self.cluster
        return SyntheticIncrementSource(self, chance or random.Random(0))

    def summaries(self, reach: tuple[int, Lsn] | None = None) -> Summaries:
        """Unbroken summaries with a cut at each backup's start."""
        cuts = [Lsn(0x28), *sorted(self._states), *([] if self.start in self._states else [self.start])]
        ranges = tuple(SummaryRange(1, one, other) for one, other in itertools.pairwise(cuts))
        return Summaries(
            supported=True,
            enabled=True,
            keep_seconds=0,
            ranges=ranges,
            summarized=(1, cuts[-1]),
            pending=cuts[-1],
            in_recovery=False,
            timeline=1,
            position=self.stop,
            wal_log_hints=False,
            data_checksums=False,
            wal_level="replica",
        )

    def state_at(self, start: Lsn) -> SyntheticCluster:
        return self._states[start]


class SyntheticIncrementSource:
    """Streams the server's present state, whole or against the manifest uploaded."""

    def __init__(self, server: SyntheticServer, chance: random.Random) -> None:
        self._server = server
        self._cluster = server.cluster
        self._chance = chance
        self.stubs: list[bytes] = []

    def run(self, receiver: FileReceiver, stop: StopToken, upload: bytes | None = None) -> SourceEnd:
        start, end = self._server.start, self._server.stop
        known, parent = _parent_of(upload) if upload is not None else (set(), None)
        members: dict[bytes, bytes] = {}
        receiver.start(SourceStart(start, 1, (), None))
        label = b"START WAL LOCATION: %s\nLABEL: test\n" % str(start).encode()
        if parent is not None:
            label += b"INCREMENTAL FROM LSN: %s\nINCREMENTAL FROM TLI: 1\n" % str(parent).encode()
        members[b"backup_label"] = label
        for path in self._cluster.directories:
            receiver.directory(path, DIRECTORY_MODE)
        before = self._server.state_at(parent).files if parent is not None else {}
        for path, content in self._cluster.files.items():
            if path in known and relation_segment(path) is not None and content and len(content) % PAGE == 0:
                folder, _, name = path.rpartition(b"/")
                members[folder + b"/INCREMENTAL." + name] = self._stub(
                    content if path in self._server.silent else before[path], content
                )
            else:
                members[path] = content
        for path, content in members.items():
            stop.check()
            self._send(receiver, path, content)
        sent = SyntheticCluster(PAGE, members, (), self._cluster.system_identifier)
        return SourceEnd(end, 1, server_manifest(sent), checksum_failure=False)

    def _send(self, receiver: FileReceiver, path: bytes, content: bytes) -> None:
        receiver.begin_file(path, 0o600, len(content))
        position = 0
        while position < len(content):
            size = self._chance.choice((7, 100, 5000, PAGE, 32768, 100_000))
            receiver.write(memoryview(content)[position : position + size])
            position += size
        receiver.end_file()

    def _stub(self, before: bytes, now: bytes) -> bytes:
        pages = range(len(now) // PAGE)
        changed = [n for n in pages if before[n * PAGE : (n + 1) * PAGE] != now[n * PAGE : (n + 1) * PAGE]]
        changed = sorted(
            {*changed, *(n for n in pages if self._chance.random() < self._server.rewritten)}
        )  # written, yet as before
        head = struct.pack(f"=III{len(changed)}I", MAGIC, len(changed), len(now) // PAGE, *changed)
        if changed:
            head += bytes(-len(head) % PAGE)
        return head + b"".join(now[n * PAGE : (n + 1) * PAGE] for n in changed)


def _parent_of(upload: bytes) -> tuple[set[bytes], Lsn]:
    value = json.loads(upload)
    return {one["Path"].encode() for one in value["Files"]}, Lsn.parse(value["WAL-Ranges"][0]["Start-LSN"])
