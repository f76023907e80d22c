"""Making a repository and opening one: config, key slots, ring."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from datamanager.base.clock import Clock
from datamanager.base.errors import (
    DataManagerError,
    FormatUnsupported,
    IntegrityError,
    NotARepository,
    NotFound,
    ObjectMissing,
    StoreUnavailable,
    UsageError,
    WrongSecret,
)
from datamanager.repository.format import CONFIG, FORMAT, MAX_SLOTS, canonical_json, ring_keys, slot_keys
from datamanager.repository.keys import SLOT_BYTES, Ring, Slot, SlotKind, SlotSecret
from datamanager.repository.objects import UNREADABLE, worst
from datamanager.storage.base import Storage

_RING_KEY = re.compile(r"^ring/([0-9]{8})-[ab]\Z")
SLOT_KEY = re.compile(r"^keys/[0-9a-f]{32}-[ab]\Z")
_MAX_CONFIG_BYTES = 64 << 10
_MAX_RING_BYTES = 1 << 20
_WORDS = {
    SlotKind.PASSPHRASE: "passphrase",
    SlotKind.RECOVERY_CODE: "recovery code",
    SlotKind.KEY_FILE: "key file",
    SlotKind.OPEN: "published key",
}


def create(storage: Storage, keys: Sequence[tuple[SlotSecret, str]], clock: Clock, like: Ring | None = None) -> Ring:
    """Write config, ring and one slot per secret into an empty store; the config comes last.

    Args: keys - secrets with their labels; like - the ring of a sibling repository (one family).
    Raises: UsageError (no secret), ObjectExists (a repository is there already), StoreError.
    """
    if not keys:
        raise UsageError("make repository: it needs at least one passphrase, code or key file")
    config = {
        "format": FORMAT,
        "repository": secrets.token_hex(16),
        "created": clock.now().isoformat(timespec="seconds"),
        "incompat": [],
        "ro_compat": [],
    }
    ring = Ring.new(config, clock.now(), like)
    sealed = ring.seal()
    for key in ring_keys(ring.number):
        storage.put(key, [sealed])
    for secret, label in keys:
        add_slot(storage, ring, secret, label)
    storage.barrier()
    storage.put(CONFIG, [canonical_json(config)])
    storage.barrier()
    return ring


def unlock(storage: Storage, secret: SlotSecret, on_damage: Callable[[str], None]) -> Ring:
    """Open the newest ring with ``secret``.

    Raises: NotARepository, FormatUnsupported, WrongSecret, IntegrityError, StoreUnplugged.
    """
    try:
        config = read_config(storage)
        repository = bytes.fromhex(config["repository"])
    except (IntegrityError, NotARepository, StoreUnavailable) as error:
        # The config is stored once, but every slot names the repository and the ring repeats the config.
        named = {slot.repository for slot in slots(storage)}
        if len(named) != 1:
            raise
        config, repository = None, named.pop()
        on_damage(f"{error.message}; its copy in the keyring was used")
    root = _open_slots(storage, secret, repository)
    ring = _newest_ring(storage, root, repository, on_damage)
    if config not in (None, ring.config) or ring.repository != repository:
        raise IntegrityError("open repository: its config was changed")
    return ring


def read_config(storage: Storage) -> dict[str, Any]:
    """The clear config. Raises: NotARepository, FormatUnsupported, IntegrityError."""
    try:
        config = json.loads(storage.get(CONFIG, 0, _MAX_CONFIG_BYTES))
        number, incompatible = int(config["format"]), list(config["incompat"])
        if len(bytes.fromhex(config["repository"])) != 16:
            raise ValueError("repository id")
    except ObjectMissing as error:
        raise NotARepository(f"open repository: {storage.url} holds none") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise IntegrityError("open repository: its config is damaged") from error
    if number > FORMAT or incompatible:
        raise FormatUnsupported(f"open repository: format {number} {incompatible} is newer than this program")
    return dict(config)


def slot_copies(storage: Storage) -> tuple[list[Slot], list[tuple[str, DataManagerError]]]:
    """Every readable copy of every slot, and the keys of the others with what is wrong."""
    copies: list[Slot] = []
    damaged: list[tuple[str, DataManagerError]] = []
    names = sorted(one.key for one in storage.list("keys/") if SLOT_KEY.match(one.key))
    for key in names[: 2 * MAX_SLOTS]:
        try:
            copies.append(Slot.parse(storage.get(key, 0, SLOT_BYTES + 1), key))
        except UNREADABLE as error:
            damaged.append((key, error))
    return copies, damaged


def slots(storage: Storage) -> list[Slot]:
    """Every slot of which a copy can be read."""
    return list({slot.id: slot for slot in slot_copies(storage)[0]}.values())


def add_slot(storage: Storage, ring: Ring, secret: SlotSecret, label: str) -> Slot:
    """Let another secret open the repository. Raises: UsageError when all slots are taken."""
    if len(slots(storage)) >= MAX_SLOTS:
        raise UsageError(f"add key: a repository has at most {MAX_SLOTS}", hint="Remove one with `repo key remove`.")
    slot = Slot.seal(ring.repository, ring.root.reveal(), secret, label)
    for key in slot_keys(slot.id):
        storage.put(key, [slot.data])
    storage.barrier()
    for key in slot_keys(slot.id):
        if storage.get(key) != slot.data:
            raise IntegrityError(f"add key: {key} does not read back")
    return slot


def remove_slot(storage: Storage, prefix: str) -> Slot:
    """Drop the slot whose id begins with ``prefix``; the last one that opens the repository stays.

    Raises: NotFound, UsageError.
    """
    present = slots(storage)
    matching = [slot for slot in present if slot.id.hex().startswith(prefix.lower())]
    if len(matching) != 1:
        raise NotFound(f"remove key: {len(matching)} keys begin with {prefix!r}", hint="See `repo key list`.")
    if len(present) == 1:
        raise UsageError("remove key: it is the last one; nothing could be restored without it")
    for key in slot_keys(matching[0].id):
        storage.delete(key)
    storage.barrier()
    return matching[0]


def _open_slots(storage: Storage, secret: SlotSecret, repository: bytes) -> bytes:
    copies, damaged = slot_copies(storage)
    whole = [slot for slot in copies if slot.repository == repository]
    readable = {key for slot in whole for key in slot_keys(slot.id)}
    failures: list[DataManagerError] = [error for key, error in damaged if key not in readable]
    if len(whole) < len(copies) and not whole:
        failures.append(IntegrityError("open repository: its key slots name another repository"))
    fitting = [slot for slot in whole if slot.kind is secret.kind]
    for slot in {slot.data: slot for slot in fitting}.values():  # copies that are equal are tried once
        try:
            return slot.open(secret)
        except WrongSecret:
            continue
        except IntegrityError as error:
            failures.append(error)
    if failures:
        raise worst(failures)
    if not fitting and any(slot.kind is SlotKind.OPEN for slot in copies):
        raise WrongSecret("open repository: it is not encrypted and needs no key")
    raise WrongSecret(f"open repository: the {_WORDS[secret.kind]} is not one of its keys")


def _newest_ring(storage: Storage, root: bytes, repository: bytes, on_damage: Callable[[str], None]) -> Ring:
    numbers = ring_numbers(storage)
    if not numbers:
        raise IntegrityError("open repository: its keyring is missing")
    failures: list[DataManagerError] = []
    for key in ring_keys(numbers[0]):
        try:
            ring = Ring.open(storage.get(key, 0, _MAX_RING_BYTES), numbers[0], root, repository, key)
        except UNREADABLE as error:
            failures.append(error)
            continue
        for failure in failures:
            on_damage(f"{failure.message}; its second copy was used")
        return ring
    raise worst(failures)


def ring_numbers(storage: Storage) -> list[int]:
    """The numbers of the rings stored, the newest first."""
    found = {int(match[1]) for one in storage.list("ring/") if (match := _RING_KEY.match(one.key))}
    return sorted(found, reverse=True)
