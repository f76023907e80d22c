"""An archive in a folder, a receiver at work in a thread, and the comparison with the server's own segments."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import DataManagerError
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.wal.receive import ReceiveOptions, receive_wal
from datamanager.engine.wal.state import ReceiverState
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.wal.names import SEGMENT, segment_place
from datamanager.postgres.wal.slot import SlotKeeper
from datamanager.repository.format import WAL_FOLDER, folders
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line, WalArchive
from datamanager.repository.wal.names import Range
from datamanager.storage.local import LocalStorage
from tests.engine.conftest import SECRET, Heard
from tests.servers import Server

LIMITED = {"max_slot_wal_keep_size": "1GB"}
SLOT = "datamanager_tests"


def open_repository(folder: Path) -> Repository:
    """The same as another process finds it."""
    storage = LocalStorage(folder / "repository", growing=[WAL_FOLDER])
    return Repository.open(storage, SECRET, SystemClock())


def system_of(server: Server) -> int:
    return int(server.value("select system_identifier from pg_control_system()"))


def flushed(server: Server) -> Lsn:
    return Lsn.parse(server.value("select pg_current_wal_flush_lsn()::text"))


@contextlib.contextmanager
def keeper(server: Server) -> Iterator[SlotKeeper]:
    """The tests' slot."""
    with StopToken() as stop, SlotKeeper.opened(ServerAddress(server.dsn), SLOT, stop, lambda text: None) as found:
        yield found


class Receiving:
    """A receiver in a thread. ``state`` is the last it told; ``failure`` what ended it."""

    def __init__(self, repository: Repository, system: int, dsn: str, **options: object) -> None:
        wanted = ReceiveOptions("tests", SLOT, "datamanager_tests", interval_seconds=0.2, retry_seconds=(0.2, 3))
        self.options = replace(wanted, **options)  # type: ignore[arg-type]
        self.archive = WalArchive(repository, system)
        self.address = ServerAddress(dsn)
        self.stop = StopToken()
        self.heard = Heard()
        self.state = ReceiverState()
        self.states: list[ReceiverState] = []
        self.failure: DataManagerError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            receive_wal(
                lambda: self.archive, self.address, self.options, self.stop, self.heard, SystemClock(), self._tell
            )
        except DataManagerError as error:
            self.failure = error

    def _tell(self, state: ReceiverState) -> None:
        self.state = state
        self.states.append(state)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> float:
        """Ask for the end; how long that took in seconds."""
        begun = time.monotonic()
        self.stop.stop("the test has ended")
        self._thread.join(20)
        assert not self._thread.is_alive()
        return time.monotonic() - begun

    def close(self) -> None:
        self.end()
        self.stop.close()

    def wait_end(self, seconds: float = 60) -> DataManagerError:
        """What ended it by itself."""
        self._thread.join(seconds)
        assert self.failure is not None, self.heard.events
        return self.failure

    def until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        wait_until(condition, lambda: f"{self.state} {self.failure} {self.heard.events}", seconds)

    def until_sealed(self, at: int, seconds: float = 60) -> None:
        self.until(lambda: self.state.sealed >= at, seconds)

    def line(self, timeline: int = 1) -> Line:
        found = self.archive.line(timeline)
        assert found is not None
        return found


def wait_until(condition: Callable[[], object], say: Callable[[], str] = lambda: "", seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, say()
        time.sleep(0.01)


def assert_same_as_server(line: Line, server: Server, *, at_least: int = 1) -> None:
    """Every whole segment that the server still has and the archive covers is the same, byte for byte."""
    compared = 0
    reach = line.reach()
    for path in sorted((server.data_directory / "pg_wal").iterdir()):
        if not SEGMENT.match(path.name) or path.stat().st_size != line.segment_size:
            continue
        timeline, start = segment_place(path.name, line.segment_size)
        for one in reach:
            begin, end = max(start, one.start), min(start + line.segment_size, one.end)
            if timeline == line.timeline and begin < end:
                assert line.read(begin, end) == path.read_bytes()[begin - start : end - start], path.name
                compared += 1
    assert compared >= at_least


def whole_reach(line: Line) -> Range:
    """The one stretch that the line covers."""
    (found,) = line.reach()
    return found


@pytest.fixture(scope="session")
def empty_repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Deriving its key takes a second, so the tests work on copies."""
    storage = LocalStorage.create(tmp_path_factory.mktemp("empty") / "repository", folders(), growing=[WAL_FOLDER])
    return Repository.create(storage, [(SECRET, "tests")], SystemClock())


@pytest.fixture
def repository(tmp_path: Path, empty_repository: Repository) -> Repository:
    """A repository of the test's own whose folder for WAL may grow."""
    assert isinstance(empty_repository.storage, LocalStorage)
    shutil.copytree(empty_repository.storage.root, tmp_path / "repository")
    storage = LocalStorage(tmp_path / "repository", growing=[WAL_FOLDER])
    return Repository(storage, empty_repository.ring, SystemClock())


@pytest.fixture
def receive(repository: Repository) -> Iterator[Callable[..., Receiving]]:
    """Start receivers of a server into the repository; each ends with the test."""
    begun: list[Receiving] = []

    def start(server: Server, **options: object) -> Receiving:
        dsn = str(options.pop("dsn", server.dsn))
        storage = options.pop("storage", repository.storage)
        into = Repository(storage, repository.ring, SystemClock())  # type: ignore[arg-type]
        system = options.pop("system", None) or system_of(server)
        made = Receiving(into, int(str(system)), dsn, **options)
        begun.append(made)
        return made

    with contextlib.ExitStack() as stack:
        yield start
        for one in begun:
            stack.callback(one.close)
