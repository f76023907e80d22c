"""Showing and changing single options of the configuration."""

from __future__ import annotations

from typing import Any

import tomlkit

from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.base.errors import ConfigurationError, NotFound, UsageError
from datamanager.config.model import Config
from datamanager.config.store import SECTIONS, SINGLE, option_names

_SHAPE = (
    "Write it as clusters.NAME.OPTION, repositories.NAME.OPTION or notify.OPTION; `datamanager config show` lists them."
)


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
    section, _, rest = key.partition(".")
    *between, option = rest.split(".")
    if len(between) != (section in SECTIONS) or (section not in SECTIONS and section not in SINGLE):
        raise UsageError(f"set option: there is no {key!r}", hint=_SHAPE)
    name = between[0] if between else None
    if option not in option_names(section):
        raise UsageError(
            f"set option: {option!r} is not one of {section}",
            hint=f"The options are: {', '.join(option_names(section))}.",
        )
    if name is not None:
        _check_there(context, section, name)
    if option == "repository" and text:
        context.repository(text)
    before = get(context, key)
    editor = context.edit()
    editor.set_text(section, name, option, text)
    config = editor.save()
    audited(context, "option changed", key, before=before, after=get(context, key))
    return config


def _check_there(context: Context, section: str, name: str) -> None:
    """Raises: NotFound."""
    match section:
        case "clusters":
            context.cluster(name)
        case "repositories":
            context.repository(name)
        case _ if name not in (known := getattr(context.config(), section)):
            raise NotFound(
                f"find {section}: none is named {name!r}", hint=f"There are: {', '.join(sorted(known)) or 'none'}."
            )


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
