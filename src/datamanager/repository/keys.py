"""Key slots and the ring: how a secret opens a repository.

A slot wraps the repository's random root under one secret (passphrase, printed recovery code, key file, or the
published secret of an open repository). The ring, sealed under the root, holds the numbered epoch keys that seal
everything else, and the fingerprint key of the repository's family. Both are stored twice.

    slot  "DMPGKEY1" 8 | kind u8 | log2 N, r, p u8 | zero u32 | slot 16 | repository 16 | salt 32 | check 16 |
          sealed root 48 | label u8 + <= 64
    kek 32 | check 16 = HKDF-SHA256(secret, salt, "dmpg1" | "slot" | repository)

``check`` tells a wrong secret from a damaged slot. Source: ``docs/format.md`` decisions 11 and 12; RFC 7914.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from struct import Struct
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from datamanager.base.errors import FormatUnsupported, IntegrityError, WrongSecret
from datamanager.base.units import Secret
from datamanager.repository.format import SIGNATURE, Kind, canonical_json, named_id
from datamanager.repository.sealing import Header, derive, open_small, seal_small

SLOT = Struct("<8sBBBBI16s16s32s16s48s")
SLOT_MAGIC = b"DMPGKEY1"
_ROOT_START, _ROOT_END = SLOT.size - 48, SLOT.size
MAX_LABEL_BYTES = 64
SLOT_BYTES = SLOT.size + 1 + MAX_LABEL_BYTES

# 2^17 x 8 x 128 B = 128 MiB and about 0.4 s: what a 2 GB office machine can spare. The slot records it, so it may grow.
SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P = 17, 8, 1
SCRYPT_MAX_LOG_N = 20  # a hostile slot must not ask for 64 GiB

OPEN_SECRET = Secret(b"datamanager: this repository is not encrypted")

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U
_STANDARD = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_CODE_BYTES = 20  # 160 random bits need no slow derivation
_CODE_CHECK = 4


class SlotKind(IntEnum):
    """Which secret a slot is for."""

    PASSPHRASE = 1
    RECOVERY_CODE = 2
    KEY_FILE = 3
    OPEN = 4


@dataclass(frozen=True, slots=True)
class SlotSecret:
    """A secret and what it is."""

    kind: SlotKind
    secret: Secret

    @classmethod
    def passphrase(cls, text: Secret) -> SlotSecret:
        """The passphrase as typed; composed and decomposed accents count as the same (NFKC)."""
        return cls(SlotKind.PASSPHRASE, Secret(unicodedata.normalize("NFKC", text.reveal().decode()).encode()))

    @classmethod
    def open(cls) -> SlotSecret:
        return cls(SlotKind.OPEN, OPEN_SECRET)

    @classmethod
    def new_recovery_code(cls) -> SlotSecret:
        return cls(SlotKind.RECOVERY_CODE, Secret(secrets.token_bytes(_CODE_BYTES)))

    @classmethod
    def from_recovery_code(cls, typed: Secret) -> SlotSecret:
        """Read a code as a person types it: any case, dashes or spaces, O for 0, I or L for 1.

        Raises: WrongSecret, when the check letters show a typing error.
        """
        letters = typed.reveal().decode(errors="replace").upper()
        letters = letters.translate(str.maketrans("OIL", "011"))
        letters = "".join(letter for letter in letters if letter in _ALPHABET)
        size = _CODE_BYTES * 8 // 5
        if len(letters) != size + _CODE_CHECK:
            raise WrongSecret(
                f"read recovery code: it has {len(letters)} letters and digits instead of {size + _CODE_CHECK}"
            )
        value = base64.b32decode(letters[:size].translate(str.maketrans(_ALPHABET, _STANDARD)))
        if _code_check(value) != letters[size:]:
            raise WrongSecret("read recovery code: a letter is wrong", hint="Compare it with the printed kit.")
        return cls(SlotKind.RECOVERY_CODE, Secret(value))

    def recovery_code(self) -> Secret:
        """The printed form: nine groups of four."""
        value = self.secret.reveal()
        letters = _crockford(value) + _code_check(value)
        return Secret("-".join(letters[start : start + 4] for start in range(0, len(letters), 4)))

    @classmethod
    def new_key_file(cls) -> SlotSecret:
        return cls(SlotKind.KEY_FILE, Secret(secrets.token_bytes(32)))

    @classmethod
    def from_key_file(cls, content: bytes) -> SlotSecret:
        """Raises: WrongSecret, when the file is not one of ours."""
        lines = content.decode(errors="replace").split()
        if len(lines) != 2 or lines[0] != "datamanager-key-1" or len(lines[1]) != 64:
            raise WrongSecret("read key file: it is not a key file of this program")
        try:
            return cls(SlotKind.KEY_FILE, Secret(bytes.fromhex(lines[1])))
        except ValueError:
            raise WrongSecret("read key file: it is damaged") from None

    def key_file(self) -> bytes:
        return f"datamanager-key-1\n{self.secret.reveal().hex()}\n".encode()


def _crockford(value: bytes) -> str:
    return base64.b32encode(value).decode().translate(str.maketrans(_STANDARD, _ALPHABET))


def _code_check(value: bytes) -> str:
    return _crockford(hashlib.sha256(b"recovery code" + value).digest()[:5])[:_CODE_CHECK]


@dataclass(frozen=True, slots=True)
class Slot:
    """One stored key slot; ``data`` is all of it."""

    id: bytes
    kind: SlotKind
    repository: bytes
    label: str
    data: bytes

    @classmethod
    def seal(cls, repository: bytes, root: bytes, secret: SlotSecret, label: str) -> Slot:
        """Wrap ``root`` (32 bytes) under ``secret``. Raises: ValueError for a label over 64 bytes."""
        encoded = label.encode()
        if len(encoded) > MAX_LABEL_BYTES:
            raise ValueError("a key's label has at most 64 bytes")
        slot_id, salt = secrets.token_bytes(16), secrets.token_bytes(32)
        scrypt = (SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P) if secret.kind is SlotKind.PASSPHRASE else (0, 0, 0)
        kek, check = _wrapping_key(secret, salt, scrypt, repository)
        front = SLOT.pack(SLOT_MAGIC, secret.kind, *scrypt, 0, slot_id, repository, salt, check, bytes(48))[
            :_ROOT_START
        ]
        back = bytes([len(encoded)]) + encoded
        sealed = AESGCM(kek).encrypt(bytes(12), root, front + back)
        return cls(slot_id, secret.kind, repository, label, front + sealed + back)

    @classmethod
    def parse(cls, data: bytes, name: str) -> Slot:
        """Raises: IntegrityError, FormatUnsupported."""
        if not SLOT.size < len(data) <= SLOT_BYTES:
            raise IntegrityError(f"read {name}: damaged key slot")
        magic, kind, log_n, r, p, zero, slot_id, repository, *_ = SLOT.unpack_from(data)
        label = data[SLOT.size + 1 :]
        if magic != SLOT_MAGIC or zero != 0 or data[SLOT.size] != len(label):
            raise IntegrityError(f"read {name}: damaged key slot")
        if kind not in SlotKind._value2member_map_:
            raise FormatUnsupported(f"read {name}: a kind of key that this program does not know")
        if kind == SlotKind.PASSPHRASE and not (10 <= log_n <= SCRYPT_MAX_LOG_N and 1 <= r <= 8 and 1 <= p <= 4):
            raise IntegrityError(f"read {name}: impossible derivation parameters")
        return cls(slot_id, SlotKind(kind), repository, label.decode(errors="replace"), data)

    def open(self, secret: SlotSecret) -> bytes:
        """The root. Raises: WrongSecret, IntegrityError (the slot is damaged though the secret is right)."""
        _, _, log_n, r, p, _, _, _, salt, check, sealed = SLOT.unpack_from(self.data)
        kek, expected = _wrapping_key(secret, salt, (log_n, r, p), self.repository)
        if not hmac.compare_digest(check, expected):
            raise WrongSecret("open repository: the passphrase, code or key file is not one of its keys")
        try:
            return AESGCM(kek).decrypt(bytes(12), sealed, self.data[:_ROOT_START] + self.data[_ROOT_END:])
        except InvalidTag:
            raise IntegrityError(f"open key slot {self.id.hex()[:8]}: the slot is damaged") from None


def _wrapping_key(
    secret: SlotSecret, salt: bytes, scrypt: tuple[int, int, int], repository: bytes
) -> tuple[bytes, bytes]:
    value = secret.secret.reveal()
    if secret.kind is SlotKind.PASSPHRASE:
        log_n, r, p = scrypt
        memory = 128 * r * ((1 << log_n) + p + 2) + (1 << 20)
        value = hashlib.scrypt(value, salt=salt, n=1 << log_n, r=r, p=p, maxmem=memory, dklen=32)
    both = derive(value, salt, SIGNATURE + b"slot" + repository, 48)
    return both[:32], both[32:]


@dataclass(frozen=True, slots=True)
class Epoch:
    """One key of the ring, used for everything written while it was the newest."""

    number: int
    key: Secret
    created: str


@dataclass(frozen=True, slots=True)
class Ring:
    """All keys of a repository, once opened."""

    number: int
    repository: bytes
    root: Secret
    config: dict[str, Any]
    epochs: tuple[Epoch, ...]
    family: bytes
    fingerprint_key: Secret

    @classmethod
    def new(cls, config: dict[str, Any], now: datetime, like: Ring | None = None) -> Ring:
        """A ring of fresh keys; ``like`` gives family and fingerprint key to a sibling repository."""
        return cls(
            number=1,
            repository=bytes.fromhex(config["repository"]),
            root=Secret(secrets.token_bytes(32)),
            config=config,
            epochs=(Epoch(1, Secret(secrets.token_bytes(32)), now.isoformat()),),
            family=like.family if like else secrets.token_bytes(16),
            fingerprint_key=like.fingerprint_key if like else Secret(secrets.token_bytes(32)),
        )

    def seal(self) -> bytes:
        plain = canonical_json(
            {
                "repository": self.repository.hex(),
                "config": self.config,
                "epochs": [{"no": e.number, "key": e.key.reveal().hex(), "created": e.created} for e in self.epochs],
                "family": self.family.hex(),
                "fingerprint_key": self.fingerprint_key.reveal().hex(),
            }
        )
        identity = named_id(f"ring/{self.number:08d}")
        return seal_small(Kind.RING, self.root.reveal(), 0, self.repository, identity, plain)

    @classmethod
    def open(cls, data: bytes, number: int, root: bytes, repository: bytes, name: str) -> Ring:
        """Raises: IntegrityError, FormatUnsupported."""
        header = Header.parse(data, name)
        identity = named_id(f"ring/{number:08d}")
        plain = open_small(data, Kind.RING, header, root, repository, identity, name)
        try:
            value = json.loads(plain)
            epochs = tuple(Epoch(e["no"], Secret(bytes.fromhex(e["key"])), e["created"]) for e in value["epochs"])
            ring = cls(
                number=number,
                repository=bytes.fromhex(value["repository"]),
                root=Secret(root),
                config=value["config"],
                epochs=epochs,
                family=bytes.fromhex(value["family"]),
                fingerprint_key=Secret(bytes.fromhex(value["fingerprint_key"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"read {name}: malformed keyring") from error
        if not ring.epochs:
            raise IntegrityError(f"read {name}: malformed keyring")
        return ring

    @property
    def newest(self) -> Epoch:
        return self.epochs[-1]

    def epoch_key(self, number: int, name: str) -> bytes:
        """Raises: IntegrityError, for an epoch that this ring does not hold."""
        for epoch in self.epochs:
            if epoch.number == number:
                return epoch.key.reveal()
        raise IntegrityError(f"read {name}: sealed under key {number}, which the ring does not hold")
