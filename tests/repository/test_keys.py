"""Slots, recovery codes, key files and the ring."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamanager.base.errors import DataManagerError, FormatUnsupported, IntegrityError, WrongSecret
from datamanager.base.units import Secret
from datamanager.repository.format import Kind, canonical_json, named_id
from datamanager.repository.keys import SLOT, SLOT_BYTES, Ring, Slot, SlotKind, SlotSecret
from datamanager.repository.sealing import seal_small

REPOSITORY, ROOT = bytes(range(16)), bytes(range(32))
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
NOW = datetime(2025, 3, 1, tzinfo=UTC)
CODE = SlotSecret.new_recovery_code()
LETTERS = CODE.recovery_code().reveal().decode()


def from_code(text: str) -> SlotSecret:
    return SlotSecret.from_recovery_code(Secret(text))


# -- recovery codes -------------------------------------------------------------------------------------------------


def test_a_recovery_code_is_nine_groups_of_four_without_ambiguous_letters() -> None:
    groups = LETTERS.split("-")
    assert [len(group) for group in groups] == [4] * 9
    assert set("".join(groups)) <= set(ALPHABET)


@given(st.sampled_from(["upper", "lower"]), st.sampled_from(["-", " ", "", ".", "\t", " - "]))
def test_a_code_may_be_typed_in_any_case_with_any_separator(case: str, separator: str) -> None:
    typed = separator.join(LETTERS.split("-"))
    assert from_code(typed.upper() if case == "upper" else typed.lower()) == CODE


def test_letters_that_look_like_digits_are_read_as_digits() -> None:
    code = SlotSecret(SlotKind.RECOVERY_CODE, Secret(bytes(19) + b"\x42"))
    text = code.recovery_code().reveal().decode()
    assert from_code(text.replace("0", "O")) == code
    assert from_code(text.replace("0", "o").replace("1", "l")) == code
    assert from_code(text.replace("1", "i")) == code


@given(st.integers(0, 35), st.sampled_from(ALPHABET))
def test_one_wrong_letter_is_noticed(place: int, letter: str) -> None:
    letters = list(LETTERS.replace("-", ""))
    if letters[place] == letter:
        return
    letters[place] = letter
    with pytest.raises(WrongSecret, match="a letter is wrong"):
        from_code("".join(letters))


@given(st.integers(0, 34))
def test_two_letters_that_changed_places_are_noticed(place: int) -> None:
    letters = list(LETTERS.replace("-", ""))
    if letters[place] == letters[place + 1]:
        return
    letters[place], letters[place + 1] = letters[place + 1], letters[place]
    with pytest.raises(WrongSecret):
        from_code("".join(letters))


@given(st.text(max_size=60))
def test_nonsense_typed_as_a_code_is_a_wrong_secret(text: str) -> None:
    if "".join(letter for letter in text.upper() if letter in ALPHABET) != LETTERS.replace("-", ""):
        with pytest.raises(WrongSecret):
            from_code(text)


def test_a_missing_letter_is_counted() -> None:
    with pytest.raises(WrongSecret, match="35 letters and digits instead of 36"):
        from_code(LETTERS[:-1])


# -- key files and passphrases --------------------------------------------------------------------------------------


def test_a_key_file_reads_back_with_any_line_end() -> None:
    secret = SlotSecret.new_key_file()
    assert SlotSecret.from_key_file(secret.key_file()) == secret
    assert SlotSecret.from_key_file(secret.key_file().replace(b"\n", b"\r\n").rstrip()) == secret


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\xff" * 100,
        b"datamanager-key-1\n",
        b"datamanager-key-2\n" + b"0" * 64,
        b"datamanager-key-1\n" + b"z" * 64,
        b"datamanager-key-1\n" + b"0" * 63,
    ],
)
def test_a_file_that_is_no_key_file_is_a_wrong_secret(content: bytes) -> None:
    with pytest.raises(WrongSecret, match="read key file"):
        SlotSecret.from_key_file(content)


def test_composed_and_decomposed_accents_are_one_passphrase() -> None:
    composed = Secret("pässwörd é")
    decomposed = Secret(unicodedata.normalize("NFD", "pässwörd é"))
    assert composed != decomposed
    assert SlotSecret.passphrase(composed) == SlotSecret.passphrase(decomposed)


# -- slots ----------------------------------------------------------------------------------------------------------

SECRETS = {
    "key file": SlotSecret.new_key_file(),
    "recovery code": CODE,
    "open": SlotSecret.open(),
    "passphrase": SlotSecret.passphrase(Secret("correct horse")),
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_slot_opens_with_its_secret_after_a_trip_through_the_store(name: str) -> None:
    slot = Slot.seal(REPOSITORY, ROOT, SECRETS[name], "the office é")
    parsed = Slot.parse(slot.data, "slot")
    assert parsed == slot
    assert parsed.open(SECRETS[name]) == ROOT
    assert parsed.label == "the office é"
    assert ROOT not in slot.data


def test_another_secret_of_the_same_kind_is_wrong() -> None:
    slot = Slot.seal(REPOSITORY, ROOT, SECRETS["key file"], "")
    with pytest.raises(WrongSecret):
        slot.open(SlotSecret.new_key_file())


def test_a_label_has_at_most_64_bytes() -> None:
    data = Slot.seal(REPOSITORY, ROOT, CODE, "é" * 32).data
    assert len(data) == SLOT_BYTES
    assert Slot.parse(data, "slot").label == "é" * 32
    with pytest.raises(ValueError, match="64 bytes"):
        Slot.seal(REPOSITORY, ROOT, CODE, "é" * 33)


def test_a_flipped_bit_anywhere_in_a_slot_never_gives_a_root() -> None:
    secret = SECRETS["key file"]
    slot = Slot.seal(REPOSITORY, ROOT, secret, "label")
    for position in range(len(slot.data)):
        for bit in range(8):
            spoilt = bytearray(slot.data)
            spoilt[position] ^= 1 << bit
            with pytest.raises(DataManagerError) as caught:
                Slot.parse(bytes(spoilt), "slot").open(secret)
            assert isinstance(caught.value, IntegrityError | WrongSecret | FormatUnsupported)


def test_a_damaged_root_is_told_from_a_wrong_secret() -> None:
    secret = SECRETS["key file"]
    data = bytearray(Slot.seal(REPOSITORY, ROOT, secret, "").data)
    data[SLOT.size - 20] ^= 1
    slot = Slot.parse(bytes(data), "slot")
    with pytest.raises(IntegrityError, match="the slot is damaged"):
        slot.open(secret)
    with pytest.raises(WrongSecret):
        slot.open(SlotSecret.new_key_file())


@pytest.mark.parametrize(
    ("place", "value"), [(9, 21), (9, 9), (9, 255), (9, 0), (10, 0), (10, 9), (10, 255), (11, 0), (11, 5), (11, 255)]
)
def test_a_slot_that_asks_for_too_much_memory_is_refused_before_any_derivation(place: int, value: int) -> None:
    data = bytearray(SLOT.pack(b"DMPGKEY1", 1, 17, 8, 1, 0, bytes(16), REPOSITORY, bytes(32), bytes(16), bytes(48)))
    data[place] = value
    with pytest.raises(IntegrityError, match="impossible derivation parameters"):
        Slot.parse(bytes(data) + b"\0", "slot")


@pytest.mark.parametrize("size", [0, 8, SLOT.size, SLOT_BYTES + 1, 1000])
def test_a_slot_of_an_impossible_size_is_damaged(size: int) -> None:
    with pytest.raises(IntegrityError, match="damaged key slot"):
        Slot.parse((b"DMPGKEY1\x02" + bytes(1000))[:size], "slot")


@given(st.binary(min_size=SLOT.size, max_size=SLOT_BYTES))
def test_random_bytes_are_no_slot(data: bytes) -> None:
    with pytest.raises((IntegrityError, FormatUnsupported)):
        Slot.parse(data, "slot")


def test_a_kind_of_key_that_is_not_known_is_unsupported() -> None:
    data = bytearray(Slot.seal(REPOSITORY, ROOT, CODE, "").data)
    data[8] = 9
    with pytest.raises(FormatUnsupported):
        Slot.parse(bytes(data), "slot")


def test_nothing_secret_prints() -> None:
    ring = Ring.new({"repository": REPOSITORY.hex()}, NOW)
    slot = Slot.seal(REPOSITORY, ROOT, CODE, "")
    for shown in (repr(CODE), repr(ring), str(ring), repr(SECRETS)):
        for secret in (CODE.secret, ring.root, ring.fingerprint_key, ring.newest.key):
            assert secret.reveal().hex() not in shown
            assert repr(secret.reveal())[2:-1] not in shown
    assert slot.open(CODE) == ROOT


# -- the ring -------------------------------------------------------------------------------------------------------

CONFIG = {"format": 1, "repository": REPOSITORY.hex(), "incompat": [], "ro_compat": []}


def test_a_ring_reads_back() -> None:
    ring = Ring.new(CONFIG, NOW)
    assert Ring.open(ring.seal(), 1, ring.root.reveal(), REPOSITORY, "ring") == ring
    assert ring.epoch_key(1, "x") == ring.newest.key.reveal()
    with pytest.raises(IntegrityError, match="key 2"):
        ring.epoch_key(2, "packs/ab")


def test_a_sibling_shares_the_family_and_nothing_else() -> None:
    ring = Ring.new(CONFIG, NOW)
    sibling = Ring.new({**CONFIG, "repository": "aa" * 16}, NOW, ring)
    assert (sibling.family, sibling.fingerprint_key) == (ring.family, ring.fingerprint_key)
    assert sibling.root != ring.root
    assert sibling.newest.key != ring.newest.key


def test_a_ring_under_another_number_root_or_repository_does_not_open() -> None:
    ring = Ring.new(CONFIG, NOW)
    sealed = ring.seal()
    for number, root, repository in [(2, ring.root.reveal(), REPOSITORY), (1, bytes(32), REPOSITORY)]:
        with pytest.raises(IntegrityError):
            Ring.open(sealed, number, root, repository, "ring")
    with pytest.raises(IntegrityError):
        Ring.open(sealed, 1, ring.root.reveal(), bytes(16), "ring")


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"epochs": []},
        {
            "repository": REPOSITORY.hex(),
            "config": {},
            "epochs": [],
            "family": "00" * 16,
            "fingerprint_key": "00" * 32,
        },
        {"repository": 5, "config": {}, "epochs": [{}], "family": "zz", "fingerprint_key": None},
    ],
)
def test_a_ring_that_is_not_one_inside_is_damage(value: object) -> None:
    root = bytes(32)
    sealed = seal_small(Kind.RING, root, 0, REPOSITORY, named_id("ring/00000001"), canonical_json(value))
    with pytest.raises(IntegrityError, match="malformed keyring"):
        Ring.open(sealed, 1, root, REPOSITORY, "ring")
