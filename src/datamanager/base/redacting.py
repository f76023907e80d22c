"""Taking out of a text what looks like a secret, before it is shown, logged or kept."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAMES = r"(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key)"
_VALUE = r"""(?:'(?:[^'\\]|\\.)*'|"[^"]*"|[^\s&;]+)"""
_GIVEN = re.compile(rf"(?i)({_NAMES}\s*=\s*){_VALUE}")
# With a colon it is also how our own sentences speak of a password, so this is for other programs' words alone.
_SAID = re.compile(rf"(?i)({_NAMES}[\"']?\s*:\s*){_VALUE}")
_IN_ADDRESS = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^/\s:@]*):[^/\s]*@")
_SECRET_VARIABLE = re.compile(r"PASS|PWD$|SECRET|TOKEN|CREDENTIAL|API_?KEY", re.IGNORECASE)
_SHORTEST_SECRET = 4


def redacted(text: str) -> str:
    """The text with ``***`` in place of passwords in addresses, and of what follows ``password=`` and its kin."""
    return _GIVEN.sub(r"\1***", _IN_ADDRESS.sub(r"\1:***@", text))


def redacted_output(text: str, environment: Mapping[str, str]) -> str:
    """The same of what another program said: also what follows ``password:``, and the values of the variables that it
    was given whose names speak of a secret.
    """
    values = {value for name, value in environment.items() if _SECRET_VARIABLE.search(name)}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return _SAID.sub(r"\1***", redacted(text))
