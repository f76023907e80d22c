"""The audit log: who changed what, from where, when and why; and recommendations that were declined (R11)."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datamanager.app.context import Context
from datamanager.base.errors import DataManagerError, IntegrityError, UsageError
from datamanager.base.events import Warned
from datamanager.jobs.record import JOB_VARIABLE
from datamanager.state.finding import RECOMMENDATIONS, declined_fact
from datamanager.state.model import AuditEntry
from datamanager.system.accounts import who as who

if TYPE_CHECKING:
    from datamanager.state.database import State

DECLINED, TAKEN_BACK = "recommendation declined", "recommendation taken back"
MAX_REASON = 500


def audited(
    context: Context, action: str, target: str, *, before: Any = None, after: Any = None, reason: str = ""
) -> None:
    """Append what was just done to the audit log; never fails: what cannot be written becomes a warning.

    Args:
        action: as ``schedule changed``; ``target`` is what it was done to.
        before, after: what JSON can say, without secrets.
    """
    try:
        with context.state() as state:
            append(state, action, target, before=before, after=after, reason=reason)
    except DataManagerError as error:
        context.listener(Warned(f"this does not stand in the audit log: {error.message}"))


def append(
    state: State, action: str, target: str, *, before: Any = None, after: Any = None, reason: str = ""
) -> AuditEntry:
    """The same in a state that is open already. Raises: StateError."""
    return state.audit.append(
        who=who(), origin=origin(), action=action, target=target, before=before, after=after, reason=reason
    )


def origin() -> str:
    """Where this came from, as ``cli on front-desk`` or ``job 20261123T204512Z-3f9a1c on front-desk``."""
    job = os.environ.get(JOB_VARIABLE, "")
    return f"{f'job {job}' if job else 'cli'} on {socket.gethostname()}"


def listed(context: Context, limit: int, before_number: int | None = None) -> list[AuditEntry]:
    """Entries, newest first. Raises: StateError."""
    with context.state() as state:
        return state.audit.list(limit, before_number)


@dataclass(frozen=True)
class Verified:
    """A whole audit log: how many entries, and the digest of the newest, which covers all of them."""

    entries: int
    head: str


def verify(context: Context, noted_number: int | None = None, noted_head: str = "") -> Verified:
    """Check that no entry was changed, removed or put in.

    Args: noted_number, noted_head - what an earlier check gave and someone kept elsewhere; with them, a log that was
        written anew as a whole is noticed, too.
    Raises: IntegrityError, which names the first entry that is wrong; StateError.
    """
    with context.state() as state:
        count, head = state.audit.verify()
        if noted_number is not None:
            found = state.audit.list(1, noted_number + 1) if noted_number else []
            if not found or found[0].number != noted_number or found[0].digest != noted_head.strip().lower():
                raise IntegrityError(
                    f"verify audit: entry {noted_number} is not the one that was noted",
                    hint="The log was written anew since; look at who may write to the database, and keep a copy.",
                )
    return Verified(count, head)


def decline(context: Context, key: str, reason: str) -> AuditEntry:
    """Decline a recommendation for good, with a reason; ``status`` shows it as declined.

    Raises: UsageError (not a recommendation, no reason), NotFound (no such cluster), StateError.
    """
    _check_recommendation(context, key)
    if not reason.strip() or len(reason) > MAX_REASON:
        raise UsageError(
            f"decline recommendation: it takes a reason of at most {MAX_REASON} letters",
            hint="Give --reason TEXT; it stands in the audit log.",
        )
    with context.state() as state:
        before = state.alerts.value(declined_fact(key)) or None
        after = {"reason": reason.strip(), "who": who(), "time": context.clock.now().isoformat(timespec="seconds")}
        # The log first: nothing is declined without standing in it.
        entry = append(
            state, DECLINED, key, before=json.loads(before) if before else None, after=after, reason=reason.strip()
        )
        state.alerts.set_value(declined_fact(key), json.dumps(after))
    return entry


def take_back(context: Context, key: str) -> AuditEntry:
    """Let a declined recommendation hold again. Raises: UsageError (it was not declined), NotFound, StateError."""
    _check_recommendation(context, key)
    with context.state() as state:
        before = state.alerts.value(declined_fact(key))
        if not before:
            raise UsageError(f"take back: {key} was not declined", hint="See `datamanager status`.")
        entry = append(state, TAKEN_BACK, key, before=json.loads(before))
        state.alerts.set_value(declined_fact(key), "")
    return entry


def _check_recommendation(context: Context, key: str) -> None:
    kind, _, cluster = key.partition(":")
    if kind not in RECOMMENDATIONS or not cluster:
        names = ", ".join(f"{one}:CLUSTER" for one in RECOMMENDATIONS)
        raise UsageError(
            f"decline recommendation: {key!r} is not one",
            hint=f"Those that can be declined are: {names}. What is at risk or not protected cannot be declined.",
        )
    context.cluster(cluster)
