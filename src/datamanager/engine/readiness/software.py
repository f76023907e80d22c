"""Whether this machine can run what is restored: system, programs of the major, libraries of preload and extensions."""

from __future__ import annotations

import re
from pathlib import Path

from datamanager.base.errors import DataManagerError, ProgramMissing
from datamanager.engine.readiness.finding import Finding, blocking, fine, refused, unknown, warning
from datamanager.engine.restore.plan import RestoreOptions, check_platform
from datamanager.postgres.account import Account
from datamanager.postgres.facts_model import ServerFacts
from datamanager.postgres.programs import Programs, find_programs
from datamanager.repository.manifest import Manifest

_MODULE = re.compile(r"^\s*module_pathname\s*=\s*'([^']+)'", re.MULTILINE)
_SHARES = (
    "{root}/share/extension",
    "{root}/share/postgresql/extension",
    "/usr/share/postgresql/{major}/extension",
    "/usr/share/postgresql{major}/extension",
)


def check_system(manifest: Manifest, options: RestoreOptions) -> list[Finding]:
    """Code ``system``: operating system and architecture, as PostgreSQL's files depend on them."""
    try:
        check_platform(manifest, options)
    except DataManagerError as error:
        return [refused("system", error)]
    if not (manifest.server.get("operating_system") and manifest.server.get("architecture")):
        return [
            unknown(
                "system",
                "The backup does not say on which operating system and architecture it was made.",
                "Restore it on a machine like the one that it was made on.",
            )
        ]
    return [fine("system", "Operating system and architecture are those of the backup.")]


def check_programs(
    major: int, version: str, install_path: Path | None, account: Account
) -> tuple[Programs | None, list[Finding]]:
    """Codes ``programs`` and ``version``; with them the programs, None when there are none.

    Args: version - of the backup, or its major where no more is known.
    """
    try:
        programs = find_programs(major, install_path, account=account)
    except ProgramMissing as error:
        cause = error.message.partition(": ")[2]
        return None, [
            blocking("programs", f"PostgreSQL {major} was not found here: {cause}.", error.hint, ProgramMissing)
        ]
    found = [found_programs(programs)]
    if _numbers(programs.version) < _numbers(version):
        found.append(
            warning(
                "version",
                f"The programs here are PostgreSQL {programs.version}, the backup is of {version}.",
                "Install the newest minor release first.",
            )
        )
    else:
        found.append(fine("version", f"PostgreSQL {programs.version} is not older than the backup's {version}."))
    return programs, found


def found_programs(programs: Programs) -> Finding:
    """Code ``programs``, of those that were found."""
    return fine("programs", f"PostgreSQL {programs.version} is in {programs.bin_directory} and runs.")


def check_libraries(facts: ServerFacts, programs: Programs) -> list[Finding]:
    """Codes ``preload`` (without one of these the server does not start) and ``extensions``."""
    wanted = [one.strip().strip('"') for one in facts.shared_preload_libraries.split(",") if one.strip().strip('"')]
    lost = [name for name in wanted if not programs.has_library(name)]
    found = []
    if lost:
        found.append(
            blocking(
                "preload",
                f"This installation lacks {', '.join(lost)} of the server's shared_preload_libraries.",
                "Install the packages of these extensions, or take them out of shared_preload_libraries.",
                ProgramMissing,
            )
        )
    elif wanted:
        found.append(fine("preload", f"The libraries that the server loads are there: {', '.join(wanted)}."))
    return [*found, _extensions(facts, programs)]


def _extensions(facts: ServerFacts, programs: Programs) -> Finding:
    used = sorted({one.name for database in facts.databases for one in database.extensions})
    lost = [name for name in used if not has_extension(programs, name)]
    if lost:
        return warning(
            "extensions",
            f"The databases use {', '.join(lost)}, which this installation does not have.",
            "Install the packages of these extensions.",
        )
    closed = [one.name for one in facts.databases if one.allows_connections and not one.looked_into]
    if closed or not facts.databases:
        of = f"{len(closed)} databases" if facts.databases else "its databases"
        return unknown(
            "extensions",
            f"The backup does not say which extensions {of} use.",
            "Compare the packages of this machine with those of the original.",
        )
    return fine("extensions", f"The extensions that the databases use are there: {', '.join(used) or 'none'}.")


def has_extension(programs: Programs, name: str) -> bool:
    """Whether an installation has an extension's control file and the library that it names."""
    root = programs.bin_directory.parent
    for share in _SHARES:
        control = Path(share.format(root=root, major=programs.major)) / f"{name}.control"
        if control.is_file():
            module = _MODULE.search(control.read_text(encoding="utf-8", errors="replace"))
            return module is None or programs.has_library(module[1])
    return False


def _numbers(version: str) -> tuple[int, ...]:
    """``17.10`` as (17, 10); a beta is older than everything of its major."""
    major, _, minor = version.partition(".")
    digits = re.match(r"\d+", major)
    rest = re.match(r"\d+", minor)
    return (int(digits[0]) if digits else 0, int(rest[0]) if rest else -1)
