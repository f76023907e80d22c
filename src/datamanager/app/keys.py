"""The keys of a repository: listing, adding, removing, and the printed recovery kit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamanager import __version__
from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.opening import Unlocking, check_key_outside, locate, opened
from datamanager.app.repository_files import refresh_files
from datamanager.base.errors import UsageError, WrongSecret
from datamanager.base.units import Secret
from datamanager.config.secret_files import write_secret_file
from datamanager.repository import access
from datamanager.repository.keys import MAX_LABEL_BYTES, Slot, SlotKind, SlotSecret
from datamanager.repository.repository import Repository
from datamanager.rescue import script_sha256
from datamanager.rescue.kit import KitPage, recovery_kit


def label_of(text: str) -> str:
    """A label cut to what a slot holds."""
    return text.encode()[:MAX_LABEL_BYTES].decode(errors="ignore")


def kit_page(context: Context, repository: Repository, name: str, slot: Slot, code: SlotSecret) -> KitPage:
    """The page to print for a recovery code and its slot."""
    return recovery_kit(
        repository.id.hex(),
        repository.storage.url,
        code.recovery_code(),
        slot.data,
        script_sha256(),
        created=f"{context.clock.now().astimezone():%Y-%m-%d %H:%M %Z}",
        program=f"DataManager for PostgreSQL {__version__}",
        name=name,
    )


def new_kit(context: Context, named: str, unlocking: Unlocking, *, replace: bool) -> tuple[KitPage, int]:
    """Make another recovery code and its page.

    Args: replace - drop every older code, once the new one is stored.
    Returns: the page, and how many older codes still open the repository.
    Raises: as ``opened``; UsageError (not encrypted, or no slot free).
    """
    found = locate(context, named)
    with opened(context, found, unlocking) as repository:
        _require_encrypted(repository, "print kit")
        older = [one for one in access.slots(repository.storage) if one.kind is SlotKind.RECOVERY_CODE]
        refresh_files(context, repository, warn=False)
        code = SlotSecret.new_recovery_code()
        slot = access.add_slot(repository.storage, repository.ring, code, "recovery code")
        if replace:
            for one in older:
                access.remove_slot(repository.storage, one.id.hex())
        after = {"key": slot.id.hex(), "replaced": [one.id.hex() for one in older] if replace else []}
        audited(context, "recovery kit printed", found.title, after=after)
        return kit_page(context, repository, found.title, slot, code), 0 if replace else len(older)


def same_kit(context: Context, named: str, code_file: Path) -> KitPage:
    """The page of a code that is at hand, printed again. Raises: as ``opened``; WrongSecret."""
    found = locate(context, named)
    unlocking = Unlocking(recovery_code_file=code_file)
    code = unlocking.given()
    with opened(context, found, unlocking) as repository:
        refresh_files(context, repository, warn=False)
        for slot in access.slots(repository.storage):
            if code is not None and slot.kind is SlotKind.RECOVERY_CODE and _opens(slot, code):
                audited(context, "recovery kit printed again", found.title, after={"key": slot.id.hex()})
                return kit_page(context, repository, found.title, slot, code)
    raise UsageError("print kit: no key slot belongs to this code")


def listed(context: Context, named: str, unlocking: Unlocking) -> Sequence[Slot]:
    """Every key slot. Raises: as ``opened``."""
    with opened(context, locate(context, named), unlocking) as repository:
        return sorted(access.slots(repository.storage), key=lambda one: (one.kind, one.id))


def add_passphrase(context: Context, named: str, passphrase: Secret, label: str, unlocking: Unlocking) -> Slot:
    """Let another passphrase open the repository. Raises: as ``opened``; UsageError."""
    found = locate(context, named)
    with opened(context, found, unlocking) as repository:
        _require_encrypted(repository, "add key")
        secret = SlotSecret.passphrase(passphrase)
        slot = access.add_slot(repository.storage, repository.ring, secret, label_of(label or "passphrase"))
    audited(context, "key added", found.title, after=_told(slot))
    return slot


def _told(slot: Slot) -> dict[str, str]:
    return {"key": slot.id.hex(), "kind": slot.kind.name.lower().replace("_", " "), "label": slot.label}


def add_key_file(context: Context, named: str, path: Path, label: str, unlocking: Unlocking) -> Slot:
    """Write a new key file that opens the repository. Raises: as ``opened``; UsageError, ConfigurationError."""
    found = locate(context, named)
    check_key_outside(path, found.config.url)
    with opened(context, found, unlocking) as repository:
        _require_encrypted(repository, "add key")
        secret = SlotSecret.new_key_file()
        write_secret_file(path, secret.key_file(), "key file")
        try:
            name = label_of(label or f"key file {path.name}")
            slot = access.add_slot(repository.storage, repository.ring, secret, name)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    audited(context, "key added", found.title, after={**_told(slot), "file": str(path)})
    return slot


def remove(context: Context, named: str, prefix: str, unlocking: Unlocking) -> Slot:
    """Drop a key. Raises: as ``opened``; NotFound, UsageError (the last one, or the one that opens it here)."""
    found = locate(context, named)
    with opened(context, found, unlocking) as repository:
        storage = repository.storage
        matching = [one for one in access.slots(storage) if one.id.hex().startswith(prefix.lower())]
        configured = found.config.key_file
        if configured is not None and configured.exists():
            own = Unlocking(key_file=configured).given()
            if own is not None and any(one.kind is SlotKind.KEY_FILE and _opens(one, own) for one in matching):
                raise UsageError(
                    f"remove key: the backups of this machine use it ({configured})",
                    hint="Add another key file first, and name it with `datamanager config set`.",
                )
        slot = access.remove_slot(storage, prefix)
    audited(context, "key removed", found.title, before=_told(slot))
    return slot


def _opens(slot: Slot, secret: SlotSecret) -> bool:
    try:
        slot.open(secret)
    except WrongSecret:
        return False
    return True


def _require_encrypted(repository: Repository, doing: str) -> None:
    if any(slot.kind is SlotKind.OPEN for slot in access.slots(repository.storage)):
        raise UsageError(
            f"{doing}: the repository is not encrypted, so no key protects it",
            hint="Make an encrypted repository with `datamanager repo init`.",
        )
