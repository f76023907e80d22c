"""``service install``, ``remove`` and ``status`` as commands: shown first, then done in a system below a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datamanager.app.context import Context
from datamanager.app.service import ServiceOptions, plan_home
from datamanager.base.clock import SystemClock
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.config.home import Home
from datamanager.system.installation import MakeFolder, apply
from tests.cli.caller import Installation

needs_systemctl = pytest.mark.skipif(shutil.which("systemctl") is None, reason="needs systemctl")
UNIT = "etc/systemd/system/datamanager.service"


def test_a_dry_run_shows_every_step_and_the_unit_and_changes_nothing(
    installation: Installation, tmp_path: Path
) -> None:
    root = tmp_path / "image"
    root.mkdir()
    words = ("service", "install", "--root", root, "--account", "postgres", "--metrics-port", "9187")
    shown = installation.ok(*words, "--dry-run")
    assert f"write {root / UNIT} (mode 0644)" in shown.out
    assert "serve --account postgres --metrics-port 9187" in shown.out
    assert f'"DATAMANAGER_HOME={installation.home}"' in shown.out
    assert list(root.iterdir()) == []
    assert "Nothing would be done." in installation.ok("service", "remove", "--root", root, "--dry-run").out


@needs_systemctl
def test_the_service_is_installed_shown_and_removed_and_the_home_stays(
    installation: Installation, tmp_path: Path
) -> None:
    root = tmp_path / "image"
    root.mkdir()
    assert installation.result("service", "status", "--root", root)["installed"] is False
    done = installation.result("service", "install", "--root", root)
    assert done["account"] == "postgres"
    assert (root / UNIT).is_file()
    found = installation.result("service", "status", "--root", root)
    assert (found["installed"], found["enabled"], found["running"], found["planner_alive"]) == (True, True, None, False)
    assert installation.result("service", "remove", "--root", root, "--dry-run")["dry_run"] is True
    assert installation.result("service", "remove", "--root", root)["removed"] is True
    assert installation.result("service", "status", "--root", root)["installed"] is False
    assert (root / installation.home.relative_to("/")).is_dir()
    assert installation.result("service", "remove", "--root", root)["removed"] is False


@needs_systemctl
def test_what_the_unit_begins_is_this_program(installation: Installation, tmp_path: Path) -> None:
    root = tmp_path / "image"
    root.mkdir()
    installation.ok("service", "install", "--root", root)
    line = next(one for one in (root / UNIT).read_text("utf-8").splitlines() if one.startswith("ExecStart="))
    program = line.removeprefix("ExecStart=").partition(" serve")[0].split()
    done = subprocess.run([*program, "--version"], cwd="/", capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("datamanager")


@pytest.mark.skipif(sys.platform != "linux" or Path("/run/systemd/system").exists(), reason="needs no systemd running")
def test_a_computer_without_systemd_is_told_what_to_do(installation: Installation) -> None:
    refused = installation.run("service", "install", "--user")
    assert refused.code == 10
    assert "not started by systemd" in refused.errors
    assert "datamanager serve" in refused.errors


def test_an_account_that_is_not_there_is_refused_before_anything_is_done(installation: Installation) -> None:
    refused = installation.run("service", "install", "--account", "nobody-of-that-name", "--dry-run")
    assert refused.code == 10
    assert "no account 'nobody-of-that-name'" in refused.errors


def test_the_configuration_of_the_installing_account_goes_where_every_account_finds_it(tmp_path: Path) -> None:
    """On a computer without a home of its own, whose root has configured a repository before."""
    mine, system = Home(tmp_path / "old", tmp_path / "old state"), Home(tmp_path / "new", tmp_path / "new state")
    before = Installation(tmp_path)
    before.home = mine.config
    before.init()
    mine.logs.mkdir(parents=True)
    (mine.logs / "a.log").write_text("said")
    with StopToken() as stop:
        context = Context(mine, SystemClock(), stop, ignore)
        options = ServiceOptions(None, None, system)
        apply(tuple(plan_home(context, options)), "install service", lambda text: None)
        assert [type(step) for step in plan_home(context, options)] == [MakeFolder, MakeFolder]
    assert f'key_file = "{system.keys / "usb.key"}"' in system.config_file.read_text("utf-8")
    assert (system.logs / "a.log").read_text() == "said"
    shutil.move(mine.config, tmp_path / "away")
    after = Installation(tmp_path)
    after.home = system.config
    after.ok("backup", "list", "--repo", "usb")


@pytest.mark.root
def test_an_account_that_cannot_run_this_program_is_said_before_anything_is_done(installation: Installation) -> None:
    reached = subprocess.run(["test", "-x", os.path.realpath(sys.executable)], user="nobody", check=False)
    if reached.returncode == 0:
        pytest.skip("needs a Python that other accounts cannot run")
    refused = installation.run("service", "install", "--account", "nobody", "--dry-run")
    assert refused.code == 10
    assert "the account nobody may not use" in refused.errors
    assert "--account" in refused.errors
