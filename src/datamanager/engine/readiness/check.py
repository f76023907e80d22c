"""The readiness check of a restore: every question that can be answered before anything is copied.

    key, backup, damage, wal       engine/readiness/stored.py
    system, programs, version,     engine/readiness/software.py
    preload, extensions
    locale                         engine/readiness/locales.py
    collation                      engine/readiness/collations.py
    target, tablespace, space,     engine/readiness/place.py
    owner, port

Source: requirements N10, R76, R77, R78.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from datamanager.engine.readiness.collations import check_collations, local_versions
from datamanager.engine.readiness.finding import Finding, for_later
from datamanager.engine.readiness.locales import check_locales, has_locale, opens
from datamanager.engine.readiness.place import check_account, check_new_place, check_planned, check_port
from datamanager.engine.readiness.software import check_libraries, check_programs, check_system
from datamanager.engine.readiness.stored import check_stored, check_wal
from datamanager.engine.restore.plan import RestoreOptions, VolumeNeed
from datamanager.postgres.account import Account, CurrentAccount
from datamanager.postgres.facts_model import ServerFacts
from datamanager.repository.format import canonical_json
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository

_MAINTENANCE_DATABASE = "postgres"


class Use(Enum):
    """What the restored files are for; the values are the codes of questions that only matter after the restore.

    FILES: nothing runs. CLONE: a server runs on the result, with a configuration of its own (postgres/clone.py).
    SERVER: the result takes the server's place.
    """

    FILES = frozenset({"programs", "preload", "locale", "owner"})
    CLONE = frozenset({"preload"})
    SERVER = frozenset[str]()


@dataclass(frozen=True, slots=True)
class ReadinessOptions:
    """What is to be restored where.

    Args:
        use: what it is for.
        libraries: shared_preload_libraries of the server as it will start; None for those of the backup.
        restore: of a restore into a new directory; of another kind only ``target`` and ``any_platform`` count.
        plan: makes the plan of another kind of restore (delta, in place) and gives what each volume needs; what it
            refuses blocks.
        account: who will run the server.
        install_path: the installation to use; None looks for one.
        port: where the server is to listen; None when that is no question.
        wal_needed: names of WAL segments and history files up to the target, in order; wal_present: those at hand.
        more_bytes: needed beside the backup's own files, such as for WAL, by directory.
    """

    restore: RestoreOptions
    use: Use = Use.SERVER
    libraries: str | None = None
    plan: Callable[[], Sequence[VolumeNeed]] | None = None
    account: Account = field(default_factory=CurrentAccount)
    install_path: Path | None = None
    port: int | None = None
    address: str = "127.0.0.1"
    wal_needed: Sequence[str] = ()
    wal_present: Collection[str] = ()
    more_bytes: Mapping[Path, int] = field(default_factory=dict)


def check_readiness(repository: Repository, manifest: Manifest, options: ReadinessOptions) -> list[Finding]:
    """Answer every question; a failure of one is a finding and keeps none of the others from being asked.

    Returns: findings in the order of the module's table. Writes nothing.
    Raises: StoreError, when the repository goes away meanwhile.
    """
    facts = facts_of(manifest)
    if options.libraries is not None:
        facts = replace(facts, shared_preload_libraries=options.libraries)
    programs, of_programs = check_programs(manifest.major, manifest.version, options.install_path, options.account)
    found = [
        *check_stored(repository, manifest),
        *check_wal(options.wal_needed, options.wal_present),
        *check_system(manifest, options.restore),
        *of_programs,
    ]
    if programs is not None:
        found += check_libraries(facts, programs)
    found += check_locales(facts, has_locale)
    found += check_collations(facts, local_versions(programs))
    if options.plan is None:
        found += check_new_place(manifest, options.restore, options.more_bytes)
    else:
        found += check_planned(options.plan, options.more_bytes)
    found += [*check_account(options.restore.target, options.account), *check_port(options.port, options.address)]
    return for_later(found, _codes_for_later(facts, options.use))


def _codes_for_later(facts: ServerFacts, use: Use) -> frozenset[str]:
    """A clone is spoken to in one database alone."""
    codes: frozenset[str] = use.value
    if use is Use.CLONE and opens(facts, _MAINTENANCE_DATABASE, has_locale):
        codes |= {"locale"}
    return codes


def facts_of(manifest: Manifest) -> ServerFacts:
    """What the backup says about its server; little, where it says little."""
    least = {"version": manifest.version, "version_number": 0, "major": manifest.major}
    least["system_identifier"] = int(manifest.system_identifier)
    return ServerFacts.from_json(canonical_json({**least, **manifest.server}))
