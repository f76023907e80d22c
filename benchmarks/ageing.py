"""The rows about age: sixty daily increments restored, verified, listed and pruned; two weeks beside pgBackRest."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.churn import Churn
from benchmarks.contender import Bar, Contender, Measurement
from benchmarks.pgbackrest import PgBackRest, Stanza
from benchmarks.process import ContenderFailed, Finished
from benchmarks.product import CLUSTER, WITH_WARNINGS, Backup, Product, need_data_directory
from benchmarks.setting import RowResult, Setting, Table, faster, measured
from benchmarks.workspace import tree_bytes
from datamanager.base.units import format_size

DAILY_SHARE = 0.01
_WEEK = 7
_TWO_WEEKS = 14
_LISTINGS = 5
# A prune may leave some of what is dead to the next one (`--max-repack`, packs hardly worth writing again).
_MOST_PRUNES = 12
_METADATA = ("meta", "meta-b", "manifests", "manifests-b", "marks", "keys")


@dataclass(frozen=True, slots=True)
class _Kept:
    """A repository of ours that stays for the whole row, and its newest backup."""

    title: str
    repository: str
    place: Path
    backup: str


def old_row(setting: Setting) -> list[RowResult]:
    """Daily increments, then the newest of them beside a fresh full backup of the same cluster.

    When a backup fails, what was measured before it is kept and the rest is left out.
    """
    product, days = setting.product, setting.days
    daily, old = _live(setting, days)
    rows = [daily]
    if old is None:
        return rows
    try:
        repository, place = product.new_repository()
        fresh = _Kept("a fresh full", repository, place, product.backup(repository, *product.full_option()).id)
    except ContenderFailed as error:
        daily.measurements.append(Measurement("a fresh full", failure=setting.workspace.reason(error)))
        return rows
    aged = _Sides(old, fresh)
    rows += [
        _beside(setting, f"Restore after {days} daily increments", "restore", _Restore, aged),
        _beside(setting, f"Verify after {days} daily increments", "verify", _Verify, aged),
        _listing(setting, old),
        _metadata(setting, aged),
        _given_back(setting, aged),
        _beside(setting, "Restore after everything but the newest was expired and pruned", "restore", _Restore, aged),
    ]
    for one in (old, fresh):
        shutil.rmtree(one.place, ignore_errors=True)
    return rows


@dataclass(frozen=True, slots=True)
class _Sides:
    old: _Kept
    fresh: _Kept


def _live(setting: Setting, days: int) -> tuple[RowResult, _Kept | None]:
    """A first backup, then a change and a backup for each day; no repository when one of them failed."""
    product, churn = setting.product, Churn(setting.server, seed=3)
    setting.say(f"  {days} daily increments")
    found = Measurement(f"DataManager {setting.version}, encrypted, a daily increment")
    methods, kept = Counter[str](), None
    try:
        repository, place = product.new_repository()
        backup, first = product.backup(repository), tree_bytes(place)
        for day in range(1, days + 1):
            churn.touch_share(DAILY_SHARE)
            backup = product.backup(repository)
            methods[backup.told] += 1
            found.seconds.append(backup.finished.seconds)
            found.stored_bytes = (tree_bytes(place) - first) // day
            if day % 10 == 0:
                setting.say(f"    day {day}: {found.seconds[-1]:.2f} s, repository {format_size(tree_bytes(place))}")
        found.command = product.shown(*product.backup_arguments(repository))
        kept = _Kept(f"the last of {days} increments", repository, place, backup.id)
    except ContenderFailed as error:
        found.failure = f"day {len(found.seconds) + 1}: {setting.workspace.reason(error)}"
    found.remark = ", ".join(f"{count} by {told}" for told, count in methods.most_common())
    note = (
        f"{days} days; each day a row changed on 1 % of all pages ({churn.stayed():.0%} of the new versions stayed on "
        "their page), a checkpoint, a backup. 'Stored' is what a day added on average."
    )
    return RowResult("Daily increments", note, [found], [], setting.server.data_bytes(), ours=found.name), kept


class _OfKept:
    """What is done to a repository that stays."""

    def __init__(self, product: Product, kept: _Kept) -> None:
        self._product = product
        self._kept = kept
        self.name = kept.title
        self.command = ""
        self.remark = ""

    def prepare(self) -> None:
        return

    def stored_bytes(self) -> int | None:
        return None

    def clean(self) -> None:
        return

    def _call(self, arguments: tuple[str, ...], sample_memory: bool) -> Finished:
        self.command = self._product.shown(*(one if one != self._kept.backup else "BACKUP_ID" for one in arguments))
        finished = self._product.call(*arguments, sample_memory=sample_memory)
        self.remark = "ended with warnings" if finished.exit_code == WITH_WARNINGS else ""
        return finished


class _Restore(_OfKept):
    def run(self, sample_memory: bool) -> Finished:
        where = ("--repo", self._kept.repository, "--target", str(self._target))
        finished = self._call(("restore", self._kept.backup, *where), sample_memory)
        need_data_directory(self._target)
        return finished

    def stored_bytes(self) -> int | None:
        return tree_bytes(self._target)

    def clean(self) -> None:
        shutil.rmtree(self._target, ignore_errors=True)

    @property
    def _target(self) -> Path:
        return self._product.folder / "restored"


class _Verify(_OfKept):
    def run(self, sample_memory: bool) -> Finished:
        return self._call(("repo", "verify", self._kept.repository, "--backup", self._kept.backup), sample_memory)


class _List(_OfKept):
    def run(self, sample_memory: bool) -> Finished:
        return self._call(("backup", "list", "--repo", self._kept.repository), sample_memory)


def _beside(
    setting: Setting, title: str, verb: str, kind: Callable[[Product, _Kept], Contender], sides: _Sides
) -> RowResult:
    old, fresh = kind(setting.product, sides.old), kind(setting.product, sides.fresh)
    note = "Both repositories hold the same cluster as it is now, and are in the page cache."
    bar = Bar(f"{verb}, speed against that of a fresh full", faster(fresh, old), 0.7, True)
    return measured(setting, title, note, [old, fresh], [bar])


def _listing(setting: Setting, old: _Kept) -> RowResult:
    title, note = (
        "Opening an old repository",
        f"`backup list` of {setting.days + 1} backups, median of {_LISTINGS} runs.",
    )
    contender = _List(setting.product, old)
    return measured(setting, title, note, [contender], [], rounds=_LISTINGS, table=Table.TIME)


def _metadata(setting: Setting, sides: _Sides) -> RowResult:
    found = []
    for one in (sides.old, sides.fresh):
        size = sum(tree_bytes(one.place / folder) for folder in _METADATA if (one.place / folder).is_dir())
        found.append(Measurement(f"metadata, both copies: {one.title}", stored_bytes=size))
    whole = Measurement(f"the whole repository: {sides.old.title}", stored_bytes=tree_bytes(sides.old.place))
    note = f"Folders {', '.join(_METADATA)}."
    return RowResult(
        "Metadata of an old repository", note, [*found, whole], [], setting.server.data_bytes(), table=Table.SIZE
    )


def _given_back(setting: Setting, sides: _Sides) -> RowResult:
    """Let all backups but the newest expire, prune, and compare with the fresh repository."""
    product, old = setting.product, sides.old
    setting.say("  everything but the newest expired, then pruned")
    before, fresh = tree_bytes(old.place), tree_bytes(sides.fresh.place)
    found = [
        Measurement(f"fresh repository with {sides.fresh.title}", stored_bytes=fresh),
        Measurement(f"repository with {setting.days + 1} backups", stored_bytes=before),
    ]
    pruned = Measurement("after the first prune")
    found.append(pruned)
    try:
        product.call("expire", CLUSTER, "--keep-last", "1", "--repo", old.repository)
        arguments = ("repo", "prune", old.repository)
        pruned.command = product.shown(*arguments)
        pruned.remark = f"{product.call(*arguments).seconds:.1f} s"
        pruned.stored_bytes = tree_bytes(old.place)
        size, times = pruned.stored_bytes, 1
        while times < _MOST_PRUNES:
            product.call(*arguments)
            after, times = tree_bytes(old.place), times + 1
            if after >= size:
                break
            size = after
        found.append(Measurement(f"when a further prune gives nothing back ({times} in all)", stored_bytes=size))
    except ContenderFailed as error:
        pruned.failure = setting.workspace.reason(error)

    def share(known: dict[str, Measurement]) -> float:
        return (known[pruned.name].stored_bytes or 0) / fresh

    bar = Bar("space, against a fresh full", share, 1.3, False)
    note = "Every backup but the newest expired (`expire --keep-last 1`), then pruned; the whole folder is counted."
    return RowResult("Space given back", note, found, [bar], setting.server.data_bytes(), table=Table.SIZE)


def dailies_row(setting: Setting) -> list[RowResult]:
    """Fourteen days, 1 % of the pages changed each: our repository beside pgBackRest's, a full every week."""
    days = min(_TWO_WEEKS, setting.days) if setting.days else _TWO_WEEKS
    churn = Churn(setting.server, seed=4)
    sides = [_OurDays(setting), _PeerDays(setting)]
    setting.say(f"  {days} daily backups")
    for day in range(days):
        if day:
            churn.touch_share(DAILY_SHARE)
        for side in sides:
            side.backup(day)
    for side in sides:
        side.end()
        setting.say(f"    {side.found.name}: {side.found.failure or format_size(side.found.stored_bytes or 0)}")
    ours, peer = sides[0].found, sides[1].found

    def share(known: dict[str, Measurement]) -> float:
        return (known[ours.name].stored_bytes or 0) / (known[peer.name].stored_bytes or 1)

    bar = Bar("repository, against pgBackRest", share, 0.35, False, but=setting.peer)
    note = (
        f"{days} backups, before each but the first a row changed on 1 % of all pages. pgBackRest takes a full one "
        "every seventh day and increments between; blocks where its release has them. 'Stored' is our whole "
        "repository with its WAL, and pgBackRest's backups without theirs. Times are those after the first day."
    )
    return [
        RowResult("Two weeks of daily backups", note, [ours, peer], [bar], setting.server.data_bytes(), ours=ours.name)
    ]


class _Days:
    """One side of the two weeks; after a failure nothing more is tried."""

    def __init__(self, name: str) -> None:
        self.found = Measurement(name)

    def backup(self, day: int) -> None:
        if self.found.failure:
            return
        try:
            seconds = self._take(day)
        except ContenderFailed as error:
            self.found.failure = str(error)
            return
        if day:
            self.found.seconds.append(seconds)

    def end(self) -> None:
        raise NotImplementedError

    def _take(self, day: int) -> float:
        raise NotImplementedError


class _OurDays(_Days):
    def __init__(self, setting: Setting) -> None:
        super().__init__(f"DataManager {setting.version}, encrypted")
        self._product = setting.product
        self._place: Path | None = None
        self._repository = ""

    def _take(self, day: int) -> float:
        if self._place is None:
            self._repository, self._place = self._product.new_repository()
        taken: Backup = self._product.backup(self._repository)
        self.found.command = self._product.shown(*self._product.backup_arguments(self._repository))
        self.found.remark = taken.told
        return taken.finished.seconds

    def end(self) -> None:
        if self._place is not None:
            self.found.stored_bytes = tree_bytes(self._place)
            shutil.rmtree(self._place, ignore_errors=True)


class _PeerDays(_Days):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.tool.name(encrypted=True) if setting.tool else "pgBackRest, encrypted")
        self._tool: PgBackRest | None = setting.tool
        self._absent = setting.tool_failure
        self._workspace = setting.workspace
        self._stanza: Stanza | None = None

    def _take(self, day: int) -> float:
        if self._tool is None:
            raise ContenderFailed(self._absent)
        if self._stanza is None:
            folder = self._workspace.path / f"pgbackrest-{self._tool.server.folder.name}-days"
            self._stanza = Stanza(self._tool, folder, encrypted=True)
            self._stanza.create()
        kind = "full" if day % _WEEK == 0 else "incr"
        self._stanza.archive()
        arguments = (f"--type={kind}", "--repo1-retention-full=9", "backup")
        seconds = self._stanza.call(*arguments).seconds
        self.found.command = self._workspace.shown(self._stanza.argv(*arguments))
        self._stanza.rest()
        return seconds

    def end(self) -> None:
        self.found.failure = self._workspace.reason(self.found.failure)
        if self._stanza is not None:
            self.found.stored_bytes = self._stanza.stored_bytes()
            self._stanza.remove()
