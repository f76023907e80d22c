"""Real volumes for tests: images mounted in a temporary folder, always unmounted and detached again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

MIB = 1 << 20

_FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, u32), linux/fs.h
_NO_LOG_FLUSH = 2


@dataclass(frozen=True, slots=True)
class Volume:
    """A mounted volume: ``folder`` is its mount point; ``mount`` and ``unmount`` put it back and take it away."""

    folder: Path
    mount: Callable[[], None]
    unmount: Callable[[], None]

    def yank(self) -> None:
        """The mount point is empty from now on, whatever is still open."""
        run("umount", "-l", str(self.folder))

    def cut_power(self) -> None:
        """The volume stops as it stands, unwritten journal lost. Source: FS_IOC_SHUTDOWN in linux/fs.h (ext4, xfs)."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _FS_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def kill_program(self) -> None:
        """Kill the program behind a FUSE volume, so that what it had not written yet is lost."""
        place = str(self.folder)
        for process in psutil.process_iter(["cmdline"]):
            if place in (process.info["cmdline"] or []):
                process.kill()
                process.wait(10)

    def remount(self) -> None:
        """Unmount and mount again, as after plugging in anew."""
        self.unmount()
        self.mount()


def need(*programs: str) -> None:
    """Skip the test, saying why, unless these programs and the right to mount are here."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting needs root on Linux")
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(*command: str) -> str:
    """Run a program of the system; its words stand in the exception when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def ext4(base: Path, size_bytes: int = 24 * MIB) -> Iterator[Volume]:
    """A journaled file system of the kernel."""
    need("mkfs.ext4", "losetup", "mount")
    image = _image(base, size_bytes)
    run("mkfs.ext4", "-q", "-m", "0", str(image))
    with _attached(image) as device, _mounted(base, "mount", "-t", "ext4", device) as volume:
        yield volume


@contextlib.contextmanager
def exfat(base: Path, size_bytes: int = 24 * MIB) -> Iterator[Volume]:
    """What most USB drives bear, over FUSE."""
    need("mkfs.exfat", "losetup", "mount.exfat-fuse", "fusermount3")
    image = _image(base, size_bytes)
    run("mkfs.exfat", str(image))
    with _attached(image) as device, _mounted(base, "mount.exfat-fuse", device) as volume:
        yield volume


@contextlib.contextmanager
def fat32(base: Path, size_bytes: int = 64 * MIB) -> Iterator[Volume]:
    """What small USB drives bear, over FUSE."""
    need("mkfs.vfat", "fusefat")
    image = _image(base, size_bytes)
    run("mkfs.vfat", "-F32", str(image))
    with _mounted(base, "fusefat", "-o", "rw+", str(image)) as volume:
        yield volume


@contextlib.contextmanager
def tmpfs(base: Path, size_bytes: int) -> Iterator[Volume]:
    """A volume in memory, quick to fill."""
    need("mount")
    with _mounted(base, "mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs") as volume:
        yield volume


KINDS = {"ext4": ext4, "exfat": exfat, "fat32": fat32}


def _image(base: Path, size_bytes: int) -> Path:
    base.mkdir(parents=True, exist_ok=True)
    image = base / "volume.img"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    return image


@contextlib.contextmanager
def _attached(image: Path) -> Iterator[str]:
    device = run("losetup", "-f", "--show", str(image))
    try:
        yield device
    finally:
        _patiently(lambda: run("losetup", "-d", device))


@contextlib.contextmanager
def _mounted(base: Path, *command: str) -> Iterator[Volume]:
    folder = base / "mounted"
    folder.mkdir(parents=True)

    def mount() -> None:
        run(*command, str(folder))
        if not folder.is_mount():
            raise RuntimeError(f"{command[0]} mounted nothing")

    def unmount() -> None:
        if str(folder) in Path("/proc/self/mounts").read_text():
            _patiently(lambda: run("umount", str(folder)))

    mount()
    try:
        yield Volume(folder, mount, unmount)
    finally:
        with contextlib.suppress(RuntimeError):
            unmount()
        if str(folder) in Path("/proc/self/mounts").read_text():
            run("umount", "-l", str(folder))


def _patiently(action: Callable[[], object]) -> None:
    """Try for five seconds: a FUSE program or another reader may hold the volume a moment longer."""
    for _ in range(50):
        with contextlib.suppress(RuntimeError):
            action()
            return
        time.sleep(0.1)
    action()
