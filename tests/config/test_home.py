"""Where the home is, and files that only their owner may read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from datamanager.base.errors import ConfigurationError, NotFound
from datamanager.base.units import Secret
from datamanager.config.home import find_home, inside
from datamanager.config.secret_files import read_secret_file, read_secret_line, write_secret_file


def test_the_variable_wins_and_is_both_folders(tmp_path: Path) -> None:
    home = find_home({"DATAMANAGER_HOME": str(tmp_path)})
    assert home.config_file == tmp_path / "config.toml"
    assert home.key_file("usb") == tmp_path / "keys" / "usb.key"
    assert home.logs == tmp_path / "logs"


def test_a_relative_home_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not an absolute path"):
        find_home({"DATAMANAGER_HOME": "here"})


def test_without_the_variable_there_is_still_a_home() -> None:
    home = find_home({})
    assert home.config.is_absolute()
    assert home.logs.is_absolute()


def test_inside_follows_links(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert inside(tmp_path / "link" / "home", tmp_path / "data")
    assert inside(tmp_path / "data", tmp_path / "data")
    assert not inside(tmp_path / "data-2", tmp_path / "data")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777])
def test_a_secret_that_others_may_read_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "my secret"
    path.write_text("x")
    path.chmod(mode)
    with pytest.raises(ConfigurationError) as caught:
        read_secret_file(path, "key file")
    assert caught.value.hint == f"Run `chmod 600 '{path}'` and try again."


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes with names")
def test_a_pipe_is_no_file_and_passes() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"secret\nmore\n")
    os.close(writing)
    assert read_secret_line(Path(f"/dev/fd/{reading}"), "passphrase file") == Secret("secret")
    os.close(reading)


def test_the_first_line_counts_and_may_not_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_bytes("pässword \r\nrest".encode())
    assert read_secret_line(path, "password file") == Secret("pässword ")
    for content in (b"", b"\n", b"\xff\xfe\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError):
            read_secret_line(path, "password file")
    path.unlink()
    with pytest.raises(NotFound, match="is not there"):
        read_secret_line(path, "password file")


def test_a_secret_file_is_new_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_secret_file(path, b"secret", "key file")
    assert read_secret_file(path, "key file") == b"secret"
    with pytest.raises(ConfigurationError, match="is there already"):
        write_secret_file(path, b"other", "key file")
    with pytest.raises(ConfigurationError, match="no such file"):
        write_secret_file(tmp_path / "no" / "key", b"secret", "key file")
