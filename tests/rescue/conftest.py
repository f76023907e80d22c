"""The wheels that rescue.py can load: this installation's, or fetched once into the tests' cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from datamanager.rescue import bundled_wheels

_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "rescue-wheels" / f"{sys.platform}-{sys.version_info[1]}"


@pytest.fixture(scope="session")
def rescue_wheels() -> list[Path]:
    """Wheels of cryptography, cffi and zstandard for this interpreter, among others perhaps."""
    bundled = bundled_wheels()
    if bundled:
        return bundled
    if not bundled_wheels(_CACHE):
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", str(_CACHE)]
        done = subprocess.run(
            [*words, "cryptography", "zstandard"], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            pytest.skip("the wheels for rescue.py are not here and cannot be fetched")
    return bundled_wheels(_CACHE)
