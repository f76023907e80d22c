"""``repo prune`` as people and programs call it."""

from __future__ import annotations

from tests.cli.caller import Installation
from tests.servers import Server


def test_pruning_takes_a_deleted_backup_and_says_what_came_of_it(installation: Installation, server: Server) -> None:
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    first = installation.result("backup", "run", "clinic")["backup_id"]
    second = installation.result("backup", "run", "clinic")["backup_id"]
    installation.ok("backup", "delete", first)
    planned = installation.result("repo", "prune", "usb", "--dry-run")
    assert (planned["dry_run"], planned["exclusive"], planned["backups"]) == (True, True, [first])
    assert planned["bytes_freed"] > 0
    told = installation.ok("repo", "prune", "--dry-run").out
    assert f"goes: backup {first}" in told
    assert "Would give back" in told
    done = installation.result("repo", "prune", "usb")
    assert (done["dry_run"], done["backups"], done["bytes_later"]) == (False, [first], 0)
    assert done["objects_deleted"] == planned["objects_deleted"]
    assert [one["backup_id"] for one in installation.result("backup", "list")["backups"]] == [second]
    assert installation.result("repo", "verify", "usb")["ok"]
    assert "Nothing to give back in usb" in installation.ok("repo", "prune", "usb").out


def test_a_share_to_write_again_is_a_percentage(installation: Installation) -> None:
    installation.init()
    assert installation.run("repo", "prune", "usb", "--max-repack", "101").code == 2
    assert installation.result("repo", "prune", "usb", "--max-repack", "10")["packs_rewritten"] == 0
