"""Fixtures and rules for all tests: real servers by version, what may be skipped, slow tests only when asked for."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.servers import (
    EXTRAS,
    MAJORS,
    BinariesMissing,
    Proxy,
    Server,
    adopt,
    binaries,
    create,
    make_folder,
    remove_folder,
    select,
)
from tests.servers.binaries import find
from tests.servers.leftovers import clear_leftovers

TESTING_PAGE = Path(__file__).resolve().parent.parent / "docs" / "testing.md"
DEFAULT_VERSION = str(MAJORS[-1])
CAP_SYS_ADMIN = 21


def in_ci() -> bool:
    """Say whether a skipped test counts as failed."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


@functools.cache
def may_skip_in_ci() -> frozenset[str]:
    """Return the tests, as file::name without parameters, that docs/testing.md allows to be skipped in CI."""
    text = TESTING_PAGE.read_text(encoding="utf-8") if TESTING_PAGE.exists() else ""
    _, _, section = text.partition("## Tests that may be skipped in CI")
    return frozenset(re.findall(r"^- `(tests/[^`]+::[^`]+)`", section.partition("\n## ")[0], re.MULTILINE))


# -- the command line --


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--slow``."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_sessionstart(session: pytest.Session) -> None:
    """End what killed test runs have left running; once, not in each worker of pytest-xdist."""
    if not hasattr(session.config, "workerinput"):
        clear_leftovers()


def pytest_report_header() -> list[str]:
    """Name the servers at hand and those that are missing."""
    present, missing = [], []
    for version in [*map(str, MAJORS), *EXTRAS]:
        try:
            present.append(f"{version} ({find(version).name})" if version.isdigit() else version)
        except BinariesMissing:
            missing.append(version)
    lines = [f"PostgreSQL: {', '.join(present) or 'none'}"]
    if missing:
        lines.append(
            f"PostgreSQL missing: {', '.join(missing)}; {'their tests fail' if in_ci() else 'their tests are skipped'}"
        )
    return lines


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless ``--slow`` is given."""
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


# -- what a test needs --


def can_mount() -> bool:
    """Say whether this process may mount: root with the right to, and loop devices or FUSE."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    rights = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    allowed = rights is not None and bool(int(rights[1], 16) & 1 << CAP_SYS_ADMIN)
    return allowed and any(Path(device).exists() for device in ("/dev/loop-control", "/dev/fuse"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests whose rights are missing here, naming the right."""
    if item.get_closest_marker("mounts") and not can_mount():
        pytest.skip("needs root with CAP_SYS_ADMIN and loop devices or FUSE")
    if item.get_closest_marker("root") and (sys.platform == "win32" or os.geteuid() != 0):
        pytest.skip("needs root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, turn a skipped test that docs/testing.md does not name into a failed one."""
    report = yield
    name = item.nodeid.partition("[")[0]
    if in_ci() and report.skipped and not hasattr(report, "wasxfail") and name not in may_skip_in_ci():
        reason = call.excinfo.value if call.excinfo else "no reason given"
        report.outcome = "failed"
        report.longrepr = f"{name} was skipped in CI, which docs/testing.md does not allow: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """In CI, do not let a whole file skip itself."""
    report = yield
    if in_ci() and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped itself in CI: {report.longrepr}"
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each version of its mark ``pg``; once on the newest major without the mark."""
    if "pg_version" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("pg")
    versions = select(mark.args[0]) if mark else [DEFAULT_VERSION]
    metafunc.parametrize("pg_version", versions, ids=[f"pg{version}" for version in versions], scope="session")


# -- servers --


@pytest.fixture(scope="session")
def shared_servers() -> Iterator[dict[str, Server]]:
    """Hold the servers that tests share, one a version, until the session ends."""
    servers: dict[str, Server] = {}
    yield servers
    for server in servers.values():
        server.destroy()


def _need(version: str) -> None:
    """Skip the test when the programs of ``version`` are not here (in CI that counts as failed)."""
    try:
        binaries(version)
    except BinariesMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def server(pg_version: str, shared_servers: dict[str, Server]) -> Server:
    """The shared server of this version. A test leaves it as it was; databases of its own it drops."""
    _need(pg_version)
    found = shared_servers.get(pg_version)
    if found is None:
        found = shared_servers[pg_version] = create(pg_version)
    if not found.running:
        found.start()
    return found


class NewServer:
    """Makes servers of a test's own, gone at its end: ``new_server(config={...})``; see ``tests.servers.create``."""

    def __init__(self, version: str) -> None:
        """Make servers of ``version`` unless a call names another."""
        self.version = version
        self.made: list[Server] = []

    def __call__(
        self,
        version: int | str | None = None,
        *,
        config: Mapping[str, str] | None = None,
        initdb_args: Sequence[str] = ("--data-checksums",),
        start: bool = True,
    ) -> Server:
        """Create a server and, unless ``start`` is off, start it."""
        wanted = str(version or self.version)
        _need(wanted)
        made = create(wanted, config=config, initdb_args=initdb_args, start=start)
        self.made.append(made)
        return made

    def adopt(
        self,
        data_directory: Path,
        version: int | str | None = None,
        *,
        config: Mapping[str, str] | None = None,
        own: bool = True,
        start: bool = True,
    ) -> Server:
        """Start the server of a restored directory; see ``tests.servers.adopt``."""
        wanted = str(version or self.version)
        _need(wanted)
        made = adopt(data_directory, wanted, config=config, own=own, start=start)
        self.made.append(made)
        return made


@pytest.fixture
def new_server(pg_version: str) -> Iterator[NewServer]:
    """Make servers of this version that only this test uses, and adopt restored directories."""
    maker = NewServer(pg_version)
    yield maker
    for made in maker.made:
        made.destroy()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder, short path, owned by the servers' account, open to everybody (``tmp_path`` is private)."""
    folder = make_folder("open")
    yield folder
    remove_folder(folder)


@pytest.fixture
def proxy() -> Iterator[Callable[[Server], Proxy]]:
    """Put a proxy that can lose the network before a server: ``proxy(server).cut()``."""
    with contextlib.ExitStack() as stack:

        def before(server: Server) -> Proxy:
            return stack.enter_context(Proxy(server.port, parameters={"user": server.superuser, "dbname": "postgres"}))

        yield before
