"""``datamanager repo heal``: make a repository whole again from another copy of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from datamanager.base.errors import IntegrityError
from datamanager.base.units import format_duration
from datamanager.cli.command import FILE, Command, key_options
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import healing
    from datamanager.app.opening import Unlocking
    from datamanager.cli.session import Session
    from datamanager.engine.heal.run import HealResult
else:
    healing = lazy("datamanager.app.healing")


@click.command(
    "heal",
    cls=Command,
    examples=[
        "datamanager repo heal usb usb2",
        "datamanager repo heal usb /media/copy/datamanager --dry-run",
        "datamanager repo heal usb /media/copy/datamanager --from-recovery-code-file code.txt",
    ],
    job=True,
    heavy=True,
    if_failed="What was damaged may be damaged still; nothing that was whole was changed.",
)
@click.argument("repository", metavar="REPO")
@click.argument("source", metavar="FROM")
@click.option("--dry-run", is_flag=True, help="Only say what could be healed.")
@key_options
@click.option("--from-passphrase-file", type=FILE, metavar="FILE", help="Open FROM with this passphrase.")
@click.option("--from-recovery-code-file", type=FILE, metavar="FILE", help="Open FROM with this recovery code.")
@click.option("--from-key-file", type=FILE, metavar="FILE", help="Open FROM with this key file.")
def heal(
    session: Session,
    repository: str,
    source: str,
    dry_run: bool,
    unlocking: Unlocking,
    from_passphrase_file: Path | None,
    from_recovery_code_file: Path | None,
    from_key_file: Path | None,
) -> Outcome:
    """Make whole what is damaged in REPO, from second copies and from FROM, another copy of the same repository.

    It heals what `repo verify` has found, and what is missing. FROM is a name or an address and is not changed.
    """
    # The same keys open a copy of the drive, unless others are given for it.
    given = (from_passphrase_file, from_recovery_code_file, from_key_file)
    source_unlocking = session.unlocking(*given) if any(given) else unlocking
    ours, theirs, result = healing.heal(
        session.context, repository, source, unlocking, source_unlocking, dry_run=dry_run
    )
    data = {
        "repository": ours,
        "source": theirs,
        "dry_run": result.dry_run,
        "healed": [{"damaged_key": one.damaged_key, "key": one.key, "what": one.what} for one in result.healed],
        "not_healed": [{"key": one.key, "what": one.what} for one in result.not_healed],
        "backups_affected": result.affected,
        "seconds": round(result.seconds, 3),
    }
    return Outcome("\n".join(_lines(ours, theirs, result)), data, _warnings(result), failure=_failure(ours, result))


def _lines(ours: str, theirs: str, result: HealResult) -> list[str]:
    if not result.healed and not result.not_healed:
        return [f"Nothing in {ours} is known to be damaged. `datamanager repo verify {ours}` reads everything."]
    count = f"{len(result.healed)} damaged object{'' if len(result.healed) == 1 else 's'}"
    verb = "could be healed" if result.dry_run else "healed"
    lines = [f"{ours}: {count} {verb} from {theirs}, in {format_duration(result.seconds)}."]
    for one in result.healed:
        now = "" if one.key in ("", one.damaged_key) else f", now at {one.key}"
        lines.append(f"{'could be healed' if result.dry_run else 'healed'}: {one.damaged_key}: {one.what}{now}")
    lines += [f"NOT healed: {one.key}: {one.what}" for one in result.not_healed]
    if result.affected:
        lines.append(f"Still affected: {', '.join(result.affected)}")
    return lines


def _warnings(result: HealResult) -> list[str]:
    """What stays damaged without harm to a backup is worth a warning only."""
    if result.affected or not result.not_healed:
        return result.warnings
    count = len(result.not_healed)
    stays = f"{count} damaged object{'' if count == 1 else 's'} could not be healed; no backup misses anything for it"
    return [*result.warnings, stays]


def _failure(ours: str, result: HealResult) -> IntegrityError | None:
    if not result.affected:
        return None
    count = len(result.affected)
    return IntegrityError(
        f"heal repository {ours}: {count} backup{'' if count == 1 else 's'} still affected",
        hint="Heal from another copy. The next backup reads everything and is whole itself.",
    )
