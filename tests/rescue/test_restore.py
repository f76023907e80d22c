"""rescue.py restores what was backed up, with each of the three sources of AES-GCM and zstd."""

from __future__ import annotations

import base64
import os
import stat
import sys
from pathlib import Path

import pytest

from datamanager.repository.keys import SlotSecret
from tests.rescue.build import PAGE, PASSPHRASE, Change, Maker, read_tree, sample_tree, tablespace_tree

BARE = (sys.executable, "-I", "-S")  # no installed package can be imported

# Runs a script and says its peak of memory in KiB; the kernel's own figure would count the process that started it.
PEAK = """
import re, runpy, sys
sys.argv = [word for word in sys.argv[1:] if word != "-B"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    sys.stderr.write(re.search(r"VmHWM:\\s+([0-9]+)", open("/proc/self/status").read())[1])
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """A repository with one backup, for tests that leave it as it was."""
    maker = Maker(tmp_path_factory.mktemp("rescue") / "repository")
    maker.backup(sample_tree())
    maker.deliver()
    return maker


def test_a_backup_is_restored_with_installed_packages(shared: Maker, tmp_path: Path) -> None:
    done = shared.rescue("restore", str(tmp_path / "new"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "decrypting with package cryptography; Python's package for zstd" in done.stdout
    assert read_tree(tmp_path / "new") == sample_tree()


@pytest.mark.requirement("N13")
def test_a_bare_machine_restores_with_the_script_and_the_printed_code_alone(shared: Maker, tmp_path: Path) -> None:
    done = shared.rescue("restore", str(tmp_path / "new"), python=BARE)
    if "this machine offers no" in done.stdout:
        pytest.skip("this system has no libcrypto or no libzstd")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the system's libcrypto; the system's libzstd" in done.stdout
    assert read_tree(tmp_path / "new") == sample_tree()
    refused = shared.rescue("list", python=BARE, typed="not the code\n")
    assert refused.returncode == 42
    assert "clinic" not in refused.stdout


def test_the_wheels_beside_the_script_serve_a_machine_without_packages(
    tmp_path: Path, rescue_wheels: list[Path]
) -> None:
    maker = Maker(tmp_path / "repository")
    maker.backup(sample_tree())
    maker.deliver(rescue_wheels)
    done = maker.rescue("restore", str(tmp_path / "new"), python=BARE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wheel of cryptography; wheel of zstandard" in done.stdout
    assert read_tree(tmp_path / "new") == sample_tree()


def test_a_wheel_that_was_replaced_on_the_drive_is_not_loaded(tmp_path: Path, rescue_wheels: list[Path]) -> None:
    maker = Maker(tmp_path / "repository")
    maker.backup(sample_tree())
    maker.deliver(rescue_wheels)
    for wheel in (maker.root / "wheels").iterdir():
        wheel.write_bytes(wheel.read_bytes() + b"changed")
    done = maker.rescue("list", "--libraries", str(tmp_path), python=BARE)
    assert "wheel of" not in done.stdout
    assert done.returncode == 0 or "is not the one that this rescue.py was delivered with" in done.stdout


def test_check_reads_everything_and_writes_nothing(shared: Maker, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in shared.root.rglob("*")}
    done = shared.rescue("check", "--check-crc")
    assert done.returncode == 0, done.stdout
    assert "Everything this backup needs is here and authentic" in done.stdout
    assert shared.rescue("restore", "--check").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in shared.root.rglob("*")} == before


def test_the_list_names_the_newest_backup_and_asks_to_compare_it(shared: Maker) -> None:
    done = shared.rescue("list")
    (name,) = shared.expected
    assert done.returncode == 0
    assert f"Newest on this medium: {name} (number 1)" in done.stdout
    assert "PostgreSQL 17.11" in done.stdout
    assert "Compare it with your own log" in done.stdout


def test_layers_are_painted_oldest_to_newest(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    rows = b"".join(bytes([number]) * PAGE for number in range(1, 101))
    first = maker.backup(sample_tree() | {b"base/1/shrunk": rows, b"base/1/dropped": rows, b"base/1/grown": rows})
    new = bytes([200]) * PAGE
    second = maker.increment(
        first,
        {
            # Truncated to 10 pages, then grown again: the old pages 10 to 39 must not come back.
            b"base/1/shrunk": Change(size=40 * PAGE, kept=10, pages={3: new, 12: new}),
            b"base/1/grown": Change(size=120 * PAGE, kept=100, pages=dict.fromkeys(range(90, 110), new)),
            b"base/1/dropped": None,
            b"base/1/16384": b"sent whole " * 3000,
        },
    )
    third = maker.increment(
        second,
        {
            b"base/1/shrunk": Change(size=20 * PAGE, kept=20, pages={0: new}),
            b"base/1/grown": Change(size=120 * PAGE, kept=120, pages={0: rows[:PAGE], 95: rows[:PAGE], 119: new}),
            b"base/1/dropped": b"made again",
        },
    )
    maker.deliver()
    for manifest in (first, second, third):
        target = tmp_path / manifest.backup
        done = maker.rescue("restore", "--check-crc", manifest.backup, str(target))
        assert done.returncode == 0, done.stdout
        found = read_tree(target)
        assert (found.pop(b"backup_manifest", None) is not None) == (manifest.method == "native")
        assert found == maker.expected[manifest.backup]


def test_other_page_sizes_are_restored(tmp_path: Path) -> None:
    for page in (1024, 32768):
        maker = Maker(tmp_path / str(page), page=page)
        maker.backup(sample_tree())
        maker.deliver()
        target = tmp_path / f"new{page}"
        assert maker.rescue("restore", str(target)).returncode == 0
        assert read_tree(target) == sample_tree()


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no modes and no sparse files here")
def test_modes_are_restored_and_zeros_take_no_room(shared: Maker, tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    maker.backup(sample_tree(), mode=0o640)
    maker.deliver()
    target = tmp_path / "new"
    assert maker.rescue("restore", str(target)).returncode == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert stat.S_IMODE((target / "base/1").stat().st_mode) == 0o700
    assert stat.S_IMODE((target / "PG_VERSION").stat().st_mode) == 0o640
    assert (target / "base/1/16385").stat().st_blocks * 512 < PAGE


@pytest.mark.root
@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs root")
def test_root_can_give_the_files_to_an_account(shared: Maker, tmp_path: Path) -> None:
    target = tmp_path / "outer" / "new"
    done = shared.rescue("restore", "--owner", "nobody", str(target))
    assert done.returncode == 0, done.stdout
    owners = {path.owner() for path in [target.parent, target, *target.rglob("*")]}
    assert owners == {"nobody"}
    assert "chown" not in done.stdout


def test_tablespaces_go_to_new_folders_and_never_to_their_old_ones(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    tree, fields = tablespace_tree()
    maker.backup(tree, alter=fields)
    maker.deliver()
    expected = {path: content for path, content in tree.items() if not path.startswith(b"pg_tblspc/16401")}
    outside = {
        path.removeprefix(b"pg_tblspc/16401/"): content
        for path, content in tree.items()
        if path.startswith(b"pg_tblspc/16401/")
    }
    for number, options in enumerate(([], ["--tablespace", f"16401={tmp_path / 'mapped'}"])):
        target = tmp_path / f"new{number}"
        folder = tmp_path / "mapped" if options else tmp_path / "new0-tablespaces" / "16401"
        done = maker.rescue("restore", *options, str(target))
        assert done.returncode == 0, done.stdout
        assert read_tree(target) == expected | {b"pg_tblspc/16401": str(folder).encode()}
        assert read_tree(folder) == outside
        assert f"Tablespace 16401 now lies in {folder}" in done.stdout


def test_a_tablespace_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    tree, fields = tablespace_tree()
    maker.backup(tree, alter=fields)
    maker.deliver()
    live = tmp_path / "live"
    (live / "PG_17_202406281").mkdir(parents=True)
    for option in (f"16401={live}", f"16401={tmp_path / 'new' / 'inside'}", f"16401={tmp_path}"):
        assert maker.rescue("restore", "--tablespace", option, str(tmp_path / "new")).returncode == 50
    assert maker.rescue("restore", "--tablespace", "99=/x", str(tmp_path / "new")).returncode == 2
    assert not (tmp_path / "new").exists()


def test_a_target_that_is_not_empty_stays_untouched(shared: Maker, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    done = shared.rescue("restore", str(tmp_path))
    assert done.returncode == 50
    assert "is not empty" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_volume_that_is_too_small_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    maker.backup(sample_tree(), alter={"volumes": {"base": 1 << 60}})
    maker.deliver()
    assert maker.rescue("restore", str(tmp_path / "new")).returncode == 51
    assert not (tmp_path / "new").exists()
    assert maker.rescue("restore", "--ignore-space", str(tmp_path / "new")).returncode == 0


def test_every_secret_opens_its_slot(shared: Maker, tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    code = shared.code_text()
    passphrase = PASSPHRASE.reveal()
    ways: list[tuple[list[str], str]] = [
        (["--code-file", file("code", code.encode() + b"\n")], ""),
        (["--passphrase-file", file("words", passphrase + b"\r\n")], ""),
        (["--key-file", file("key", shared.key.key_file())], ""),
        ([], code.lower().replace("-", " ") + "\n"),
        ([], code.replace("0", "o").replace("1", "l") + "\n"),
        ([], "Gru\u0308\u00dfe aus der Praxis, 4711\n"),
    ]
    for words, typed in ways:
        done = shared.rescue("list", *words, typed=typed)
        assert done.returncode == 0, (words, done.stdout)
        assert code not in done.stdout + done.stderr
    other = SlotSecret.new_recovery_code().recovery_code().reveal().decode()
    assert shared.rescue("list", typed=other + "\n").returncode == 42
    mistyped = code[:-1] + ("2" if code[-1] != "2" else "3")
    done = shared.rescue("list", typed=mistyped + "\n")
    assert done.returncode == 42
    assert "a letter of the recovery code is wrong" in done.stdout


def test_an_open_repository_asks_for_nothing(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository", open_slot=True)
    maker.backup(sample_tree())
    maker.deliver()
    assert maker.rescue("restore", str(tmp_path / "new"), typed="").returncode == 0
    assert read_tree(tmp_path / "new") == sample_tree()


def test_latest_leaves_out_deleted_backups_and_refuses_to_guess_a_server(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    first = maker.backup({b"PG_VERSION": b"17\n"})
    second = maker.backup({b"PG_VERSION": b"17\n", b"new": b"x"})
    maker.repository.put_mark(second.backup, "deleted")
    maker.deliver()
    done = maker.rescue("list")
    assert f"Newest on this medium: {first.backup}" in done.stdout
    assert "deleted by its owner" in done.stdout
    assert maker.rescue("restore", str(tmp_path / "latest")).returncode == 0
    assert read_tree(tmp_path / "latest") == {b"PG_VERSION": b"17\n"}
    assert maker.rescue("restore", second.backup[-8:], str(tmp_path / "named")).returncode == 0
    maker.repository.put_mark(second.backup, "undeleted")
    assert f"Newest on this medium: {second.backup}" in maker.rescue("list").stdout
    maker.backup({b"PG_VERSION": b"16\n"}, alter={"system_identifier": "1", "cluster": "lab"})
    done = maker.rescue("check")
    assert done.returncode == 2
    assert "clinic, lab" in done.stdout
    assert maker.rescue("check", "--cluster", "lab").returncode == 0


def test_the_end_says_what_the_server_needs_and_how_to_start_it(shared: Maker, tmp_path: Path) -> None:
    done = shared.rescue("restore", str(tmp_path / "new"))
    for words in ("PostgreSQL 17 (17.11", "Linux", "x86_64", "pgvector", f'pg_ctl -D "{tmp_path / "new"}"'):
        assert words in done.stdout
    assert "\x1b" not in done.stdout


def test_settings_outside_the_backup_are_asked_for(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    maker.backup({b"PG_VERSION": b"17\n"})
    maker.deliver()
    done = maker.rescue("restore", str(tmp_path / "new"))
    assert "holds no postgresql.conf" in done.stdout
    assert "max_connections = 100" in done.stdout


def test_a_stray_tablespace_map_is_left_out(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    maker.backup({b"PG_VERSION": b"17\n", b"tablespace_map": b"16401 /srv/live\n"})
    maker.deliver()
    assert maker.rescue("restore", str(tmp_path / "new")).returncode == 3
    assert read_tree(tmp_path / "new") == {b"PG_VERSION": b"17\n"}


def test_without_words_it_explains_itself(shared: Maker) -> None:
    done = shared.rescue()
    assert done.returncode == 2
    assert "BEFORE YOU RUN THIS FILE" in done.stdout
    assert shared.rescue("restore").returncode == 2
    assert shared.rescue("list", "--repository", str(shared.root / "packs")).returncode == 43


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_as_backups_grow(tmp_path: Path) -> None:
    def peak_kib(size: int) -> int:
        maker = Maker(tmp_path / f"repository{size}")
        block = os.urandom(1 << 20)
        maker.backup({b"file%d" % number: block for number in range(size)})
        maker.deliver()
        done = maker.rescue("check", python=(sys.executable, "-I", "-c", PEAK))
        assert done.returncode == 0, done.stdout + done.stderr
        return int(done.stderr)

    assert peak_kib(160) - peak_kib(40) < 24 << 10


def test_a_slot_from_the_printed_kit_replaces_a_lost_folder_of_keys(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    maker.backup(sample_tree())
    maker.deliver()
    slot = next(path.read_bytes() for path in sorted((maker.root / "keys").iterdir()) if path.read_bytes()[8] == 2)
    for path in (maker.root / "keys").iterdir():
        path.unlink()
    done = maker.rescue("list")
    assert done.returncode == 40
    assert "--slot-file" in done.stdout
    scanned = tmp_path / "scanned.txt"
    scanned.write_bytes(base64.encodebytes(slot))
    assert maker.rescue("restore", "--slot-file", str(scanned), str(tmp_path / "new")).returncode == 0
    assert read_tree(tmp_path / "new") == sample_tree()
