"""Roles whose password or attributes a restore reverts (requirement R74). No password, no verifier is ever in here."""

from __future__ import annotations

from dataclasses import dataclass

from datamanager.base.pipeline import StopToken
from datamanager.postgres.connection import ServerAddress, connect, server_errors
from datamanager.postgres.fact_queries import Reader, read_roles
from datamanager.postgres.facts_model import RoleFact

_WORDS = {
    "superuser": "superuser",
    "inherit": "inherits",
    "create_role": "creates roles",
    "create_database": "creates databases",
    "login": "may log in",
    "replication": "replication",
    "bypass_row_security": "bypasses row security",
    "connection_limit": "connection limit",
    "valid_until": "password valid until",
    "settings": "settings",
    "member_of": "memberships",
}


@dataclass(frozen=True, slots=True)
class RoleChange:
    """What a restore does to one role.

    Args:
        gone: it exists now and not in the restored cluster; ``returns``: the other way round.
        password: True when it will be another one; None when that cannot be known.
        attributes: which of them will differ, in words.
    """

    name: str
    gone: bool = False
    returns: bool = False
    password: bool | None = False
    attributes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.gone:
            return f"{self.name}: will not exist any more"
        if self.returns:
            return f"{self.name}: will exist again"
        parts = ["its password will be the one of then"] if self.password else []
        if self.attributes:
            parts.append(f"will be as they were then: {', '.join(self.attributes)}")
        if self.password is None:
            parts.append("whether its password changed is not known")
        return f"{self.name}: {'; '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of a cluster; ``verifiers`` says whether it could be seen which of them have a password, and which."""

    roles: tuple[RoleFact, ...]
    verifiers: bool


def role_changes(now: Roles, then: Roles) -> list[RoleChange]:
    """The roles that a restore changes, by name.

    Args: both with digests under one key, see RoleFact. Where verifiers were not seen, every role that may log in
        stands in the list, its password unknown.
    """
    present, former = ({one.name: one for one in side.roles} for side in (now, then))
    seen = now.verifiers and then.verifiers
    changes = []
    for name in sorted(present | former):
        one, other = present.get(name), former.get(name)
        if one is None or other is None:
            changes.append(RoleChange(name, gone=other is None, returns=one is None))
            continue
        password = one.verifier_digest != other.verifier_digest if seen else (None if one.login else False)
        attributes = tuple(words for field, words in _WORDS.items() if getattr(one, field) != getattr(other, field))
        if attributes or password is not False:
            changes.append(RoleChange(name, password=password, attributes=attributes))
    return changes


def read_all_roles(address: ServerAddress, fingerprint_key: bytes, stop: StopToken) -> Roles:
    """The roles of a server, their verifiers only where the role that connects is a superuser.

    Args: fingerprint_key - 32 bytes. Raises: ServerError, Cancelled.
    """
    with connect(address, stop=stop) as connection, server_errors("read roles"):
        reader = Reader(connection, stop, lambda sql: None)
        reader.prepare()
        superuser = reader.rows("SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(True,)]
        return Roles(read_roles(reader, fingerprint_key, verifiers=superuser), superuser)
