"""README.txt, rescue.py and the wheels of a repository: written at its making, kept up to date by every session.

They are for people without this program, so they lie in the clear. Objects are never overwritten, so these two files
alone are deleted and put again; a cut in between leaves one missing, and the next session writes it.
"""

from __future__ import annotations

import re

from datamanager.app.context import Context
from datamanager.base.errors import ObjectExists, ObjectMissing, StoreDenied, StoreFull
from datamanager.base.events import Warned
from datamanager.repository import access
from datamanager.repository.keys import SlotKind
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from datamanager.rescue import ServerNeeds, bundled_wheels, is_of_this_release, readme_text, rescue_script
from datamanager.storage.base import Storage

README, RESCUE, WHEELS = "README.txt", "rescue.py", "wheels/"
_MAX_BYTES = 1 << 20
_KEPT = re.compile(r"kept here:\s*(\S[^\n]*)")
_REPLACED = (
    "rescue.py in the repository was not this release's and was replaced; print a new recovery kit with "
    "`datamanager repo kit`, because the SHA-256 on the old one is that of another rescue.py"
)
_WHEEL = re.compile(r"[A-Za-z0-9._-]+\.whl")


def write_files(repository: Repository, *, kept_where: str, wheels: bool) -> None:
    """Write all of them into a new repository. Raises: StoreError."""
    storage = repository.storage
    storage.put(RESCUE, [rescue_script()])
    if wheels:
        _put_wheels(storage)
    storage.put(README, [_readme(repository, [], kept_where, wheels=wheels).encode()])
    storage.barrier()


def refresh_files(context: Context, repository: Repository, *, warn: bool = True, quick: bool = False) -> None:
    """Replace what this release or the latest backup made out of date.

    Args:
        warn: say that rescue.py was replaced; not where a kit with the new SHA-256 is just being made.
        quick: take the digests of the wheels in rescue.py for right, as after a backup.

    A repository that cannot be written is left as it is, with a warning. Raises: StoreError.
    """
    storage = repository.storage
    try:
        wheels = any(storage.list(WHEELS))
        before = _text(storage, README)
        readme = _readme(repository, newest_by_cluster(repository), _kept_where(before or b""), wheels=wheels)
        changed = _replace(storage, README, before, readme.encode())
        script = _text(storage, RESCUE)
        current = quick and script is not None and is_of_this_release(script)
        if not current and _replace(storage, RESCUE, script, rescue_script()):
            changed = True
            if warn:
                context.listener(Warned(_REPLACED))
        if wheels:
            changed |= _put_wheels(storage)
        if changed:
            storage.barrier()
    except (StoreDenied, StoreFull) as error:
        context.listener(Warned(f"README.txt and rescue.py in the repository are not up to date: {error.message}"))


def _kept_where(readme: bytes) -> str:
    """Where the kit is kept, as the README says; only there, for other computers write it anew as well."""
    found = _KEPT.search(readme.decode(errors="replace"))
    return found[1].strip("_ ") if found else ""


def newest_by_cluster(repository: Repository) -> list[Manifest]:
    """The newest backup of each cluster. Raises: IntegrityError."""
    newest = {one.cluster: one for one in repository.manifests()}
    return [newest[name] for name in sorted(newest)]


def _readme(repository: Repository, newest: list[Manifest], kept_where: str, *, wheels: bool) -> str:
    encrypted = all(slot.kind is not SlotKind.OPEN for slot in access.slots(repository.storage))
    return readme_text(
        repository.id.hex(),
        str(repository.ring.config.get("created", "")),
        servers=tuple(_needs(one) for one in newest),
        code_place=kept_where,
        encrypted=encrypted,
        wheels=wheels,
    )


def _needs(manifest: Manifest) -> ServerNeeds:
    server = manifest.server
    extensions = {
        str(extension.get("name", ""))
        for database in server.get("databases", ())
        for extension in database.get("extensions", ())
    }
    return ServerNeeds(
        cluster=manifest.cluster,
        version=manifest.version,
        operating_system=str(server.get("operating_system", "")),
        architecture=str(server.get("architecture", "")),
        extensions=tuple(sorted(extensions - {"", "plpgsql"})),
    )


def _text(storage: Storage, key: str) -> bytes | None:
    try:
        return storage.get(key, 0, _MAX_BYTES)
    except ObjectMissing:
        return None


def _replace(storage: Storage, key: str, before: bytes | None, after: bytes) -> bool:
    if before == after:
        return False
    if before is not None:
        storage.delete(key)
    try:
        storage.put(key, [after])
    except ObjectExists:
        return False  # another session of the same release was quicker
    return True


def _put_wheels(storage: Storage) -> bool:
    """Add the wheels that are not there yet. Raises: StoreError."""
    present = {one.key for one in storage.list(WHEELS)}
    added = False
    for wheel in bundled_wheels():
        key = f"{WHEELS}{wheel.name}"
        if key in present or not _WHEEL.fullmatch(wheel.name):
            continue
        storage.put(key, [wheel.read_bytes()])
        added = True
    return added
