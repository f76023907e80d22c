"""``datamanager repo key`` and ``repo kit``: what opens a repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datamanager.base.errors import UsageError
from datamanager.cli.command import FILE, Command, key_options, noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import keys
    from datamanager.app.opening import Unlocking
    from datamanager.cli import kit_output
    from datamanager.cli.session import Session
    from datamanager.repository.keys import Slot
else:
    keys = lazy("datamanager.app.keys")
    kit_output = lazy("datamanager.cli.kit_output")

command = noun("key", "Keys: passphrases, recovery codes and key files that open a repository.")

_KINDS = {1: "passphrase", 2: "recovery code", 3: "key file", 4: "open"}


def _fields(slot: Slot) -> dict[str, Any]:
    return {"id": slot.id.hex(), "kind": _KINDS[slot.kind], "label": slot.label}


@command.command("list", examples=["datamanager repo key list usb"])
@click.argument("repository", metavar="REPO")
@key_options
def list_(
    session: Session,
    repository: str,
    unlocking: Unlocking,
) -> Outcome:
    """List the keys of a repository: id, kind, label."""
    slots = keys.listed(session.context, repository, unlocking)
    lines = [f"{slot.id.hex()[:8]}  {_KINDS[slot.kind]:<13}  {slot.label}".rstrip() for slot in slots]
    return Outcome("\n".join(lines), {"keys": [_fields(slot) for slot in slots]}, log=f"{len(slots)} keys.")


@command.command(
    "add",
    examples=[
        "datamanager repo key add usb --new-passphrase-file second.txt --label bookkeeper",
        "datamanager repo key add usb --new-key-file /etc/datamanager/keys/second.key",
    ],
)
@click.argument("repository", metavar="REPO")
@click.option("--new-passphrase-file", type=FILE, metavar="FILE", help="Add the passphrase on this file's first line.")
@click.option("--new-key-file", type=FILE, metavar="FILE", help="Make a new key file here and add it.")
@click.option("--label", default="", metavar="TEXT", help="Whose it is, or where; stands in the list.")
@key_options
def add(
    session: Session,
    repository: str,
    new_passphrase_file: Path | None,
    new_key_file: Path | None,
    label: str,
    unlocking: Unlocking,
) -> Outcome:
    """Let another passphrase or key file open a repository. Without either option a new passphrase is asked for."""
    if new_passphrase_file is not None and new_key_file is not None:
        raise UsageError("add key: two new keys are given", hint="Add one at a time.")
    if new_key_file is not None:
        slot = keys.add_key_file(session.context, repository, new_key_file.absolute(), label, unlocking)
    else:
        passphrase = session.new_passphrase(new_passphrase_file)
        slot = keys.add_passphrase(session.context, repository, passphrase, label, unlocking)
    return Outcome(f"Key {slot.id.hex()[:8]} ({_KINDS[slot.kind]}) now opens {repository}.", _fields(slot))


@command.command("remove", examples=["datamanager repo key remove usb 1a2b3c4d"])
@click.argument("repository", metavar="REPO")
@click.argument("key", metavar="KEY")
@key_options
def remove(
    session: Session,
    repository: str,
    key: str,
    unlocking: Unlocking,
) -> Outcome:
    """Take a key away. KEY is the beginning of its id.

    Whoever kept a copy of the repository and the key can still read that copy.
    """
    slot = keys.remove(session.context, repository, key, unlocking)
    text = (
        f"Key {slot.id.hex()[:8]} ({_KINDS[slot.kind]}) no longer opens {repository}. "
        "Older copies of the repository still open with it."
    )
    return Outcome(text, _fields(slot))


@click.command(
    "kit",
    cls=Command,
    examples=["datamanager repo kit usb --kit-file kit.txt", "datamanager repo kit usb --replace"],
)
@click.argument("repository", metavar="REPO")
@click.option("--kit-file", type=FILE, metavar="FILE", help="Write it to this file instead of showing it.")
@click.option("--replace", is_flag=True, help="Take every older recovery code away.")
@key_options
def kit(
    session: Session,
    repository: str,
    kit_file: Path | None,
    replace: bool,
    unlocking: Unlocking,
) -> Outcome:
    """Make a recovery kit with a new recovery code.

    The code of an older kit cannot be shown, because it is nowhere stored. With --recovery-code-file the kit of that
    code is made again, and nothing is changed.
    """
    if kit_file is not None:
        kit_output.check_free(kit_file)
    if unlocking.recovery_code_file is not None:
        if replace:
            raise UsageError(
                "print kit: --replace and --recovery-code-file contradict each other", hint="Give one of them."
            )
        page = keys.same_kit(session.context, repository, unlocking.recovery_code_file)
        data: dict[str, Any] = {"repository": repository, "new_code": False}
        return kit_output.outcome(f"The recovery kit of {repository}, printed again.", data, page, kit_file)
    page, older = keys.new_kit(session.context, repository, unlocking, replace=replace)
    done = f"A new recovery code opens {repository}."
    if older:
        done += f" {older} older one{' still opens' if older == 1 else 's still open'} it."
    return kit_output.outcome(done, {"repository": repository, "new_code": True, "older_codes": older}, page, kit_file)
