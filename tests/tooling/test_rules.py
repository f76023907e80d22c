"""The rules of tests/conftest.py, seen from outside: pytest runs on a file of its own with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def run_pytest(folder: Path, text: str, *words: str, ci: bool = False, servers: Path | None = None) -> tuple[int, str]:
    """Run pytest on a file with ``text`` under the rules; return its exit status and output."""
    (folder / "test_it.py").write_text("import pytest\n\n" + text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n    pg\n    root\n    mounts\n")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))}
    variables |= {"PYTHONPATH": str(CHECKOUT), "CI": "true" if ci else "false"}
    if servers:
        variables["DATAMANAGER_TEST_POSTGRES"] = str(servers)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-rA", *words]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


SKIPS = 'def test_it() -> None:\n    pytest.skip("no such thing here")\n'
SKIPS_ITSELF = 'pytest.skip("not today", allow_module_level=True)\n'


@pytest.mark.parametrize("text", [SKIPS, SKIPS_ITSELF])
def test_a_skip_fails_in_ci_and_only_there(tmp_path: Path, text: str) -> None:
    status, output = run_pytest(tmp_path, text)
    assert "1 skipped" in output
    assert status in (0, 5)
    status, output = run_pytest(tmp_path, text, ci=True)
    assert status not in (0, 5)
    assert "in CI" in output


def test_a_slow_test_runs_only_when_asked_for(tmp_path: Path) -> None:
    text = "@pytest.mark.slow\ndef test_it() -> None:\n    pass\n"
    assert "1 deselected" in run_pytest(tmp_path, text)[1]
    assert "1 passed" in run_pytest(tmp_path, text, "--slow")[1]


def test_a_missing_version_is_in_the_heading_and_its_test_says_so(tmp_path: Path) -> None:
    text = "@pytest.mark.pg(17)\ndef test_it(server: object) -> None:\n    pass\n"
    status, output = run_pytest(tmp_path, text, servers=tmp_path)
    assert status == 0
    assert "PostgreSQL missing: 14" in output
    assert "SKIPPED" in output
    assert "find PostgreSQL 17: not below" in output


def test_a_mark_with_an_unknown_version_stops_the_collection(tmp_path: Path) -> None:
    text = '@pytest.mark.pg("12")\ndef test_it(server: object) -> None:\n    pass\n'
    status, output = run_pytest(tmp_path, text)
    assert status != 0
    assert "'12' names no version" in output
