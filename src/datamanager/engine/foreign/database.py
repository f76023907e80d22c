"""Restoring a dump of one database into a new database of a running server, through pg_restore or psql.

1 plan     version, name, roles, tablespaces and room; nothing is written
2 whole    what PostgreSQL's programs would not notice: data that were cut off
3 create   roles, if wished, and the database under a name for now
4 load     one transaction where the number of objects allows; the first failed statement ends it
5 rename   only now there is a database of the wanted name; after a failure everything made is dropped again
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from datamanager.base.clock import Clock
from datamanager.base.errors import (
    DataManagerError,
    RestoreFailed,
    RightMissing,
    ServerMismatch,
    TargetTooSmall,
    UsageError,
)
from datamanager.base.events import Listener, PhaseStarted, Touched, Warned
from datamanager.base.pipeline import StopToken
from datamanager.base.units import format_size
from datamanager.engine.foreign.client import ClientResult, client_session, run_client
from datamanager.engine.foreign.loading import FileProgress, check_psql, check_script, failed, programs_from, psql_words
from datamanager.engine.foreign.recognise import ForeignFile
from datamanager.engine.foreign.script import Feed, Survey
from datamanager.engine.foreign.statements import database_attributes, quoted, roles_named, unquoted
from datamanager.engine.foreign.streams import opened_plain
from datamanager.engine.foreign.target import NewDatabases, Target, check_name
from datamanager.engine.foreign.toc import Contents, major_of
from datamanager.engine.foreign.whole import check_whole
from datamanager.engine.restore.plan import VolumeNeed
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.programs import Programs

# Text of a dump compresses up to so much (requirement R77); rows and their indexes take about twice their text.
_COMPRESSED, _TEXT = 7, 2
# Each object is a lock until the transaction ends, and the server's default has room for some 6,000 of them.
_MOST_OBJECTS = 2000
_ENCODING = re.compile(r"SET client_encoding = '([^']+)'")


@dataclass(frozen=True)
class DatabaseOptions:
    """What the caller decides.

    Args:
        into: name of the new database.
        create_roles: make the roles that are missing, without the right to log in.
        no_owner: everything belongs to the connecting role, and rights are left out.
        keep_failed: leave what a failed restore made, under its name for now.
        local: the server runs on this machine, so its volumes can be looked at.
        install_path: of PostgreSQL's programs; else they are looked for.
    """

    into: str
    create_roles: bool = False
    no_owner: bool = False
    keep_failed: bool = False
    local: bool = True
    install_path: Path | None = None


@dataclass(frozen=True)
class DatabasePlan:
    """A restore that can be tried. ``volumes`` is empty where the server's room is not known."""

    foreign: ForeignFile
    options: DatabaseOptions
    target: Target
    programs: Programs
    need: int
    volumes: tuple[VolumeNeed, ...]
    missing_roles: tuple[str, ...]
    missing_tablespaces: frozenset[str]
    attributes: tuple[str, ...]
    single_transaction: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class DatabaseResult:
    """What was restored; sizes in bytes."""

    database: str
    roles_created: tuple[str, ...]
    bytes: int
    seconds: float


def plan_database(foreign: ForeignFile, options: DatabaseOptions, databases: NewDatabases) -> DatabasePlan:
    """Check everything that can be checked without writing.

    Raises: UsageError, ServerMismatch (roles), RightMissing, TargetTooSmall, ProgramMissing.
    """
    if options.create_roles and options.no_owner:
        raise UsageError("read options: --create-roles and --no-owner contradict each other", hint="Give one of them.")
    target = databases.look()
    check_name(options.into, target)
    if not (target.superuser or target.create_databases):
        raise RightMissing(
            f"restore dump: the role {target.role} may not create databases",
            hint=f"Run `ALTER ROLE {quoted(target.role)} CREATEDB` as a superuser, or connect as another role.",
        )
    dump_version = _dump_version(foreign)
    programs = programs_from(max(target.major, major_of(dump_version)), options.install_path)
    if foreign.survey is not None:
        check_psql(programs)
    missing = () if options.no_owner else tuple(sorted(_roles(foreign) - target.roles))
    _check_roles(missing, options, target)
    spaces = _tablespaces(foreign)
    need = _need(foreign)
    volumes = _volumes(need, spaces, target) if options.local else ()
    warnings = _warnings(foreign, target, spaces - target.tablespaces.keys(), volumes, dump_version)
    return DatabasePlan(
        foreign, options, target, programs, need, volumes, missing, frozenset(spaces - target.tablespaces.keys()),
        _attributes(foreign), _objects(foreign) <= _MOST_OBJECTS, tuple(warnings),
    )  # fmt: skip


def apply_database(
    plan: DatabasePlan,
    address: ServerAddress,
    databases: NewDatabases,
    clock: Clock,
    stop: StopToken,
    listener: Listener,
    on_executed: Callable[[str], None],
) -> DatabaseResult:
    """Carry out a plan; a failed one leaves the server as it was, unless what it made is to be kept.

    Raises: RestoreFailed, for a statement that failed; IntegrityError, for a dump that was cut off; ServerError,
        Cancelled.
    """
    began = clock.elapsed()
    for warning in plan.warnings:
        listener(Warned(warning))
    listener(PhaseStarted("reading the dump"))
    check_whole(plan.foreign, stop, FileProgress(listener, plan.foreign.size).add)
    created = plan.missing_roles if plan.options.create_roles else ()
    name = ""
    try:
        if created:
            databases.create_roles(created)
        listener(PhaseStarted("restoring"))
        name = databases.create(plan.options.into, plan.attributes)
        listener(Touched(f"database {name}"))
        _load(plan, address, name, stop, listener, on_executed)
        stop.check()
        databases.rename(name, plan.options.into)
    except BaseException as error:
        if plan.options.keep_failed and isinstance(error, RestoreFailed):
            error.hint = f"{error.hint} What was restored until then is in the database {name}."
            raise
        _take_back(databases, name, created, listener)
        raise
    listener(Touched(f"database {plan.options.into}"))
    return DatabaseResult(plan.options.into, created, plan.foreign.size, clock.elapsed() - began)


def _take_back(databases: NewDatabases, name: str, roles: tuple[str, ...], listener: Listener) -> None:
    try:
        if name:
            databases.drop(name)
        if roles:
            databases.drop_roles(roles)
    except DataManagerError as error:
        left = ", ".join(filter(None, (f"the database {name}" if name else "", *(f"the role {one}" for one in roles))))
        listener(Warned(f"what the failed restore made could not be dropped and may be left: {left} ({error.message})"))


def _load(
    plan: DatabasePlan,
    address: ServerAddress,
    name: str,
    stop: StopToken,
    listener: Listener,
    on_executed: Callable[[str], None],
) -> None:
    options = plan.options
    progress = FileProgress(listener, plan.foreign.size)
    with client_session(address, name) as session:
        if plan.foreign.survey is None:
            words = ["--exit-on-error", "--no-password", *(["--single-transaction"] if plan.single_transaction else [])]
            words += ["--no-owner", "--no-privileges"] if options.no_owner else []
            words += ["--no-tablespaces"] if plan.missing_tablespaces else []
            words += ["--dbname", session.conninfo, str(plan.foreign.path)]
            done = run_client(
                plan.programs, "pg_restore", words, session, stop=stop, on_executed=on_executed, read=progress.at
            )
            _check_archive(done)
            return
        with opened_plain(plan.foreign.path, stop, progress.add) as plain:
            feed = Feed(plain, plan.foreign.survey, drop_owners=options.no_owner, missing=plan.missing_tablespaces)
            done = run_client(
                plan.programs, "psql", psql_words(session.conninfo, single=plan.single_transaction), session,
                stop=stop, on_executed=on_executed, feed=feed,
            )  # fmt: skip
            check_script(done, feed)


def _check_archive(done: ClientResult) -> None:
    if done.status == 0:
        return
    lines = done.said.splitlines()
    entry = next(
        (re.sub(r"^.*?from TOC entry [^;]*; \d+ \d+ ", "", one) for one in lines if "from TOC entry" in one), ""
    )
    errors = [one.partition("pg_restore: error: ")[2] for one in lines if "pg_restore: error: " in one]
    cause = (errors or lines[-1:] or ["it ended without a word"])[0]
    cause = re.sub(r"^could not execute query: ", "", cause)
    raise failed(entry, cause, done.said)


def _dump_version(foreign: ForeignFile) -> str:
    if foreign.contents is not None:
        return foreign.contents.dump_version
    return foreign.survey.dump_version if foreign.survey is not None else ""


def _check_roles(missing: tuple[str, ...], options: DatabaseOptions, target: Target) -> None:
    if not missing:
        return
    if not options.create_roles:
        raise ServerMismatch(
            f"restore dump: the server lacks roles that own or use what is in it: {', '.join(missing)}",
            hint="Add --create-roles to make them (without the right to log in), or --no-owner to leave them out.",
        )
    if not (target.superuser or target.create_roles):
        raise RightMissing(
            f"restore dump: the role {target.role} may not create roles",
            hint=f"Run `ALTER ROLE {quoted(target.role)} CREATEROLE` as a superuser, or restore with --no-owner.",
        )


def _roles(foreign: ForeignFile) -> set[str]:
    if foreign.survey is not None:
        return foreign.survey.roles
    return {role for role in _archive_roles(foreign.contents) if role} if foreign.contents is not None else set()


def _archive_roles(contents: Contents) -> Iterator[str]:
    for entry in contents.entries:
        if _about_database(entry.kind, entry.tag):
            continue
        yield entry.owner
        if entry.kind in ("ACL", "DEFAULT ACL", "POLICY", "USER MAPPING"):
            yield from roles_named(entry.definition)


def _about_database(kind: str, tag: str) -> bool:
    """pg_restore leaves these out, for they name the dump's own database."""
    return kind.startswith("DATABASE") or tag.startswith("DATABASE ")


def _tablespaces(foreign: ForeignFile) -> set[str]:
    if foreign.survey is not None:
        return set(foreign.survey.tablespaces)
    entries = foreign.contents.entries if foreign.contents is not None else ()
    return {unquoted(one.tablespace) for one in entries if one.tablespace and not one.kind.startswith("DATABASE")}


def _objects(foreign: ForeignFile) -> int:
    if foreign.survey is not None:
        return foreign.survey.objects
    return len(foreign.contents.entries) if foreign.contents is not None else 0


def _attributes(foreign: ForeignFile) -> tuple[str, ...]:
    """How the database is to be made: as it was, else in its encoding, else as the server does by itself."""
    found: list[str] = []
    if foreign.survey is not None:
        found.append(foreign.survey.attributes)
    for entry in foreign.contents.entries if foreign.contents is not None else ():
        if entry.kind == "DATABASE":
            found.append(database_attributes(entry.definition))
        elif entry.kind == "ENCODING":
            encoding = _ENCODING.search(entry.definition)
            found.append(f"ENCODING = '{encoding[1]}'" if encoding else "")
    texts = sorted({re.sub(r"TEMPLATE = \S+\s*", "", one).strip() for one in found} - {""}, key=len, reverse=True)
    return (*texts, "")


def _need(foreign: ForeignFile) -> int:
    """Bytes that the database will take, as far as the file tells (requirement R77)."""
    if foreign.survey is not None:
        return _text_need(foreign.survey)
    contents = foreign.contents
    if contents is None or (contents.compression != "none" and contents.form != "tar"):
        return foreign.size * _COMPRESSED
    return foreign.size * _TEXT


def _text_need(survey: Survey) -> int:
    return survey.size * _TEXT


def _volumes(need: int, spaces: set[str], target: Target) -> tuple[VolumeNeed, ...]:
    """The volumes that the tables may go to, which together must hold the need. Raises: TargetTooSmall."""
    if target.data_directory is None:
        return ()
    places = [target.data_directory, *(Path(target.tablespaces[one]) for one in spaces if target.tablespaces.get(one))]
    found: dict[int, VolumeNeed] = {}
    with contextlib.suppress(OSError):
        for place in places:
            device = place.stat().st_dev
            found.setdefault(device, VolumeNeed(place, need, psutil.disk_usage(str(place)).free))
    free = sum(one.free for one in found.values())
    if found and need > free:
        names = ", ".join(str(one.path) for one in found.values())
        raise TargetTooSmall(
            f"restore dump: {names} needs {format_size(need)}, its volume has {format_size(free)} free"
        )
    return tuple(found.values())


def _warnings(
    foreign: ForeignFile, target: Target, spaces: set[str], volumes: tuple[VolumeNeed, ...], dump_version: str
) -> list[str]:
    found = []
    if max(major_of(dump_version), major_of(foreign.version)) > target.major:
        found.append(
            f"the dump is of PostgreSQL {foreign.version} (pg_dump {dump_version}), the server of {target.version}: "
            "PostgreSQL does not promise that an older server understands it"
        )
    if spaces:
        found.append(
            f"the server has no tablespace {', '.join(sorted(spaces))}: what was there goes into the default one"
        )
    if not volumes:
        found.append("the room on the server's volumes is not known from here")
    entries = foreign.contents.entries if foreign.contents is not None else ()
    if any(one.kind == "DATABASE PROPERTIES" for one in entries):
        found.append("settings of the dump's database itself (ALTER DATABASE) are not restored")
    return found
