"""The worst day: no network, no packages, no program of ours; only the drive, a bare Python and the printed code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import NewServer
from tests.disaster.command import CommandLine
from tests.disaster.scene import content_of, fill
from tests.servers import Server
from tests.storage.mounts import need

BARE_PYTHON = Path("/usr/bin/python3")

# Fails with ENETUNREACH before anything runs in the cage, or the cage is none.
_NO_ROUTE = "import socket; s = socket.socket(); s.settimeout(3); s.connect(('192.0.2.1', 9))"


def printed_code(output: str) -> str:
    """The recovery code as a person reads it off the printed kit."""
    after = output.split("RECOVERY CODE", 1)[1].strip().split("\n\n")
    lines = [part.strip() for part in after if re.fullmatch(r"\s*[0-9A-Z]+( - [0-9A-Z]+)+\s*", part)]
    return " - ".join(lines)


def caged(*words: str | Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run a bare Python without its packages, without an environment, in a network of its own without a route."""
    command = ["unshare", "--net", "--", "env", "-i", BARE_PYTHON, "-I", "-S", *words]
    return subprocess.run(
        [*map(str, command)], input=typed, cwd="/", capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def bare() -> None:
    """Skip where there is no bare Python, or no way to build the cage."""
    need("unshare", "env")
    if not BARE_PYTHON.exists():
        pytest.skip("this machine has no Python of its system")
    if shutil.which("ldconfig") and b"libzstd" not in subprocess.run(["ldconfig", "-p"], capture_output=True).stdout:
        pytest.skip("this system has no libzstd")


def _office(new_server: NewServer) -> Server:
    server = new_server(config={"shared_preload_libraries": ""})
    server.tablespace("archive 2019")
    server.script(
        'create table patients (id int primary key, name text) tablespace "archive 2019";\n'
        "insert into patients select i, 'Ödön ' || i from generate_series(1, 30000) i;\n"
        "create table visits (id int, patient int references patients, note text);\n"
        "insert into visits select i, i % 30000 + 1, repeat(md5(i::text), 4) from generate_series(1, 50000) i;\n"
    )
    fill(server, "scans", 10)
    return server


@pytest.mark.root
@pytest.mark.requirement("N13")
def test_a_bare_machine_without_network_restores_the_server_with_the_printed_code(
    bare: None, new_server: NewServer, command: CommandLine, open_folder: Path
) -> None:
    server = _office(new_server)
    drive = open_folder / "usb drive"
    printed = command.repository("usb", drive)
    command.cluster("office", server.dsn, "--repo", "usb")
    backup = command.ok("backup", "run", "office")["backup_id"]
    with server.connect() as connection:
        expected = content_of(connection)
    server.stop()
    shutil.rmtree(command.home)  # the computer is gone, and with it configuration and key file

    assert "unreachable" in caged("-c", _NO_ROUTE).stderr.lower()
    code = printed_code(printed)
    assert len(code) > 32
    listed = caged(drive / "rescue.py", "list", typed=f"{code}\n")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert backup in listed.stdout

    target, space = open_folder / "new", open_folder / "new space"
    (oid,) = re.findall(r"pg_tblspc/(\d+)", "\n".join(map(str, (server.data_directory / "pg_tblspc").iterdir())))
    words: list[str | Path] = [
        "restore",
        "--check-crc",
        "--owner",
        "postgres",
        "--tablespace",
        f"{oid}={space}",
        target,
    ]
    restored = caged(drive / "rescue.py", *words, typed=f"{code}\n")
    assert restored.returncode == 0, restored.stdout + restored.stderr
    with new_server.adopt(target, own=False).connect() as connection:
        assert content_of(connection) == expected  # requirement N13


@pytest.mark.root
def test_in_the_cage_a_wrong_code_opens_nothing_and_a_damaged_drive_gives_nothing_that_starts(
    bare: None, new_server: NewServer, command: CommandLine, open_folder: Path
) -> None:
    server = _office(new_server)
    drive = open_folder / "usb"
    code = printed_code(command.repository("usb", drive))
    command.cluster("office", server.dsn, "--repo", "usb")
    command.ok("backup", "run", "office")
    target, mapped = open_folder / "new", f"{open_folder / 'space'}"
    (link,) = (server.data_directory / "pg_tblspc").iterdir()
    words: list[str | Path] = ["restore", "--tablespace", f"{link.name}={mapped}", target]

    wrong = code[:-1] + ("7" if code[-1] != "7" else "8")
    refused = caged(drive / "rescue.py", *words, typed=f"{wrong}\n")
    assert refused.returncode == 42
    assert not target.exists()

    (pack,) = (drive / "packs").rglob("?" * 32)
    spoilt = bytearray(pack.read_bytes())
    spoilt[len(spoilt) // 3] ^= 1
    pack.write_bytes(spoilt)
    damaged = caged(drive / "rescue.py", *words, typed=f"{code}\n")
    assert damaged.returncode == 40
    assert pack.name in damaged.stdout
    assert not (target / "global/pg_control").exists()
