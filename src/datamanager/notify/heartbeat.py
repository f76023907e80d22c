"""The address that is asked for every minute, so that a service elsewhere notices when this computer is silent.

``URL`` says that all is well, ``URL/fail`` that something is wrong. Source: healthchecks.io/docs/http_api.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from datetime import datetime, timedelta
from urllib.parse import urlsplit, urlunsplit

from datamanager.base.errors import UsageError
from datamanager.base.units import Secret
from datamanager.notify.outbox import Report

EVERY = timedelta(seconds=60)
TIMEOUT_SECONDS = 10.0
_READ_BYTES = 4096


def check_heartbeat(url: str) -> None:
    """Raises: UsageError, for what is not a web address; it is never repeated."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
        fits = fits and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(
            "read heartbeat address: it is not a web address", hint="Give one that begins with https:// or http://."
        )


def is_due(pinged: datetime | None, now: datetime) -> bool:
    return pinged is None or abs(now - pinged) >= EVERY


def ping(url: Secret, *, well: bool, seconds: float = TIMEOUT_SECONDS) -> Report:
    """Ask for the address. Nothing is raised and nothing of the address is repeated."""
    try:
        request = urllib.request.Request(
            _address(url.reveal().decode(), well=well), headers={"User-Agent": "DataManager"}
        )
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            answer.read(_READ_BYTES)
    except urllib.error.HTTPError as error:
        error.close()
        return Report(trouble=f"the service answered {error.code}")
    except TimeoutError:
        return Report(trouble=f"no answer within {seconds:.0f} s")
    except urllib.error.URLError as error:
        return Report(trouble=_cause(error.reason, seconds))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Report(trouble=_cause(error, seconds))
    return Report(taken={"heartbeat": ()})


def _address(url: str, *, well: bool) -> str:
    if well:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/fail"))


def _cause(reason: object, seconds: float) -> str:
    if isinstance(reason, TimeoutError):
        return f"no answer within {seconds:.0f} s"
    if isinstance(reason, OSError) and reason.strerror:
        return f"the service cannot be reached: {reason.strerror.lower()}"
    return "the service cannot be reached"
