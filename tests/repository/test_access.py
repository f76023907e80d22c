"""Opening a repository: right and wrong secrets, damaged copies, and places that are no repository."""

from __future__ import annotations

import json

import pytest

from datamanager.base.errors import (
    FormatUnsupported,
    IntegrityError,
    NotARepository,
    NotFound,
    ObjectExists,
    StoreUnavailable,
    UsageError,
    WrongSecret,
)
from datamanager.base.units import Secret
from datamanager.repository import access
from datamanager.repository.format import MAX_SLOTS, canonical_json, ring_keys, slot_keys
from datamanager.repository.keys import SLOT, SlotKind, SlotSecret
from datamanager.repository.repository import Repository
from datamanager.storage.base import Storage
from datamanager.storage.memory import MemoryStorage
from tests.repository.parts import KEY_FILE, SetClock, flip, keys, new_repository, overwrite
from tests.storage.faults import Call, FaultyStorage

CODE = SlotSecret.new_recovery_code()


@pytest.fixture
def storage() -> MemoryStorage:
    """A repository that KEY_FILE and CODE open."""
    storage = MemoryStorage(SetClock())
    Repository.create(storage, [(KEY_FILE, "service"), (CODE, "kit")], SetClock())
    return storage


def unlock(storage: Storage, secret: SlotSecret = KEY_FILE) -> list[str]:
    """Open it; returns what was reported."""
    told: list[str] = []
    Repository.open(storage, secret, SetClock(), told.append)
    return told


def slot_of(storage: Storage, kind: SlotKind) -> tuple[str, str]:
    (slot,) = [slot for slot in access.slots(storage) if slot.kind is kind]
    return slot_keys(slot.id)


@pytest.mark.parametrize("secret", [KEY_FILE, CODE])
def test_every_secret_opens_it(storage: MemoryStorage, secret: SlotSecret) -> None:
    assert unlock(storage, secret) == []


def test_a_passphrase_opens_it_and_a_near_miss_does_not() -> None:
    storage = MemoryStorage(SetClock())
    Repository.create(storage, [(SlotSecret.passphrase(Secret("correct horse")), "owner")], SetClock())
    assert unlock(storage, SlotSecret.passphrase(Secret("correct horse"))) == []
    with pytest.raises(WrongSecret, match="the passphrase is not one of its keys"):
        unlock(storage, SlotSecret.passphrase(Secret("correct horse ")))


@pytest.mark.parametrize(
    ("secret", "word"), [(SlotSecret.new_key_file(), "key file"), (SlotSecret.new_recovery_code(), "recovery code")]
)
def test_a_wrong_secret_is_named_by_its_kind(storage: MemoryStorage, secret: SlotSecret, word: str) -> None:
    with pytest.raises(WrongSecret, match=word):
        unlock(storage, secret)


def test_a_kind_of_secret_that_no_slot_is_for_is_wrong(storage: MemoryStorage) -> None:
    with pytest.raises(WrongSecret, match="published key"):
        unlock(storage, SlotSecret.open())


def test_a_repository_that_is_not_encrypted_says_that_it_needs_no_key() -> None:
    storage = MemoryStorage(SetClock())
    Repository.create(storage, [(SlotSecret.open(), "open")], SetClock())
    assert unlock(storage, SlotSecret.open()) == []
    with pytest.raises(WrongSecret, match="not encrypted"):
        unlock(storage, KEY_FILE)


def test_a_repository_needs_a_key() -> None:
    with pytest.raises(UsageError, match="at least one"):
        Repository.create(MemoryStorage(SetClock()), [], SetClock())


def test_a_repository_is_never_made_over_another_one(storage: MemoryStorage) -> None:
    before = {key: storage.get(key) for key in keys(storage, "")}
    with pytest.raises(ObjectExists):
        Repository.create(storage, [(KEY_FILE, "")], SetClock())
    assert {key: storage.get(key) for key in keys(storage, "")} == before


def test_an_empty_place_is_no_repository() -> None:
    with pytest.raises(NotARepository):
        unlock(MemoryStorage(SetClock()))


# -- slots ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", [0, 1])
def test_one_damaged_copy_of_a_slot_does_no_harm(storage: MemoryStorage, copy: int) -> None:
    key = slot_of(storage, SlotKind.KEY_FILE)[copy]
    for position in range(0, storage.stat(key).size, 5):
        before = flip(storage, key, position)
        unlock(storage)
        overwrite(storage, key, before)


def test_damage_to_both_copies_of_the_only_fitting_slot_is_damage_and_not_a_wrong_secret(
    storage: MemoryStorage,
) -> None:
    for key in slot_of(storage, SlotKind.KEY_FILE):
        flip(storage, key, SLOT.size - 10)
    with pytest.raises(IntegrityError, match="the slot is damaged"):
        unlock(storage)
    assert unlock(storage, CODE) == []


def test_a_slot_of_which_no_copy_parses_is_damage(storage: MemoryStorage) -> None:
    for key in slot_of(storage, SlotKind.KEY_FILE):
        overwrite(storage, key, b"DMPGKEY1")
    with pytest.raises(IntegrityError, match="damaged key slot"):
        unlock(storage)


@pytest.mark.parametrize("position", [0, 8, 12, 16, 40, 100, SLOT.size])
def test_a_wrong_secret_stays_a_wrong_secret_when_a_copy_of_a_slot_is_damaged(
    storage: MemoryStorage, position: int
) -> None:
    for kind in (SlotKind.KEY_FILE, SlotKind.RECOVERY_CODE):
        flip(storage, slot_of(storage, kind)[0], position)
    with pytest.raises(WrongSecret):
        unlock(storage, SlotSecret.new_key_file())


def test_an_unreadable_sector_in_a_slot_does_no_harm(storage: MemoryStorage) -> None:
    bad = slot_of(storage, SlotKind.KEY_FILE)[0]

    def hook(call: Call) -> None:
        if (call.method, call.key) == ("get", bad):
            raise StoreUnavailable("get: input/output error")

    unlock(FaultyStorage(storage, hook=hook))


def test_files_that_are_no_slots_are_ignored(storage: MemoryStorage) -> None:
    storage.put("keys/README.txt", [b"hello"])
    storage.put("ring/copy", [b"hello"])
    assert unlock(storage) == []


def test_there_are_at_most_16_slots() -> None:
    repository = new_repository()
    for number in range(MAX_SLOTS - 1):
        access.add_slot(repository.storage, repository.ring, SlotSecret.new_key_file(), str(number))
    with pytest.raises(UsageError, match="at most 16"):
        access.add_slot(repository.storage, repository.ring, SlotSecret.new_key_file(), "one more")
    assert unlock(repository.storage) == []


def test_a_thousand_hostile_slots_are_not_all_tried(storage: MemoryStorage) -> None:
    for number in range(1000):
        storage.put(f"keys/{number:032x}-a", [b"DMPGKEY1" + bytes(200)])
    counting = FaultyStorage(storage)
    with pytest.raises(IntegrityError):
        unlock(counting, SlotSecret.new_key_file())
    assert sum(call.method == "get" for call in counting.calls) < 3 * MAX_SLOTS


def test_a_removed_slot_no_longer_opens_and_the_last_one_stays(storage: MemoryStorage) -> None:
    code, key_file = (slot_of(storage, kind)[0][5:37] for kind in (SlotKind.RECOVERY_CODE, SlotKind.KEY_FILE))
    with pytest.raises(NotFound):
        access.remove_slot(storage, "zz")
    access.remove_slot(storage, code[:10])
    with pytest.raises(WrongSecret):
        unlock(storage, CODE)
    with pytest.raises(UsageError, match="the last one"):
        access.remove_slot(storage, key_file)
    assert unlock(storage) == []


# -- ring and config --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", ["flip", "newer", "delete", "cut"])
def test_the_second_copy_of_the_ring_is_used_and_the_damage_told(storage: MemoryStorage, spoil: str) -> None:
    first, second = ring_keys(1)
    content = storage.get(first)
    storage.delete(first)
    if spoil != "delete":
        changed = {"flip": content[:80] + b"?" + content[81:], "newer": b"DMPG0003" + content[8:], "cut": content[:90]}
        storage.put(first, [changed[spoil]])
    (told,) = unlock(storage)
    assert first in told
    flip(storage, second, 80)
    with pytest.raises((IntegrityError, FormatUnsupported)):
        unlock(storage)


def test_a_ring_that_is_gone_is_damage(storage: MemoryStorage) -> None:
    for key in ring_keys(1):
        storage.delete(key)
    with pytest.raises(IntegrityError, match="keyring is missing"):
        unlock(storage)


def test_an_older_ring_is_never_used_instead_of_a_damaged_newer_one(storage: MemoryStorage) -> None:
    for key in ring_keys(2):
        storage.put(key, [storage.get(ring_keys(1)[0])])
    with pytest.raises(IntegrityError, match="ring/00000002"):
        unlock(storage)


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"\0" * 512, b"[]", b"[" * 60_000, b'{"format":1}', b'{"format":"x"}']
)
def test_a_lost_config_is_made_up_for_by_slots_and_ring(storage: MemoryStorage, content: bytes | None) -> None:
    storage.delete("config")
    if content:
        storage.put("config", [content])
    (told,) = unlock(storage)
    assert "its copy in the keyring was used" in told


def test_a_config_that_was_changed_is_refused(storage: MemoryStorage) -> None:
    config = json.loads(storage.get("config"))
    overwrite(storage, "config", canonical_json({**config, "ro_compat": ["odd"]}))
    with pytest.raises(IntegrityError, match="config was changed"):
        unlock(storage)


def test_the_config_of_another_repository_does_not_open_this_one(storage: MemoryStorage) -> None:
    other = new_repository().storage
    overwrite(storage, "config", other.get("config"))
    with pytest.raises(IntegrityError, match="another repository"):
        unlock(storage)


@pytest.mark.parametrize("change", [{"format": 2}, {"incompat": ["parity"]}])
def test_a_repository_of_a_newer_program_is_refused(storage: MemoryStorage, change: dict[str, object]) -> None:
    config = json.loads(storage.get("config"))
    overwrite(storage, "config", canonical_json(config | change))
    with pytest.raises(FormatUnsupported, match="newer than this program"):
        unlock(storage)


def test_a_sibling_repository_shares_the_fingerprint_key_and_no_slot() -> None:
    first = new_repository()
    storage = MemoryStorage(SetClock())
    second = Repository.create(storage, [(CODE, "")], SetClock(), first.ring)
    assert second.ring.fingerprint_key == first.ring.fingerprint_key
    assert second.id != first.id
    with pytest.raises(WrongSecret):
        unlock(storage, KEY_FILE)
