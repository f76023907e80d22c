"""Making repositories and saying what is in them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.keys import kit_page, label_of
from datamanager.app.opening import Named, Unlocking, absolute_url, check_key_outside, locate, opened, ring_of
from datamanager.app.repository_files import write_files
from datamanager.base.errors import ConfigurationError, DataManagerError, UsageError
from datamanager.base.events import PhaseStarted
from datamanager.base.units import Secret
from datamanager.config.home import make_private_folder
from datamanager.config.model import RepositoryConfig
from datamanager.config.names import check_name
from datamanager.config.secret_files import write_secret_file
from datamanager.repository import access
from datamanager.repository.format import folders
from datamanager.repository.keys import SlotKind, SlotSecret
from datamanager.repository.repository import Repository
from datamanager.rescue.kit import KitPage
from datamanager.storage.base import Space
from datamanager.storage.registry import create_storage
from datamanager.storage.retry import RetryingStorage

MIN_PASSPHRASE_LETTERS = 8


@dataclass(frozen=True)
class InitOptions:
    """How a repository is made.

    Args:
        passphrase: None only with ``open_reason``.
        open_reason: why it is not encrypted; empty for an encrypted one.
        like: a repository whose family the new one joins.
        kept_where: where the printed kit is kept; stands in README.txt.
        wheels: whether the libraries that rescue.py can use go along.
    """

    name: str
    url: str
    passphrase: Secret | None = None
    open_reason: str = ""
    like: str | None = None
    kept_where: str = ""
    wheels: bool = True


@dataclass(frozen=True)
class Made:
    """A new repository; the recovery code exists nowhere but on its kit."""

    name: str
    url: str
    repository_id: str
    key_file: Path | None
    kit: KitPage | None


def check_passphrase(passphrase: Secret) -> None:
    """Raises: UsageError, for one that is too short to protect anything."""
    if len(passphrase.reveal().decode().strip()) < MIN_PASSPHRASE_LETTERS:
        raise UsageError(
            f"read passphrase: it has fewer than {MIN_PASSPHRASE_LETTERS} letters",
            hint="Use several words; the passphrase opens the repository when everything else is lost.",
        )


def check_new(context: Context, name: str, url: str) -> str:
    """The address as it will be stored, before anybody is asked for a secret.

    Raises: UsageError, ConfigurationError, when name or key file are taken already.
    """
    check_name("repository", name)
    if name in context.config().repositories:
        raise UsageError(
            f"make repository: {name} exists already", hint="Choose another name; see `datamanager repo list`."
        )
    key_file = context.home.key_file(name)
    if key_file.exists():
        raise ConfigurationError(
            f"make repository: {key_file} is there already",
            hint="It may open an older repository of that name: keep it, and choose another name.",
        )
    address = absolute_url(url)
    check_key_outside(key_file, address)
    return address


def init(context: Context, options: InitOptions, unlocking: Unlocking) -> Made:
    """Make a repository with its keys, and enter it in the configuration.

    Args: unlocking - opens the sibling named by ``options.like``.
    Raises: UsageError, StoreUnplugged, StoreFull, StoreDenied, ConfigurationError; as ``opened`` for the sibling.
    """
    url = check_new(context, options.name, options.url)
    if options.passphrase is not None:
        check_passphrase(options.passphrase)
    like = ring_of(context, locate(context, options.like), unlocking) if options.like else None
    keys, key, code = _keys(options)
    key_file = context.home.key_file(options.name) if key else None
    if key is not None and key_file is not None:
        make_private_folder(key_file.parent)
        write_secret_file(key_file, key.key_file(), "key file")
    context.listener(PhaseStarted("making the repository"))
    try:
        storage = RetryingStorage(create_storage(url, folders()), context.stop)
        with contextlib.closing(storage):
            repository = Repository.create(storage, keys, context.clock, like)
            write_files(repository, kept_where=options.kept_where, wheels=options.wheels)
            kit = _kit(context, repository, options.name, code) if code else None
    except BaseException:
        if key_file is not None:
            key_file.unlink(missing_ok=True)
        raise
    _enter(context, options, url, key_file)
    after = {"url": url, "id": repository.id.hex(), "encrypted": not options.open_reason, "like": options.like}
    audited(context, "repository made", options.name, after=after, reason=options.open_reason)
    return Made(options.name, url, repository.id.hex(), key_file, kit)


def _kit(context: Context, repository: Repository, name: str, code: SlotSecret) -> KitPage:
    slot = next(one for one in access.slots(repository.storage) if one.kind is SlotKind.RECOVERY_CODE)
    return kit_page(context, repository, name, slot, code)


def _keys(options: InitOptions) -> tuple[list[tuple[SlotSecret, str]], SlotSecret | None, SlotSecret | None]:
    """Every slot with its label, then the key file's secret and the recovery code's."""
    if options.open_reason:
        return [(SlotSecret.open(), label_of(f"not encrypted: {options.open_reason}"))], None, None
    if options.passphrase is None:
        raise UsageError("make repository: it needs a passphrase", hint="Give --passphrase-file, or type it.")
    key, code = SlotSecret.new_key_file(), SlotSecret.new_recovery_code()
    keys = [
        (SlotSecret.passphrase(options.passphrase), "passphrase"),
        (code, "recovery code"),
        (key, label_of(f"key file of {socket.gethostname()}")),
    ]
    return keys, key, code


def _enter(context: Context, options: InitOptions, url: str, key_file: Path | None) -> None:
    editor = context.edit()
    section = ("repositories", options.name)
    editor.set((*section, "url"), url)
    if key_file is not None:
        editor.set((*section, "key_file"), str(key_file))
    else:
        editor.set((*section, "open"), True)
        editor.set((*section, "open_reason"), options.open_reason)
    editor.save()


@dataclass(frozen=True)
class Listed:
    """A configured repository; ``error`` says why nothing else is known of it."""

    name: str
    url: str
    encrypted: bool
    backups: int | None = None
    newest: str | None = None
    space: Space | None = None
    error: DataManagerError | None = None


def listed(context: Context) -> Sequence[Listed]:
    """Every configured repository. One that cannot be opened is listed with the reason."""
    return [_listed_one(context, Named(name, one)) for name, one in sorted(context.config().repositories.items())]


def _listed_one(context: Context, named: Named) -> Listed:
    config: RepositoryConfig = named.config
    try:
        with opened(context, named, Unlocking()) as repository:
            manifests = repository.manifests()
            newest = manifests[-1].ended if manifests else None
            space = repository.storage.space()
            return Listed(named.name, config.url, not config.open, len(manifests), newest, space)
    except DataManagerError as error:
        context.stop.check()
        return Listed(named.name, config.url, not config.open, error=error)
