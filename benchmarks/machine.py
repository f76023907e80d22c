"""What the figures were measured on: without it they say nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psutil

from datamanager.base.units import format_size


def machine_facts(folder: Path) -> list[str]:
    """Date, processor, memory, kernel, the file system that ``folder`` lies on, versions of the tools."""
    return [
        f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"Processor: {processor()}, {os.cpu_count()} cores; memory: {format_size(psutil.virtual_memory().total)}",
        f"Kernel: {platform.system()} {platform.release()}, {platform.machine()}; file system: {_file_system(folder)}",
        f"Python {platform.python_version()}; {_first_line('zstd', '--version')}; {_first_line('tar', '--version')}",
    ]


def processor() -> str:
    """Its name, as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else "unknown"


def _file_system(folder: Path) -> str:
    """Type of the mount that holds ``folder``: the longest mount point above it."""
    mounts = [
        part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(Path(part.mountpoint))
    ]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def _first_line(*command: str) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return f"{command[0]} missing"
    return answer.stdout.partition("\n")[0].strip("* \n")
