"""The room that a recovery takes besides the restored files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from datamanager.base.errors import TargetTooSmall
from datamanager.base.units import GIB, format_size
from datamanager.engine.recovery.segments import Need, segments_of
from datamanager.engine.recovery.spool import window_of
from datamanager.engine.recovery.workplace import folder_of
from datamanager.engine.restore.plan import RestorePlan, VolumeNeed

_KEPT_WAL_BYTES = 2 * GIB  # twice the recovery's max_wal_size, at which a restartpoint is due


def with_room_for_wal(plan: RestorePlan, needs: Sequence[Need], segment_size: int) -> RestorePlan:
    """The plan with the room that the WAL takes, beside the data directory and in it. Raises: TargetTooSmall.

    Replayed WAL stays in ``pg_wal`` until the next restartpoint. What the replayed changes add to the data is unknown.
    """
    target = plan.options.target.absolute()
    volumes = list(plan.volumes)
    for path, need in room_for_wal(target, folder_of(target), needs, segment_size).items():
        volumes = _added(volumes, path, need)
    for one in volumes:
        if one.need > one.free:
            raise TargetTooSmall(
                f"restore backup: {one.path} and its WAL need {format_size(one.need)}, "
                f"their volume has {format_size(one.free)} free"
            )
    return replace(plan, volumes=volumes)


def room_for_wal(target: Path, folder: Path, needs: Sequence[Need], segment_size: int) -> dict[Path, int]:
    """Bytes that WAL takes at most at a time, by the place where: what was replayed, and what is on its way there.

    Args: target - takes the first; folder - of the spool.
    """
    total = len(segments_of(needs, segment_size)) * segment_size
    return {target: min(total, _KEPT_WAL_BYTES), folder: min(total, window_of(segment_size) * segment_size)}


def _added(volumes: list[VolumeNeed], path: Path, need: int) -> list[VolumeNeed]:
    """With that need on the volume on which ``path`` will lie."""
    home = _present(path).stat().st_dev
    if any(_present(one.path).stat().st_dev == home for one in volumes):
        return [
            replace(one, need=one.need + need) if _present(one.path).stat().st_dev == home else one for one in volumes
        ]
    return [*volumes, VolumeNeed(path, need, psutil.disk_usage(str(_present(path))).free)]


def _present(path: Path) -> Path:
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
