"""README.txt of a repository: for somebody who finds the drive and knows nothing of this program."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

_WIDTH = 76
_BLANK = "_" * 40


@dataclass(frozen=True, slots=True)
class ServerNeeds:
    """What a server needs to open a restored backup, as it was known when the README was written."""

    cluster: str
    version: str
    operating_system: str = ""
    architecture: str = ""
    extensions: tuple[str, ...] = ()


def readme_text(
    repository_id: str,
    created: str,
    *,
    servers: tuple[ServerNeeds, ...] = (),
    code_place: str = "",
    encrypted: bool = True,
    wheels: bool = True,
) -> str:
    """The text of README.txt, ASCII words in lines of at most 76 columns, lines ended by ``\\n``.

    Args:
        repository_id: 32 digits; the printed kit names the same.
        created: when the repository was made, for people.
        servers: the clusters backed up here, if known.
        code_place: where the printed code was to be kept; a line to fill in otherwise.
        encrypted: False for a repository with an open slot.
        wheels: whether the folder wheels goes with it.

    Never holds the SHA-256 of rescue.py: whoever could change rescue.py could change this file too.
    """
    parts = [
        _heading("BACKUPS OF A POSTGRESQL DATABASE"),
        _paragraph(
            "This folder holds backups of a PostgreSQL database server, made by DataManager for PostgreSQL. They can "
            "be restored with the one file rescue.py in this folder, on a machine that has Python 3.8 or newer. No "
            "internet is needed, and DataManager need not be installed. With DataManager installed, its own restore "
            "is faster: datamanager restore."
        ),
        f"Repository: {repository_id}\nMade:       {created}\n",
        _code_part(code_place) if encrypted else _paragraph(_OPEN),
        _heading("1. CHECK RESCUE.PY BEFORE YOU RUN IT"),
        _paragraph(
            "Whoever had this drive in hand could have replaced rescue.py by a program that steals your recovery code. "
            "So compare it with your printed recovery kit first. In this folder:"
        ),
        "    Linux, macOS:  sha256sum rescue.py        (macOS: shasum -a 256 rescue.py)\n"
        "    Windows:       certutil -hashfile rescue.py SHA256\n",
        _paragraph(
            "The 64 letters and digits must be the same as on the paper. If they are not, do not run it: take "
            "rescue.py from another drive or from the release of DataManager that the kit names, and compare again."
            + (" rescue.py itself checks the files in the folder wheels." if wheels else "")
        ),
        _heading("2. LOOK, THEN CHECK"),
        "    python3 rescue.py list\n    python3 rescue.py check\n",
        _paragraph(
            "(On Windows write  py rescue.py  instead.) The first shows which backups are here. The second reads "
            "everything the newest one needs and writes nothing. Always check before you restore."
        ),
        _heading("3. RESTORE"),
        "    python3 rescue.py restore /path/to/a/new/folder\n"
        "    python3 rescue.py restore NAME-OF-A-BACKUP /path/to/a/new/folder\n",
        _paragraph(
            "The folder must be new or empty; nothing is ever overwritten, and this drive is only read. rescue.py asks "
            "for the recovery code or the passphrase. At the end it says what to do next: which account the files "
            "belong to, and how the server is started. Other drives and servers stay as they are."
        ),
        _heading("WHAT THE RESTORED SERVER NEEDS"),
        _needs(servers),
        _paragraph(
            "The major version must be the same (17.x for 17.x), the minor one the same or newer. Linux backups "
            "restore on Linux, Windows backups on Windows, on the same kind of processor. Extensions must be installed."
        ),
        _heading("IF SOMETHING IS DAMAGED"),
        _paragraph(
            "rescue.py says what is damaged and uses second copies where there are any. Try another backup of the "
            "list, then another drive. If the folder named keys is lost, the QR code on the printed kit replaces it: "
            "rescue.py list --slot-file FILE. Do not repair or reformat the drive before you have your data."
        ),
    ]
    return "\n".join(parts)


_OPEN = (
    "THIS REPOSITORY IS NOT ENCRYPTED. Whoever has it can read everything in it; no code is needed. Keep it as "
    "safely as the server itself."
)


def _code_part(code_place: str) -> str:
    text = _paragraph(
        "It is encrypted. You need ONE of: the recovery code on the printed recovery kit (nine groups of four letters "
        "and digits), the passphrase, or a key file. Without any of them nobody can read it, not even its makers."
    )
    return text + f"\nThe printed kit was to be kept here:\n\n    {_one_line(code_place) or _BLANK}\n"


def _needs(servers: tuple[ServerNeeds, ...]) -> str:
    if not servers:
        return _paragraph("rescue.py list names the PostgreSQL version of each backup; restore names the rest.")
    lines = []
    for one in servers:
        lines.append(f"    {_one_line(one.cluster)}: PostgreSQL {_one_line(one.version)}")
        for name, value in (
            ("operating system", one.operating_system),
            ("architecture", one.architecture),
            ("extensions", ", ".join(one.extensions)),
        ):
            if value:
                lines += textwrap.wrap(
                    f"{name}: {_one_line(value)}", _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 12
                )
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


def _heading(text: str) -> str:
    return f"{text}\n{'-' * len(text)}\n"


def _paragraph(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False) + "\n"
