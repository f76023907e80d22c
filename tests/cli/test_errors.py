"""What a person gives wrongly: each with its exit code, its sentence and its remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.caller import Installation
from tests.servers import Server


def ends(
    installation: Installation, words: tuple[str | Path, ...], code: int, sentence: str, remedy: str, stdin: str = ""
) -> None:
    """Assert how a command ends, for people and for programs."""
    done = installation.run(*words, stdin=stdin)
    assert done.code == code, done
    first, *rest = done.errors.splitlines()
    assert first.startswith("error: ")
    assert sentence in first
    assert remedy in "\n".join(rest)
    last = installation.run(*words, "--json", stdin=stdin).last
    assert last["message_type"] == "error"
    assert (last["exit_code"], "error: " + last["message"]) == (code, first)
    assert last["hint"] == "\n".join(rest)


@pytest.mark.parametrize(
    ("words", "code", "sentence", "remedy"),
    [
        (("backup", "run", "nobody"), 11, "find cluster: no cluster is named 'nobody'", "The clusters here are:"),
        (("backup", "run", "clinic", "--repo", "nowhere"), 11, "no repository is named 'nowhere'", "are: usb."),
        (("backup", "run", "clinic", "--repo", "/no/such/drive"), 31, "/no/such/drive is not there", "Plug"),
        (("backup", "run", "clinic", "--compress", "20"), 2, "20 is not in the range", "datamanager backup run --help"),
        (("backup", "run", "clinic", "--compress", "3", "--no-compress"), 2, "contradict each other", "Give one"),
        (("backup", "run", "clinic", "--max-rate", "fast"), 2, "not a size: 'fast'", "Write it as 50MB"),
        (("backup", "run", "clinic", "--max-rate", "1KB"), 2, "--max-rate: 1KB is out of range", "32.0 KiB to 1.0 GiB"),
        (("backup", "run", "clinic", "--name", ""), 2, "name backup: it is empty", "for example 'nightly backup'"),
        (("backup", "run", "clinic", "--name", "two\nlines"), 2, "control character U+000A", "'two-lines'"),
        (("backup", "run", "clinic", "--name", "nul.txt"), 2, "Windows keeps that name", "for example"),
        (("backup", "show", "20200101T000000Z-00000000"), 11, "0 backups match", "See `datamanager backup list`."),
        (("backup", "show", "latest", "--cluster", "other"), 11, "holds none yet", "Run `datamanager backup run`."),
        (("restore", "latest", "--target", "/etc/passwd"), 50, "is not a directory", "Give another directory."),
        (("restore", "latest", "--target", "x", "--owner", "no-such-account"), 2, "has no account", "Check --owner."),
        (("restore", "latest", "--target", "x", "--tablespace-map", "/a"), 2, "is not OLD=NEW", "Write --table"),
        (("restore", "latest", "--target", "x", "--tablespace-map", "/a=/b"), 2, "has no tablespace /a", "are: none."),
        (("restore", "latest"), 2, "it goes into a new data directory", "--target DIR"),
        (("cluster", "add", "clinic", "host=x"), 2, "add cluster: clinic exists already", "cluster set clinic"),
        (("cluster", "add", "büro nord", "host=x"), 2, "'büro nord' cannot be used", "for example buro-nord."),
        (("cluster", "add", "latest", "host=x"), 2, "'latest' cannot be used", "for example latest-cluster."),
        (("cluster", "add", "new", "host=x password=secret"), 10, "it holds a password", "--password-file FILE"),
        (("cluster", "add", "new", "nonsense"), 10, "not a libpq connection string", "Write it as `host=NAME"),
        (("cluster", "add", "new", "host=127.0.0.1 port=1"), 20, "127.0.0.1", "Check that the server runs"),
        (("cluster", "add", "new", "host=x", "--repo", "nowhere"), 11, "no repository is named 'nowhere'", "are: usb."),
        (("cluster", "set", "clinic", "colour=red"), 2, "'colour' is not an option", "The options are: conninfo"),
        (("cluster", "set", "clinic", "checkpoint=slow"), 10, "set clusters.clinic.checkpoint", "nothing was changed"),
        (("cluster", "set", "clinic", "threads"), 2, "has no equal sign", "KEY=VALUE"),
        (("config", "get", "clusters.clinic.colour"), 11, "there is no 'clusters.clinic", "clusters.NAME"),
        (("config", "set", "colour", "red"), 2, "there is no 'colour'", "clusters.NAME.OPTION"),
        (("repo", "init", "usb", "/somewhere"), 2, "make repository: usb exists already", "datamanager repo list"),
        (("repo", "init", "a b", "/somewhere"), 2, "'a b' cannot be used", "for example a-b."),
        (("repo", "init", "new", "ftp://host/x"), 2, "scheme ftp: is not known", "Give the path of a folder"),
        (("repo", "init", "new", "/no/such/drive/x"), 31, "folder /no/such/drive is not there", "Plug the drive in"),
        (("repo", "init", "new", "/somewhere", "--no-encryption"), 2, "go together", "Give both, or neither"),
        (("repo", "key", "remove", "usb", "zz"), 11, "0 keys begin with 'zz'", "See `repo key list`."),
        (("nonsense",), 2, "no such command 'nonsense'", "datamanager --help"),
        (("backup", "nonsense"), 2, "no such command 'nonsense'", "datamanager backup --help"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_its_own_code_sentence_and_remedy(
    clinic: Installation, words: tuple[str, ...], code: int, sentence: str, remedy: str
) -> None:
    ends(clinic, words, code, sentence, remedy, stdin="open sesame, said the clinic\n")


def test_a_wrong_passphrase_code_or_key_file_opens_nothing(clinic: Installation, tmp_path: Path) -> None:
    other = Installation(tmp_path)
    drive = clinic.folder / "repository of usb"
    wrong = other.secret_file("wrong.txt", "not the passphrase")
    listing: tuple[str | Path, ...] = ("backup", "list", "--repo", drive)
    ends(other, (*listing, "--passphrase-file", wrong), 42, "passphrase is not one of its keys", "Check the passphrase")
    ends(
        other, (*listing, "--recovery-code-file", wrong), 42, "letters and digits instead of 36", "Check the passphrase"
    )
    ends(other, (*listing, "--key-file", wrong), 42, "not a key file of this program", "Check the passphrase")
    ends(other, listing, 42, "passphrase is not one of its keys", "Check the passphrase", stdin="guess\n")
    ends(other, listing, 2, "nothing on standard input", "--passphrase-file FILE")
    two = (*listing, "--passphrase-file", wrong, "--key-file", wrong)
    ends(other, two, 2, "more than one secret", "Give one of them.")


def test_secret_files_that_others_may_read_are_refused_with_the_command_that_mends_it(
    clinic: Installation, tmp_path: Path
) -> None:
    other = Installation(tmp_path)
    other.passphrase_file.chmod(0o644)
    words = (
        "backup",
        "list",
        "--repo",
        clinic.folder / "repository of usb",
        "--passphrase-file",
        other.passphrase_file,
    )
    ends(other, words, 10, "other accounts may read", f"Run `chmod 600 '{other.passphrase_file}'`")
    other.passphrase_file.chmod(0o600)
    assert other.run(*words).code == 0


def test_an_unplugged_drive_is_said_to_be_unplugged_and_other_drives_still_work(installation: Installation) -> None:
    drive = installation.init("green")
    installation.init("red")
    shutil.move(drive, installation.folder / "taken away")
    remedy = "Plug the drive in"
    ends(installation, ("repo", "check", "green"), 31, f"repository drive {drive} is not there", remedy)
    drive.mkdir()  # the mount point that stays behind
    ends(installation, ("repo", "check", "green"), 31, f"repository drive {drive} is not there", remedy)
    listed = installation.run("repo", "list", "--json")
    assert listed.code == 3
    assert [one["backups"] for one in listed.last["repositories"]] == [None, 0]
    assert "Plug the drive in" in listed.last["warnings"][0]


def test_a_folder_without_a_repository_is_told_from_an_absent_drive(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"x")
    ends(installation, ("backup", "list", "--repo", tmp_path / "holiday"), 43, "holds none", "datamanager repo init")


def test_a_target_that_is_not_empty_is_left_as_it_is(clinic: Installation, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    ends(clinic, ("restore", "latest", "--target", tmp_path / "mine"), 50, "is not empty", "Give an empty directory")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep me"


def test_a_server_that_refuses_is_said_to_refuse(installation: Installation, server: Server) -> None:
    installation.init()
    dsn = f"host={server.host} port={server.port} user=nobody_at_all"
    ends(installation, ("cluster", "add", "clinic", dsn), 21, "nobody_at_all", "")
    assert installation.ok("cluster", "add", "clinic", dsn, "--no-check").code == 0
    assert installation.run("backup", "run", "clinic").code == 21
    assert installation.run("cluster", "check", "clinic").code == 21


def test_a_role_that_may_not_replicate_gets_the_statement_that_allows_it(
    installation: Installation, server: Server
) -> None:
    installation.init()
    server.sql("CREATE ROLE reader LOGIN")
    try:
        dsn = f"host={server.host} port={server.port} user=reader dbname=postgres"
        added = installation.run("cluster", "add", "clinic", dsn)
        assert (added.code, "lacks the REPLICATION attribute" in added.out) == (3, True)
        done = installation.run("backup", "run", "clinic")
        assert done.code == 22
        assert "REPLICATION" in done.errors
    finally:
        server.sql("DROP ROLE reader")


def test_keys_and_repository_may_not_lie_where_they_would_be_lost(installation: Installation, server: Server) -> None:
    inside = server.data_directory / "datamanager"
    words = ("cluster", "add", "clinic", server.dsn)
    done = installation.run(*words, home=inside)
    assert done.code == 10
    assert f"{inside} lies inside the data directory" in done.errors
    shutil.rmtree(inside, ignore_errors=True)
    done = installation.run(
        "repo", "init", "usb", installation.folder, "--passphrase-file", installation.passphrase_file
    )
    assert done.code == 10
    assert "lies inside it" in done.errors
    assert not (installation.home / "keys").exists()


def test_a_repository_that_could_not_be_made_leaves_no_key_and_no_entry(installation: Installation) -> None:
    taken = installation.folder / "taken"
    taken.mkdir()
    (taken / "something").write_text("x")
    done = installation.run("repo", "init", "usb", taken, "--passphrase-file", installation.passphrase_file)
    assert (done.code, "the place is taken" in done.errors) == (2, True)
    assert not list((installation.home / "keys").iterdir())
    assert installation.result("repo", "list")["repositories"] == []


def test_a_short_passphrase_is_refused_before_anything_is_made(installation: Installation) -> None:
    short = installation.secret_file("short", "secret\n")
    place = installation.folder / "new"
    ends(
        installation,
        ("repo", "init", "usb", place, "--passphrase-file", short),
        2,
        "fewer than 8 letters",
        "several words",
    )
    assert not place.exists()
