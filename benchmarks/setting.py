"""What the rows share: the setting they run in, what they give back, and the few bars that many of them use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from benchmarks.contender import Bar, Contender, Measurement, measure
from benchmarks.pgbackrest import BAR_VERSION, PgBackRest
from benchmarks.process import ContenderFailed, Finished
from benchmarks.product import Product
from benchmarks.server import BenchmarkServer
from benchmarks.workspace import Workspace
from datamanager.base.units import format_size


class Table(Enum):
    """How the report shows a row: by speed, by time alone, by memory, by size."""

    SPEED = "speed"
    TIME = "time"
    MEMORY = "memory"
    SIZE = "size"


@dataclass(slots=True)
class RowResult:
    """A measured row: what the report shows. ``ours`` is the contender that the others are compared with.

    ``figures`` are named numbers that rows of other sizes are compared with.
    """

    title: str
    note: str
    measurements: list[Measurement]
    bars: list[Bar]
    data_bytes: int
    ours: str = ""
    table: Table = Table.SPEED
    facts: str = ""
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Setting:
    """What every row needs; made once for each server.

    Args: files - how many small files the row of that name makes; days - length of the row about age.
    """

    workspace: Workspace
    server: BenchmarkServer
    program: str
    version: str
    rounds: int
    say: Callable[[str], None]
    files: int = 0
    days: int = 0
    product: Product = field(init=False)
    tool: PgBackRest | None = field(init=False, default=None)
    tool_failure: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.product = Product(self.workspace, self.server, self.program)
        try:
            self.tool = PgBackRest(self.workspace, self.server)
        except ContenderFailed as error:
            self.tool_failure = str(error)

    def pgbackrest(self, kind: Callable[..., Contender], *, encrypted: bool) -> Contender:
        if self.tool is None:
            return Absent(f"pgBackRest, {'encrypted' if encrypted else 'not encrypted'}", self.tool_failure)
        return kind(self.tool, encrypted=encrypted)

    @property
    def peer(self) -> str:
        """Whom a ratio was measured against, when it is not the release that the bars mean."""
        if self.tool is None or self.tool.release >= BAR_VERSION:
            return ""
        return f"against pgBackRest {self.tool.version}, not the {BAR_VERSION[0]}.{BAR_VERSION[1]} that the bar means"

    def smaller_than(self, meant_bytes: int) -> str:
        """A reservation for a bar that means more data than there is here."""
        size = self.server.data_bytes()
        return "" if size >= 0.9 * meant_bytes else f"at {format_size(size)}, not the {meant_bytes / 1e9:.0f} GB meant"


class Absent:
    """Stands in a row for a contender that cannot take part at all."""

    command = ""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    def prepare(self) -> None:
        raise ContenderFailed(self._reason)

    def run(self, sample_memory: bool) -> Finished:
        raise ContenderFailed(self._reason)

    def stored_bytes(self) -> int | None:
        return None

    def clean(self) -> None:
        return


class Titled:
    """A contender under a longer name, for rows in which it takes part twice."""

    def __init__(self, inner: Contender, title: str) -> None:
        self._inner = inner
        self.title = title
        self.name = f"{inner.name}: {title}"

    @property
    def command(self) -> str:
        return self._inner.command

    def base(self) -> None:
        make_base(self._inner)

    def prepare(self) -> None:
        self._inner.prepare()

    def run(self, sample_memory: bool) -> Finished:
        return self._inner.run(sample_memory)

    def stored_bytes(self) -> int | None:
        return self._inner.stored_bytes()

    def clean(self) -> None:
        self._inner.clean()

    def remove(self) -> None:
        remove(self._inner)


def measured(
    setting: Setting,
    title: str,
    note: str,
    contenders: Sequence[Contender],
    bars: list[Bar],
    *,
    rounds: int | None = None,
    sample_memory: bool = False,
    before_round: Callable[[int], None] = lambda turn: None,
    keep: bool = False,
    table: Table = Table.SPEED,
) -> RowResult:
    """Measure a row. Args: keep - the contenders take part in a further row; whoever asks removes them."""
    setting.say(f"  {title}")
    try:
        found = measure(
            contenders, rounds or setting.rounds, setting.say, sample_memory=sample_memory, before_round=before_round
        )
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            for contender in contenders:
                remove(contender)
    for one in found:
        one.failure = setting.workspace.reason(one.failure)
    return RowResult(title, note, found, bars, setting.server.data_bytes(), ours=contenders[0].name, table=table)


def make_base(contender: Contender) -> None:
    """The first backup of a contender whose next ones are increments. Raises: as ``Contender.prepare``."""
    base = getattr(contender, "base", None)
    if base is not None:
        base()


def remove(contender: Contender) -> None:
    """Some contenders keep a repository for the whole row."""
    end = getattr(contender, "remove", None)
    if end is not None:
        end()


def faster(peer: Contender, ours: Contender) -> Callable[[dict[str, Measurement]], float]:
    """How many times as fast ours is: the peer's seconds over ours."""
    peer_name, our_name = peer.name, ours.name
    return lambda found: found[peer_name].median / found[our_name].median


def above(ours: Contender, limit: Contender) -> Callable[[dict[str, Measurement]], float]:
    """Seconds that ours takes more than the limit."""
    our_name, limit_name = ours.name, limit.name
    return lambda found: found[our_name].median - found[limit_name].median


def stored_share(ours: Contender, peer: Contender) -> Callable[[dict[str, Measurement]], float]:
    """Bytes that ours stored over those of the peer. Raises: KeyError where either is not known."""
    our_name, peer_name = ours.name, peer.name

    def share(found: dict[str, Measurement]) -> float:
        mine, other = found[our_name].stored_bytes, found[peer_name].stored_bytes
        if mine is None or not other:
            raise KeyError(peer_name)
        return mine / other

    return share


def both(*reservations: str) -> str:
    """Reservations about one bar as one text."""
    return "; ".join(one for one in reservations if one)
