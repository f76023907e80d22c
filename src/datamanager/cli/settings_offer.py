"""The offer to change settings of a server, as ``cluster add``, ``check`` and ``remove`` make it and tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from datamanager.app import server_settings
from datamanager.app.prospects import Prospect
from datamanager.app.server_settings import Offer, Released
from datamanager.base.errors import RightMissing, ServerUnfit
from datamanager.postgres.settings import SettingChange

if TYPE_CHECKING:
    from datamanager.cli.session import Session

# take: the owner agreed beforehand; require: it is what the command is for; ask: a person, where there is one.
Mode = Literal["take", "require", "ask", "decline"]


@dataclass(frozen=True)
class Told:
    """What to add to a command's outcome."""

    lines: Sequence[str] = ()
    data: dict[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


NOTHING = Told(data={"settings_changed": [], "settings_offered": {}})


def settle(session: Session, name: str, mode: Mode) -> Told:
    """Offer what would make the backups of a cluster short, and do it or not.

    Raises: NotFound, ConfigurationError, ServerUnreachable, Cancelled; with ``require`` also RightMissing, ServerUnfit.
    """
    if mode == "decline":
        return NOTHING
    made = server_settings.offer(session.context, name)
    if made is None:
        return NOTHING
    if not made.changes:
        return _impossible(made, mode)
    agreed = mode in ("take", "require") or session.confirm(f"{made.sentence}\n{_question(made)}")
    if not agreed:
        return Told([made.sentence, made.remedy], {"settings_changed": [], "settings_offered": made.wanted})
    try:
        changed = server_settings.accept(session.context, made)
    except (RightMissing, ServerUnfit) as error:
        if mode == "require":
            raise
        return Told([made.sentence], NOTHING.data, [f"{error.message}. {error.hint}".strip()])
    return Told([_done(changed)], {"settings_changed": _fields(changed), "settings_offered": {}})


def _impossible(made: Offer, mode: Mode) -> Told:
    """Raises: with ``require``, why it cannot be done from here."""
    if mode == "require":
        raise made.refusal or ServerUnfit("change settings: wal_level is minimal", hint=made.remedy)
    if mode == "take":  # it was asked for, and was not done
        return Told([], NOTHING.data, [f"{made.sentence} {made.remedy}".rstrip()])
    return Told([made.sentence, made.remedy], NOTHING.data)


def _question(made: Offer) -> str:
    values = " and ".join(f"{one.name} = {one.after}" for one in made.changes)
    return f"Set {values} on the server now, without a restart? `cluster remove` puts it back."


def _done(changed: Sequence[SettingChange]) -> str:
    words = [f"{one.name} is now {one.shown_after} (was {one.shown_before})" for one in changed]
    return (
        f"On the server {' and '.join(words)}, without a restart: after the next backup, those that follow are short."
    )


def _fields(changes: Sequence[SettingChange]) -> list[dict[str, Any]]:
    return [asdict(one) for one in changes]


def next_backup_lines(found: Prospect) -> list[str]:
    """What ``cluster check`` says of the next backup."""
    if found.increment:
        text = f"The next backup can be an increment: only what changed since backup {found.parent} is read."
    elif found.increment is None:
        text = f"Whether the next backup can be an increment is unknown: {found.reason}."
    else:
        text = f"The next backup reads everything: {found.reason}."
    return [text, *([found.remedy] if found.remedy else [])]


def released(found: Released) -> Told:
    """What ``cluster remove`` says of the settings."""
    lines, warnings = [], []
    if found.result.restored:
        words = [f"{one.name} ({one.shown_before} again)" for one in found.result.restored]
        lines.append(f"On its server these settings are as before: {', '.join(words)}.")
    if found.result.left:
        names = ", ".join(one.name for one in found.result.left)
        lines.append(f"Somebody else has changed these settings of its server since, so they stay: {names}.")
    if found.kept and not found.to_run:
        names = ", ".join(one.name for one in found.kept)
        lines.append(f"These settings of its server stay as they were set from here: {names} ({found.why}).")
    if found.to_run:
        warnings.append(f"settings of its server could not be put back ({found.why}); run there: {found.to_run}")
    data = {
        "settings_put_back": _fields(found.result.restored),
        "settings_left": _fields([*found.result.left, *found.kept]),
    }
    return Told(lines, data, warnings)
