"""The time zone of this computer."""

from __future__ import annotations

import tzlocal

from datamanager.base.errors import DataManagerError, UsageError
from datamanager.schedule.recurrence import check_zone


def machine_zone() -> str:
    """Its IANA name. Raises: UsageError, when the computer does not say it."""
    try:
        return check_zone(tzlocal.get_localzone_name())
    except (DataManagerError, LookupError, ValueError, OSError, TypeError) as error:
        raise UsageError(
            "find time zone: this computer does not say which one it is in",
            hint="Give --zone, for example --zone America/New_York.",
        ) from error
