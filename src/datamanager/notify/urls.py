"""Every service that Apprise knows, by an address that holds its tokens.

Nothing that Apprise says is repeated, since it may hold parts of the address; only a status code is taken from it.
"""

from __future__ import annotations

import re

import apprise

from datamanager.base.errors import NotSent, UsageError
from datamanager.base.units import Secret
from datamanager.notify.message import Message

_MAIL = ("mailto://", "mailtos://")
_STATUS = re.compile(r"\berror=(\d{3})\b")
_HINT = "See the services at https://appriseit.com/services/; the address of a webhook begins with json://."


def check_url(url: Secret) -> None:
    """Raises: UsageError, for an address that Apprise cannot use; it is never repeated."""
    text = url.reveal().decode(errors="replace")
    if text.lower().startswith(_MAIL):
        raise UsageError(
            "read address: e-mail is sent without an address of this kind",
            hint="Give --smtp HOST, --from and --to instead.",
        )
    if not text.isprintable() or _service(text, 1.0) is None:
        raise UsageError("read address: no service takes it", hint=_HINT)


def send_to_url(url: Secret, message: Message, seconds: float) -> None:
    """Raises: NotSent."""
    service = _service(url.reveal().decode(errors="replace"), seconds)
    if service is None:
        raise NotSent("send message: no service takes the address", hint=_HINT)
    all_services = apprise.Apprise(asset=_ASSET)
    all_services.add(service)
    result = all_services.notify(
        body=message.body,
        title=message.title,
        notify_type=apprise.NotifyType.FAILURE if message.urgent else apprise.NotifyType.INFO,
        body_format=apprise.NotifyFormat.TEXT,
    )
    if not result:
        said = " ".join(entry.message for entry in result.logs())
        raise NotSent(f"send message: {_cause(said)}")


# Time limits are the courier's; a second pool of threads inside would only hide what still runs. No image is fetched
# from anywhere.
_ASSET = apprise.AppriseAsset(
    async_mode=False,
    service_timeout=0,
    app_id="DataManager",
    app_desc="DataManager for PostgreSQL",
    app_url="",
    image_url_mask="",
    image_url_logo="",
    pgp_autogen=False,
    pem_autogen=False,
)


def _service(url: str, seconds: float) -> apprise.NotifyBase | None:
    try:
        service = apprise.Apprise.instantiate(url, asset=_ASSET, suppress_exceptions=True)
    except Exception:  # noqa: BLE001 - a plugin's own words may hold the address
        return None
    if not isinstance(service, apprise.NotifyBase):
        return None
    service.socket_connect_timeout = service.socket_read_timeout = seconds
    return service


def _cause(said: str) -> str:
    status = _STATUS.search(said)
    if status:
        return f"the service answered {status[1]}"
    if "onnection" in said or "timed out" in said.lower():
        return "the service cannot be reached, or did not answer in time"
    return "the service did not take it"
