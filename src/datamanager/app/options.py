"""Showing and changing single options of the configuration."""

from __future__ import annotations

from typing import Any

import tomlkit

from datamanager.app.context import Context
from datamanager.base.errors import ConfigurationError, NotFound, UsageError
from datamanager.config.model import Config
from datamanager.config.store import SECTIONS, option_names

_SHAPE = "Write it as clusters.NAME.OPTION or repositories.NAME.OPTION; `datamanager config show` lists them."


def shown(context: Context) -> dict[str, Any]:
    """The configuration in force, defaults included, ready for JSON. Raises: ConfigurationError."""
    return context.config().model_dump(mode="json")


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Every option with its whole name."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def get(context: Context, key: str) -> Any:
    """The value in force of one option. Raises: NotFound, ConfigurationError."""
    value: Any = shown(context)
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise NotFound(f"get option: there is no {key!r}", hint=_SHAPE)
        value = value[part]
    return value


def change(context: Context, key: str, text: str) -> Config:
    """Give one option of an existing section a value; an empty one brings back the default.

    Raises: UsageError (no such option), NotFound (no such section), ConfigurationError (not a value for it).
    """
    parts = key.split(".")
    if len(parts) != 3 or parts[0] not in SECTIONS:
        raise UsageError(f"set option: there is no {key!r}", hint=_SHAPE)
    section, name, option = parts
    if option not in option_names(section):
        raise UsageError(
            f"set option: {option!r} is not one of {section}",
            hint=f"The options are: {', '.join(option_names(section))}.",
        )
    if section == "clusters":
        context.cluster(name)
    else:
        context.repository(name)
    if option == "repository" and text:
        context.repository(text)
    editor = context.edit()
    editor.set_text(section, name, option, text)
    return editor.save()


def exported(context: Context) -> str:
    """The configuration as TOML, checked, for another computer; it holds no secret. Raises: ConfigurationError."""
    context.config()
    try:
        text = context.home.config_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigurationError(f"read configuration: {(error.strerror or 'not possible').lower()}") from error
    return tomlkit.dumps(tomlkit.parse(text))
