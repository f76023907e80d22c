"""Roles that a restore reverts are named, and nothing secret of them (requirement R74)."""

from __future__ import annotations

import pytest

from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.roles import Roles, read_all_roles, role_changes
from datamanager.postgres.connection import ServerAddress
from tests.conftest import NewServer

KEY = bytes(range(32))


@pytest.mark.requirement("R74", missing="the reminder after the restore, which the command gives")
def test_roles_whose_password_or_attributes_will_revert_are_named_without_hashes(
    new_server: NewServer, stop: StopToken
) -> None:
    server = new_server()
    for name in ("ada", "bob", "carol", "dan"):
        server.sql(f"create role {name} login password 'first {name}'")
    address = ServerAddress(server.dsn)
    then = read_all_roles(address, KEY, stop)
    server.sql("alter role ada password 'second'")
    server.sql("alter role bob createdb valid until '2030-01-01'")
    server.sql("alter role bob set work_mem = '1MB'")
    server.sql("drop role carol")
    server.sql("create role eve login")
    now = read_all_roles(address, KEY, stop)
    said = [str(change) for change in role_changes(now, then)]
    assert said == [
        "ada: its password will be the one of then",
        "bob: will be as they were then: creates databases, password valid until, settings",
        "carol: will exist again",
        "eve: will not exist any more",
    ]  # requirement R74
    assert not any("SCRAM" in text or "$" in text for text in said)


def test_a_role_that_may_not_read_passwords_says_that_they_are_not_known(
    new_server: NewServer, stop: StopToken
) -> None:
    server = new_server()
    server.sql("create role plain login replication password 'x'")
    seen = read_all_roles(ServerAddress(server.make_dsn(user="plain")), KEY, stop)
    assert not seen.verifiers
    names = {change.name: str(change) for change in role_changes(seen, seen)}
    assert names["plain"] == "plain: whether its password changed is not known"
    assert role_changes(Roles(seen.roles, True), Roles(seen.roles, True)) == []
