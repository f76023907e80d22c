"""What a mail server may be told: addresses and host names that can hold no second line and no second command."""

from __future__ import annotations

import ipaddress
import re
from email.errors import HeaderParseError
from email.headerregistry import Address

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[?[0-9A-Fa-f:.]{2,45}\]?")
MAX_ADDRESS = 254  # RFC 5321, section 4.5.3.1.3


def check_host(host: str) -> str:
    """The name or the number of a mail server. Raises: ValueError."""
    if not _HOST.fullmatch(host):
        raise ValueError("not the name of a mail server, as in mail.example.org")
    return host.strip("[]")


def check_address(address: str) -> str:
    """An e-mail address alone, without a display name.

    Raises: ValueError. Source: RFC 5321; RFC 5322, section 3.4.1.
    """
    try:
        read = Address(addr_spec=address)
    except (ValueError, IndexError, HeaderParseError):
        read = Address()
    fits = read.username and read.domain and address.isprintable() and len(address) <= MAX_ADDRESS
    if not fits or not address.isascii() or re.search(r"[\s,;<>]", address):
        raise ValueError("not an e-mail address, as in office@example.org")
    return address


def is_loopback(host: str) -> bool:
    """Whether a host, by name or number, is this machine whatever a name server says."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
