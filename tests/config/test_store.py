"""config.toml: comments stay, mistakes are named, nothing is half written."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from datamanager.base.errors import ConfigurationError
from datamanager.config.model import Checkpoint
from datamanager.config.store import ConfigEditor, load

TEXT = """\
# Written by hand.
[repositories.usb]   # the green drive
url = "/mnt/usb"
key_file = "/etc/keys/usb.key"

[clusters.office]
conninfo = "host=localhost"
repository = "usb"
max_rate = "50MB"    # the office works meanwhile
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "config.toml"
    path.parent.mkdir()
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_an_absent_file_means_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path / "none" / "config.toml")
    assert (config.repositories, config.clusters) == ({}, {})


def test_values_are_typed_and_sizes_take_units(file: Path) -> None:
    office = load(file).clusters["office"]
    assert (office.max_rate, office.compress_level, office.checkpoint) == (50 << 20, 1, Checkpoint.FAST)


def test_a_change_keeps_comments_and_everything_else(file: Path) -> None:
    editor = ConfigEditor(file)
    editor.set_text("clusters", "office", "compress_level", "3")
    editor.set_text("repositories", "usb", "open_reason", "2024")
    editor.save()
    text = file.read_text(encoding="utf-8")
    assert all(line in text for line in TEXT.splitlines())
    assert "compress_level = 3\n" in text
    assert 'open_reason = "2024"' in text


def test_a_new_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "new" / "home" / "config.toml"
    editor = ConfigEditor(path)
    editor.set(("clusters", "office", "conninfo"), "host=localhost")
    editor.save()
    assert path.read_text(encoding="utf-8").startswith("# DataManager for PostgreSQL.")
    assert load(path).clusters["office"].conninfo == "host=localhost"


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("compres_level = 3", "clusters.office.compres_level is not an option", "Did you mean compress_level?"),
        ("compress_level = 20", "clusters.office.compress_level: input should be less than or equal to 19", "Mend it"),
        ('checkpoint = "slow"', "clusters.office.checkpoint: input should be 'fast' or 'spread'", "Mend it"),
        ('max_rate = "1KB"', "clusters.office.max_rate: input should be greater than or equal to 32768", "Mend it"),
        ('max_rate = "quick"', "clusters.office.max_rate: not a size", "Mend it"),
        ('password_file = "relative"', "clusters.office.password_file: must be an absolute path", "Mend it"),
        ("= 3", "config.toml: ", "in TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_remedy(file: Path, line: str, message: str, hint: str) -> None:
    before = "".join(one for one in TEXT.splitlines(keepends=True) if not one.startswith("max_rate"))
    file.write_text(before + line + "\n", encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_an_unknown_section_and_a_bad_name_are_named(file: Path) -> None:
    file.write_text("[cluster.office]\nconninfo = ''\n", encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert "Did you mean clusters?" in caught.value.hint
    file.write_text("[clusters.'a/b']\nconninfo = ''\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="'a/b' cannot be used"):
        load(file)


def test_a_refused_change_leaves_the_file_as_it_was(file: Path) -> None:
    editor = ConfigEditor(file)
    editor.set_text("clusters", "office", "threads", "many")
    with pytest.raises(ConfigurationError, match=r"set clusters\.office\.threads"):
        editor.save()
    assert file.read_text(encoding="utf-8") == TEXT


def test_a_change_made_meanwhile_is_not_lost(file: Path) -> None:
    mine, theirs = ConfigEditor(file), ConfigEditor(file)
    theirs.set_text("clusters", "office", "threads", "3")
    theirs.save()
    mine.set_text("clusters", "office", "compress_level", "3")
    with pytest.raises(ConfigurationError, match="has changed it meanwhile"):
        mine.save()
    assert load(file).clusters["office"].threads == 3


def test_of_many_writers_at_once_none_damages_the_file(file: Path) -> None:
    refused: list[ConfigurationError] = []

    def change(number: int) -> None:
        try:
            editor = ConfigEditor(file)
            editor.set(("clusters", f"office{number}", "conninfo"), f"host=h{number}")
            editor.save()
        except ConfigurationError as error:
            refused.append(error)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load(file).clusters) == 1 + 8 - len(refused)
    assert all("meanwhile" in error.message for error in refused)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_mode_and_owner_of_the_file_stay(file: Path) -> None:
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 65534, 65534)
    before = file.stat()
    editor = ConfigEditor(file)
    editor.set_text("clusters", "office", "threads", "2")
    editor.save()
    after = file.stat()
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


@pytest.mark.parametrize("section", ["url = 's3://key:hunter2@bucket'", "conninfo = 'password=hunter2'"])
def test_a_secret_in_the_file_is_refused_and_not_repeated(file: Path, section: str) -> None:
    kind = "repositories" if section.startswith("url") else "clusters"
    file.write_text(f"[{kind}.one]\n{section}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="does not belong in a configuration") as caught:
        load(file)
    assert "hunter2" not in caught.value.message + caught.value.hint
