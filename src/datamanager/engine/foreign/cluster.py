"""Restoring a script of pg_dumpall into a new cluster beside the present ones.

A script of all databases makes roles and databases by their own names and sets what holds for all of them, so it goes
into no server that has something already. initdb makes a directory, a server that keeps to itself runs on it while
psql reads the script, and then it is stopped. Until the end its postgresql.conf has another name: no other start of the
directory gets past that, whatever kills this program.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datamanager.base.clock import Clock
from datamanager.base.errors import IntegrityError, RestoreFailed, TargetTooSmall
from datamanager.base.events import Listener, PhaseStarted, Touched, Warned
from datamanager.base.files import sync_directory, sync_tree
from datamanager.base.pipeline import StopToken
from datamanager.base.units import format_size
from datamanager.engine.foreign.client import client_session, run_client
from datamanager.engine.foreign.loading import FileProgress, check_psql, check_script, programs_from, psql_words
from datamanager.engine.foreign.recognise import ForeignFile
from datamanager.engine.foreign.script import Feed, Survey
from datamanager.engine.foreign.streams import opened_plain
from datamanager.engine.foreign.toc import major_of
from datamanager.engine.restore.plan import (
    UNFINISHED_MARK,
    RestoreOptions,
    VolumeNeed,
    check_place,
    place_tablespaces,
    volume_needs,
)
from datamanager.postgres.account import Account
from datamanager.postgres.clone import prepare_clone
from datamanager.postgres.local_server import LocalServer
from datamanager.postgres.programs import Programs, run_program
from datamanager.repository.manifest import Tablespace

_CONF = "postgresql.conf"
_UNFINISHED_CONF = "postgresql.conf.unfinished-restore"
_PORT = 5432  # only a socket's name: the server listens on no network address
_TEXT = 2  # rows and their indexes take about twice their text
_EMPTY_CLUSTER_BYTES = 64 << 20
_USUAL_SUPERUSER = "postgres"


@dataclass(frozen=True)
class NoLimits:
    """Nothing is known of the source's settings, and nothing needs to be: no WAL of it is replayed."""

    max_connections: int | None = None
    max_worker_processes: int | None = None
    max_wal_senders: int | None = None
    max_prepared_transactions: int | None = None
    max_locks_per_transaction: int | None = None


@dataclass(frozen=True)
class ClusterPlan:
    """A restore that can be tried. ``superuser`` is whom initdb makes, ``locations`` where each tablespace goes."""

    foreign: ForeignFile
    survey: Survey
    target: Path
    programs: Programs
    account: Account
    superuser: str
    locations: Mapping[str, Path]
    volumes: tuple[VolumeNeed, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ClusterResult:
    """A new, stopped cluster."""

    target: Path
    databases: tuple[str, ...]
    bytes: int
    seconds: float


@dataclass(frozen=True)
class _Sizes:
    tablespaces: list[Tablespace]
    volumes: dict[str, int]


def plan_cluster(
    foreign: ForeignFile, target: Path, mapping: Mapping[str, Path], account: Account, install_path: Path | None = None
) -> ClusterPlan:
    """Check everything that can be checked without writing.

    Args: mapping - of tablespaces, from their former location.
    Raises: TargetUnfit, TargetTooSmall, ProgramMissing, UsageError, IntegrityError.
    """
    survey = foreign.survey
    if survey is None:
        raise IntegrityError(f"read {foreign.path}: it is no script")
    target = Path(os.path.abspath(target))  # noqa: PTH100 - links stay as the owner wrote them
    check_place(target, "target", frozenset())
    wanted = major_of(survey.dump_version)
    programs = programs_from(wanted or 14, install_path, account)
    check_psql(programs)
    # The script has names where directories have oids.
    names = dict(enumerate(survey.locations, 1))
    sizes = _Sizes(
        [Tablespace(number, survey.locations[name], 0) for number, name in names.items()],
        {"base": survey.size * _TEXT + _EMPTY_CLUSTER_BYTES, **{str(number): 0 for number in names}},
    )
    links = place_tablespaces(sizes, RestoreOptions(target, mapping), target)
    for number, place in links.items():
        check_place(place, f"directory of tablespace {names[number]}", frozenset())
    volumes = volume_needs(sizes, target, links)
    for one in volumes:
        if one.need > one.free:
            raise TargetTooSmall(
                f"restore dump: {one.path} needs {format_size(one.need)}, its volume has {format_size(one.free)} free"
            )
    superuser = survey.superusers[0] if survey.superusers else _USUAL_SUPERUSER
    if _USUAL_SUPERUSER in survey.superusers:
        superuser = _USUAL_SUPERUSER
    warnings = []
    if programs.major != wanted:
        made = f"by pg_dumpall {wanted}" if wanted else "of roles and tablespaces alone"
        warnings.append(f"the script was made {made}, and the new cluster is of PostgreSQL {programs.version}")
    locations = {names[number]: place for number, place in links.items()}
    return ClusterPlan(
        foreign, survey, target, programs, account, superuser, locations, tuple(volumes), tuple(warnings)
    )


def apply_cluster(
    plan: ClusterPlan, clock: Clock, stop: StopToken, listener: Listener, on_executed: Callable[[str], None]
) -> ClusterResult:
    """Carry out a plan. A failed one leaves an unfinished directory that does not start, for inspection.

    Raises: RestoreFailed, IntegrityError, ServerDidNotStart, TargetUnfit, Cancelled.
    """
    began = clock.elapsed()
    for warning in plan.warnings:
        listener(Warned(warning))
    listener(PhaseStarted("making a cluster"))
    _make(plan, stop, on_executed)
    listener(Touched(f"data directory {plan.target}"))
    side = Path(tempfile.mkdtemp(prefix="datamanager-"))
    try:
        plan.account.take([side])
        server = _server(plan, side, on_executed)
        try:
            server.start(stop)
            listener(PhaseStarted("restoring"))
            _load(plan, server, stop, listener, on_executed)
        finally:
            server.stop()
    finally:
        shutil.rmtree(side, ignore_errors=True)
    listener(PhaseStarted("writing to disk"))
    for folder in (plan.target, *plan.locations.values()):
        sync_tree(folder)
    for folder in (*plan.locations.values(), plan.target):
        (folder / UNFINISHED_MARK).unlink(missing_ok=True)
    (plan.target / _UNFINISHED_CONF).rename(plan.target / _CONF)
    sync_directory(plan.target)
    return ClusterResult(plan.target, tuple(plan.survey.databases), plan.survey.size, clock.elapsed() - began)


def _make(plan: ClusterPlan, stop: StopToken, on_executed: Callable[[str], None]) -> None:
    for folder in (plan.target, *plan.locations.values()):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        plan.account.take([folder])
    local = ["--auth-local=peer"] if os.name != "nt" else []
    words = ["-D", str(plan.target), "-U", plan.superuser, "-E", "UTF8", "--locale=C", *local]
    words += ["--auth-host=scram-sha-256", "--data-checksums", "--no-sync"]
    done = run_program(plan.programs, "initdb", words, account=plan.account, stop=stop, on_executed=on_executed)
    if done.status != 0:
        said = (done.errors or done.output).strip().splitlines()
        raise RestoreFailed(
            f"make cluster: {said[-1] if said else 'initdb failed'}",
            hint=f"Look whether {plan.account.name} may write in {plan.target}.",
        )
    (plan.target / _CONF).rename(plan.target / _UNFINISHED_CONF)
    mark = plan.target / UNFINISHED_MARK
    mark.touch(mode=0o600)
    plan.account.take([mark])
    sync_directory(plan.target)


def _server(plan: ClusterPlan, side: Path, on_executed: Callable[[str], None]) -> LocalServer:
    socket = side / f"s{secrets.token_hex(2)}"
    clone = prepare_clone(
        plan.target,
        side,
        NoLimits(),
        port=_PORT,
        socket_directory=socket,
        account=plan.account,
        programs=plan.programs,
        # Nothing of it is worth anything before it is whole, and then all of it is synced.
        settings={"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_wal_size": "4GB"},
    )
    return LocalServer(
        plan.target, plan.programs, plan.account, socket, _PORT, clone.options, side / "server.log",
        user=plan.superuser, on_executed=on_executed,
    )  # fmt: skip


def _load(
    plan: ClusterPlan, server: LocalServer, stop: StopToken, listener: Listener, on_executed: Callable[[str], None]
) -> None:
    progress = FileProgress(listener, plan.foreign.size)
    with (
        client_session(server.address, "postgres") as session,
        opened_plain(plan.foreign.path, stop, progress.add) as plain,
    ):
        feed = Feed(plain, plan.survey, locations=plan.locations, bootstrap=plan.superuser)
        words = psql_words(session.conninfo, single=False)
        done = run_client(plan.programs, "psql", words, session, stop=stop, on_executed=on_executed, feed=feed)
        check_script(done, feed)
