"""Describing services by commands in the configuration, and listing what can be stopped around a job."""

from __future__ import annotations

from typing import Any

from datamanager.app.around import service_manager
from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.base.errors import DataManagerError, NotFound
from datamanager.config.model import Config
from datamanager.config.names import check_name
from datamanager.system.services import Service


def listed(context: Context, *, everything: bool) -> tuple[list[Service], list[str]]:
    """Services with their state now, and warnings about those that could not be looked at.

    Args: everything - the system's own as well.
    Raises: ConfigurationError.
    """
    manager = service_manager(context)
    found: list[Service] = []
    warnings: list[str] = []
    for name in sorted(context.config().services):
        try:
            found.append(manager.look(name))
        except DataManagerError as error:
            warnings.append(f"{error.message}. {error.hint}")
    if everything and manager.system is not None:
        try:
            found += manager.system.list()
        except DataManagerError as error:
            warnings.append(f"{error.message}. {error.hint}")
    return found, warnings


def add(context: Context, name: str, *, stop: str, start: str, state: str, limit_seconds: int) -> Service:
    """Describe a service, or describe it anew.

    Returns: the service as it is now. Raises: UsageError (the name), ConfigurationError (a command), ServiceError (the
    state command does not say; the description is kept, so that it can be mended).
    """
    check_name("service", name)
    editor = context.edit()
    before = _told(editor.config, name)
    for option, value in (("stop", stop), ("start", start), ("state", state), ("limit_seconds", limit_seconds)):
        editor.set(("services", name, option), value)
    editor.save()
    audited(context, "service described", name, before=before, after=_told(context.config(), name))
    return service_manager(context).look(name)


def remove(context: Context, name: str) -> None:
    """Forget a description. Raises: NotFound, ConfigurationError."""
    editor = context.edit()
    if name not in editor.config.services:
        known = ", ".join(sorted(editor.config.services))
        raise NotFound(f"remove service: none is described as {name!r}", hint=f"Described are: {known or 'none'}.")
    before = _told(editor.config, name)
    editor.remove(("services", name))
    editor.save()
    audited(context, "service forgotten", name, before=before)


def _told(config: Config, name: str) -> dict[str, Any] | None:
    """For the audit log; None where nothing is described."""
    one = config.services.get(name)
    return None if one is None else one.model_dump(mode="json", exclude_none=True)
