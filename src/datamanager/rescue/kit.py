"""The recovery kit: one printed page from which a repository can be opened on a machine that knows nothing.

It carries the recovery code, the SHA-256 of rescue.py with the command that checks it, and a QR code of the key slot
that the code opens: paper and the repository's ring suffice, even if its folder ``keys`` is lost.
"""

from __future__ import annotations

import base64
import hmac
import io
import textwrap
from dataclasses import dataclass, field

import segno

from datamanager.base.units import Secret

_WIDTH = 80
_GROUPS_PER_LINE = 3


@dataclass(frozen=True, slots=True)
class KitPage:
    """A kit ready to print. Its representation shows no secret; ``text`` and nothing else does.

    ``slot_text`` is what the QR code says: base64 of the key slot, which is of no use without the code.
    """

    repository_id: str
    slot_text: str
    _page: Secret = field(repr=False)
    _groups: tuple[Secret, ...] = field(repr=False)

    @property
    def text(self) -> Secret:
        """The page as plain text, at most 80 columns."""
        return self._page

    @property
    def groups(self) -> int:
        """How many groups the code has."""
        return len(self._groups)

    def is_group(self, number: int, typed: Secret) -> bool:
        """Whether ``typed`` is group ``number`` (from 1) of the code: typing one back proves that the page was printed.

        Any case; spaces do not count. Raises: IndexError.
        """
        if not 1 <= number <= len(self._groups):
            raise IndexError(f"the code has no group {number}")
        given = b"".join(typed.reveal().upper().split())
        return hmac.compare_digest(given, self._groups[number - 1].reveal())

    def qr_svg(self, scale: int = 4) -> str:
        """The QR code of the slot as an SVG image. Args: scale - pixels a module."""
        out = io.BytesIO()
        segno.make(self.slot_text, error="m", micro=False).save(out, kind="svg", scale=scale, xmldecl=False)
        return out.getvalue().decode()

    def qr_text(self) -> str:
        """The QR code of the slot for a terminal or a text printer, drawn with half blocks."""
        out = io.StringIO()
        segno.make(self.slot_text, error="m", micro=False).terminal(out, compact=True)
        return out.getvalue()


def recovery_kit(
    repository_id: str,
    url: str,
    code: Secret,
    slot_bytes: bytes,
    script_sha256: str,
    *,
    created: str,
    program: str,
    name: str = "",
    release_url: str = "",
) -> KitPage:
    """Make the page.

    Args:
        repository_id: 32 digits.
        url: where the repository is; holds no secret.
        code: the recovery code as printed, groups joined by ``-``.
        slot_bytes: the key slot that the code opens, as stored.
        script_sha256: of the rescue.py in that repository.
        created: when the kit was made, for people.
        program: name and release of this program.
        name: the repository's name here.
        release_url: where else rescue.py can be had.
    """
    groups = tuple(Secret(group) for group in code.reveal().split(b"-"))
    slot_text = base64.b64encode(slot_bytes).decode()
    elsewhere = f"the release of {program}" + (f", {release_url}" if release_url else "")
    rows = [("Repository", f"{name} ({repository_id})" if name else repository_id), ("Kept at", url)]
    rows += [("Printed", created), ("Program", program)]
    parts = [
        _center("RECOVERY KIT"),
        _center("keep this page away from the drives and from the server"),
        "\n".join(line for label, value in rows for line in _row(label, value)),
        "RECOVERY CODE",
        _code_lines(groups),
        _fill(
            "Whoever holds this code and a copy of the repository can read everything in it. Who has neither the code "
            "nor the passphrase can read nothing, and nobody can help. Upper or lower case does not matter; O and 0, "
            "I, L and 1 count as the same."
        ),
        "CHECK rescue.py BEFORE YOU RUN IT: ITS SHA-256 IS",
        "\n".join(_grouped(script_sha256)),
        "    Linux:    sha256sum rescue.py\n"
        "    macOS:    shasum -a 256 rescue.py\n"
        "    Windows:  certutil -hashfile rescue.py SHA256",
        _fill(
            "The command prints the 64 letters and digits in one row. If one differs, do not run it: whoever changed "
            f"it wants this code. Take rescue.py from another drive, or from {elsewhere}, and compare again. A newer "
            "release of DataManager may have replaced rescue.py; then print a new kit: datamanager repo kit."
        ),
        "STEPS ON ANY MACHINE WITH PYTHON 3.8 OR NEWER, WITHOUT INTERNET",
        "    1. Read README.txt on the drive, and check rescue.py as above.\n"
        "    2. python3 rescue.py list                   which backups are there\n"
        "    3. python3 rescue.py check                  reads all, writes nothing\n"
        "    4. python3 rescue.py restore NEW-FOLDER     then do what it says",
        _fill(
            "The QR code holds the key slot that this code opens. It is needed only if the repository has lost its "
            "folder named keys: scan it, save its text in a file, add --slot-file FILE to the commands above."
        ),
        "The same as text:",
        "\n".join("    " + line for line in textwrap.wrap(slot_text, 64)),
        "Kept by: ______________________________   Place: ______________________________",
    ]
    return KitPage(repository_id, slot_text, Secret("\n\n".join(parts) + "\n"), groups)


def _code_lines(groups: tuple[Secret, ...]) -> str:
    """No numbers beside the groups: typed along with them they would be read as part of the code."""
    words = [group.reveal().decode() for group in groups]
    lines = [" - ".join(words[start : start + _GROUPS_PER_LINE]) for start in range(0, len(words), _GROUPS_PER_LINE)]
    return "\n\n".join(_center(line) for line in lines)


def _grouped(digest: str) -> list[str]:
    eights = [digest[start : start + 8] for start in range(0, len(digest), 8)]
    return ["    " + " ".join(eights[start : start + 4]) for start in range(0, len(eights), 4)]


def _row(label: str, value: str) -> list[str]:
    shown = "".join(one if one.isprintable() else " " for one in value)
    return textwrap.wrap(shown, _WIDTH - 14, initial_indent=f"{label + ':':<14}", subsequent_indent=" " * 14) or [label]


def _center(text: str) -> str:
    return text.center(_WIDTH).rstrip()


def _fill(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
