"""Handing out a recovery kit: shown once, or written to a file that only its owner reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamanager.base.errors import ConfigurationError, UsageError
from datamanager.cli.outcome import Outcome
from datamanager.config.secret_files import write_secret_file
from datamanager.rescue.kit import KitPage


def check_free(path: Path) -> None:
    """Raises: UsageError, before anything is made, when the kit could not be written there."""
    if path.exists():
        raise UsageError(f"write kit: {path} is there already", hint="Give the path of a new file.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"write kit: folder {path.absolute().parent} is not there", hint="Make the folder first.")


def outcome(done: str, data: dict[str, Any], page: KitPage, kit_file: Path | None) -> Outcome:
    """The end of a command that made a kit; without a file the kit itself is the result."""
    text = page.text.reveal().decode() + "\n" + page.qr_text()
    if kit_file is None:
        shown = f"{done}\n\n{text}\n{_ADVICE}"
        return Outcome(shown, {**data, "kit": text, "kit_file": None}, log=f"{done} The recovery kit was shown.")
    try:
        write_secret_file(kit_file, text.encode(), "kit")
    except ConfigurationError as error:
        shown = f"{done}\n\n{text}\n{_ADVICE}"
        return Outcome(
            shown,
            {**data, "kit": text, "kit_file": None},
            [f"{error.message}; the kit is shown instead"],
            log=f"{done} The recovery kit was shown.",
        )
    place = kit_file.absolute()
    return Outcome(
        f"{done}\nThe recovery kit is in {place}: print it, keep the paper apart from the drive, then delete the file.",
        {**data, "kit_file": str(place)},
        log=f"{done} The recovery kit was written to {place}.",
    )


_ADVICE = (
    "Print this page now and keep it apart from the drive and from this computer: the recovery code is shown only this "
    "once, and without it and the passphrase nobody can read the backups."
)
