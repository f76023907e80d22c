"""Fetch the wheels that every repository carries beside ``rescue.py``, into ``src/datamanager/rescue/wheels``.

``rescue.py`` opens a repository on a machine without this product and without a network; what it needs beyond the
standard library are AES-GCM and zstd, from these wheels where the machine has neither package nor library. A wheel that
no registry offers is reported and skipped: the rescue then falls back on the machine's libcrypto and libzstd.

    python tools/fetch_rescue_wheels.py [--into FOLDER]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "src" / "datamanager" / "rescue" / "wheels"

# The versions that the tests of rescue.py run with. cffi is what cryptography needs to be imported.
VERSIONS = {"cryptography": "50.0.2", "cffi": "2.1.1", "zstandard": "0.25.0"}

# One wheel of these serves every CPython from the one it names on (the stable ABI).
STABLE_ABI = frozenset({"cryptography"})

PYTHONS = ("3.11", "3.12", "3.13", "3.14")

# Name: the tags that pip is told to take, oldest C library first, and what the names of such wheels end in.
PLATFORMS = {
    "manylinux": (("manylinux2014_x86_64", "manylinux_2_28_x86_64"), "manylinux*x86_64"),
    "windows": (("win_amd64",), "win_amd64"),
}


@dataclass(frozen=True)
class Wanted:
    """One wheel: a package for one Python and one platform."""

    package: str
    python: str
    platform: str

    @property
    def pattern(self) -> str:
        """The pattern of its file name."""
        tag = "cp" + self.python.replace(".", "")
        python_and_abi = "cp3*-abi3" if self.package in STABLE_ABI else f"{tag}-{tag}"
        return f"{self.package}-{VERSIONS[self.package]}-{python_and_abi}-{PLATFORMS[self.platform][1]}*.whl"

    def __str__(self) -> str:
        return f"{self.package} {VERSIONS[self.package]} for Python {self.python} on {self.platform}"


def all_wanted() -> list[Wanted]:
    """List every wheel; one of the stable ABI once a platform, for the oldest Python."""
    return [
        Wanted(package, python, platform)
        for platform in PLATFORMS
        for python in PYTHONS
        for package in VERSIONS
        if package not in STABLE_ABI or python == PYTHONS[0]
    ]


def download(wheels: Sequence[Wanted], folder: Path) -> str:
    """Download wheels of one Python and one platform into ``folder``; return pip's complaint, or nothing."""
    python, platform = wheels[0].python, wheels[0].platform
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    for tag in PLATFORMS[platform][0]:
        command += ["--platform", tag]
    command += [f"{wheel.package}=={VERSIONS[wheel.package]}" for wheel in wheels]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def fetch(folder: Path) -> list[str]:
    """Fetch what is missing, remove wheels of other versions, and return one line for each that could not be had."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = all_wanted()
    kept = {path for wheel in wanted for path in folder.glob(wheel.pattern)}
    for path in set(folder.glob("*.whl")) - kept:
        path.unlink()
    missing = [wheel for wheel in wanted if not any(folder.glob(wheel.pattern))]
    complaints: list[str] = []
    for key in sorted({(wheel.platform, wheel.python) for wheel in missing}):
        group = [wheel for wheel in missing if (wheel.platform, wheel.python) == key]
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as name:
            if download(group, Path(name)):
                # One that is not there stops pip for all of them: ask again, each by itself.
                failures = [(wheel, download([wheel], Path(name))) for wheel in group]
                complaints += [f"{wheel}: {complaint}" for wheel, complaint in failures if complaint]
            for path in Path(name).glob("*.whl"):
                path.replace(folder / path.name)
    return complaints


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch what is missing; exit status 0 although some cannot be had, as the rescue works without them."""
    parser = argparse.ArgumentParser(description="Fetch the wheels that a repository carries for rescue.py.")
    parser.add_argument("--into", type=Path, default=DEFAULT_FOLDER, help="folder that gets the wheels")
    options = parser.parse_args(arguments)
    for complaint in fetch(options.into):
        print(f"skipped {complaint}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
