"""Help is quick, complete and in step with the documents."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from datamanager.base.errors import DataManagerError
from datamanager.cli.main import run
from datamanager.cli.session import WITH_WARNINGS
from datamanager.cli.table import COMMANDS
from tools import cli_reference

HEAVY = ("numpy", "pydantic", "sqlalchemy", "psycopg", "rich", "cryptography", "zstandard", "tomlkit")
WORDS = [words.split()[1:] for words, _ in cli_reference.commands()]


def loaded_by(words: list[str]) -> set[str]:
    """The top-level modules that a command line loads, in a process of its own."""
    script = (
        "import sys\nfrom datamanager.cli.main import run\n"
        f"run({words!r})\nprint('LOADED', *{{name.partition('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize("words", [[], ["backup"], ["backup", "run"], ["repo"], ["restore"], ["demo"]])
def test_help_loads_none_of_the_heavy_libraries(words: list[str]) -> None:
    loaded = loaded_by([*words, "--help"])
    assert "click" in loaded
    assert not loaded & set(HEAVY)


def test_every_module_that_loads_late_exists() -> None:
    folder = Path(cli_reference.__file__).resolve().parent.parent / "src" / "datamanager" / "cli"
    named = {
        name for file in folder.glob("*.py") for name in re.findall(r'lazy\("([\w.]+)"\)', file.read_text("utf-8"))
    }
    assert len(named) > 8
    for name in [*named, *(entry.module for entry in COMMANDS.values())]:
        assert importlib.util.find_spec(name) is not None, name


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_command_has_json_and_help_with_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert f"datamanager {' '.join(words)}" in text.partition("Examples:")[2]
    assert "Exit status: 0 done; 3 done with warnings" in text


def test_the_pages_are_in_step_with_the_commands_and_errors() -> None:
    assert cli_reference.main(["--check"]) == 0


def test_every_exit_code_is_unique_documented_and_explained() -> None:
    kinds = cli_reference.failures()
    codes = [0, WITH_WARNINGS, *(kind.exit_code for kind in kinds)]
    assert len(codes) == len(set(codes))
    assert {kind.__name__ for kind in kinds} == set(cli_reference.MEANINGS)
    page = (cli_reference.DOCS / "exit-codes.md").read_text(encoding="utf-8")
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == sorted(codes)


def test_every_error_class_can_be_the_end_of_a_command() -> None:
    waiting = [DataManagerError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        assert 0 < kind.exit_code < 256
        assert kind.exit_code != WITH_WARNINGS


def test_examples_name_options_that_exist() -> None:
    for words, command in cli_reference.commands():
        known = {name for parameter in command.params for name in parameter.opts}
        for example in command.examples:
            assert example.removeprefix("sudo ").startswith(words)
            # What follows a bare -- is another command.
            assert set(re.findall(r"(--[a-z-]+)", example.partition(" -- ")[0])) <= known


def test_the_reference_page_names_every_command() -> None:
    page = (Path(cli_reference.DOCS) / "cli.md").read_text(encoding="utf-8")
    for words, _ in cli_reference.commands():
        assert f"\n### {words}\n" in page
