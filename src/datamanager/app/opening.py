"""From what a person names (a name, an address) to an opened repository."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datamanager.app.context import Context
from datamanager.base.errors import ConfigurationError, DataManagerError, NotFound, UsageError, WrongSecret
from datamanager.base.events import Touched, Warned
from datamanager.base.units import Secret
from datamanager.config.home import inside
from datamanager.config.model import RepositoryConfig
from datamanager.config.secret_files import read_secret_file, read_secret_line
from datamanager.repository import access
from datamanager.repository.format import WAL_FOLDER
from datamanager.repository.keys import Ring, SlotKind, SlotSecret
from datamanager.repository.repository import Repository
from datamanager.storage.base import Storage
from datamanager.storage.local import LocalStorage, remove_temporaries_of, sweep_temporaries
from datamanager.storage.registry import local_path, open_storage
from datamanager.storage.retry import RetryingStorage
from datamanager.system.processes import ProcessIdentity


@dataclass(frozen=True)
class Unlocking:
    """Which secret the caller brings; the configured key opens when none of these is given.

    Args: ask_passphrase - gets the passphrase from a person or a pipe; called only when nothing else opens.
    """

    passphrase_file: Path | None = None
    recovery_code_file: Path | None = None
    key_file: Path | None = None
    ask_passphrase: Callable[[str], Secret] | None = None

    def given(self) -> SlotSecret | None:
        """The secret in the files named, if any. Raises: UsageError, ConfigurationError, NotFound, WrongSecret."""
        named = [one for one in (self.passphrase_file, self.recovery_code_file, self.key_file) if one is not None]
        if len(named) > 1:
            raise UsageError("open repository: more than one secret is given", hint="Give one of them.")
        if self.passphrase_file is not None:
            return SlotSecret.passphrase(read_secret_line(self.passphrase_file, "passphrase file"))
        if self.recovery_code_file is not None:
            return SlotSecret.from_recovery_code(read_secret_line(self.recovery_code_file, "recovery code file"))
        return None if self.key_file is None else read_key_file(self.key_file)


@dataclass(frozen=True)
class Named:
    """A repository as it was named: ``name`` is empty for an address that the configuration does not know."""

    name: str
    config: RepositoryConfig

    @property
    def title(self) -> str:
        """For messages: the name, else the address."""
        return self.name or self.config.url


def read_key_file(path: Path) -> SlotSecret:
    """Raises: NotFound, ConfigurationError (others may read it), WrongSecret (not a key file)."""
    return SlotSecret.from_key_file(read_secret_file(path, "key file"))


def absolute_url(url: str) -> str:
    """The address with a relative folder made absolute, so that it means the same from everywhere."""
    folder = local_path(url)
    return url if folder is None or url.lower().startswith("file:") else str(folder)


def locate(context: Context, named: str) -> Named:
    """A repository by its name, or by the address of one. Raises: NotFound, ConfigurationError, UsageError."""
    known = context.config().repositories
    if named in known:
        return Named(named, known[named])
    if not any(mark in named for mark in ("/", "\\", ":")) and not Path(named).is_dir():
        return Named(named, context.repository(named))
    url = absolute_url(named)
    for name, one in known.items():
        if absolute_url(one.url) == url or _same_folder(one.url, url):
            return Named(name, one)
    return Named("", RepositoryConfig.model_validate({"url": url}))


def choose(context: Context, named: str | None, cluster: str | None) -> Named:
    """The repository named, else the cluster's, else the only one there is. Raises: UsageError, NotFound."""
    if named:
        return locate(context, named)
    config = context.config()
    if cluster is not None and cluster in config.clusters and (of_cluster := config.clusters[cluster].repository):
        return locate(context, of_cluster)
    if len(config.repositories) == 1:
        return locate(context, next(iter(config.repositories)))
    if not config.repositories:
        raise NotFound("find repository: there is none yet", hint="Make one with `datamanager repo init NAME URL`.")
    raise UsageError(
        "find repository: there are several",
        hint=f"Name one with --repo; they are: {', '.join(sorted(config.repositories))}.",
    )


def choose_holding(context: Context, named: str | None, cluster: str | None, backup: str) -> Named:
    """As ``choose``; where several repositories could be meant, the one that holds ``backup``.

    The names of backups stand in clear, so no key is needed to look. ``latest`` means the only cluster's repository.
    Raises: UsageError, NotFound.
    """
    config = context.config()
    if named or cluster in config.clusters or len(config.repositories) < 2:
        return choose(context, named, cluster)
    if backup == "latest":
        return choose(context, None, next(iter(config.clusters)) if len(config.clusters) == 1 else cluster)
    holding = [one for one in sorted(config.repositories) if _holds(context, locate(context, one), backup)]
    return locate(context, holding[0]) if len(holding) == 1 else choose(context, None, cluster)


def _holds(context: Context, named: Named, backup: str) -> bool:
    try:
        with opened_storage(context, named) as storage:
            names = [one.key.rsplit("/", 1)[1] for one in storage.list("manifests/")]
    except DataManagerError:
        return False  # unplugged; if it is the one that is meant, naming it says so
    return any(name.startswith(backup) or name.endswith(f"-{backup}") for name in names)


@contextlib.contextmanager
def opened_storage(context: Context, named: Named) -> Iterator[Storage]:
    """The store of a repository, with retries. Raises: StoreUnplugged, StoreError, UsageError."""
    storage = RetryingStorage(open_storage(named.config.url, growing=[WAL_FOLDER]), context.stop)
    try:
        yield storage
    finally:
        storage.close()


def sweep_leftovers(named: Named) -> int:
    """Remove what killed runs left half written in a local repository, a day after; returns how many files.

    Raises: StoreUnplugged, StoreError.
    """
    storage = open_storage(named.config.url)
    try:
        return sweep_temporaries(storage) if isinstance(storage, LocalStorage) else 0
    finally:
        storage.close()


def clear_up_after(context: Context, named: Named, process: ProcessIdentity) -> None:
    """Remove what a process that was ended by force left in a repository: half-written files, and its lease.

    The lease only where no person must be asked for a secret; else the next one at work removes it.
    Raises: StoreUnplugged, StoreError.
    """
    storage = open_storage(named.config.url)
    try:
        if isinstance(storage, LocalStorage):
            remove_temporaries_of(storage, process)
    finally:
        storage.close()
    with contextlib.suppress(DataManagerError), opened(context, named, Unlocking()) as repository:
        repository.leases.survey(None)


@contextlib.contextmanager
def opened(context: Context, named: Named, unlocking: Unlocking) -> Iterator[Repository]:
    """The repository, opened; damage that a second copy healed becomes a warning.

    Raises: StoreUnplugged, NotARepository, WrongSecret, ConfigurationError, IntegrityError, StoreError.
    """
    with opened_storage(context, named) as storage:
        access.read_config(storage)
        secret = secret_for(storage, named, unlocking)
        context.listener(Touched(f"repository {named.title}" + (f" at {named.config.url}" if named.name else "")))
        yield Repository.open(storage, secret, context.clock, lambda text: context.listener(Warned(text)))


def secret_for(storage: Storage, named: Named, unlocking: Unlocking) -> SlotSecret:
    """What opens the repository: the secret given, the configured key, the published one, or an answer."""
    given = unlocking.given()
    if given is not None:
        return given
    config = named.config
    if config.open:
        return SlotSecret.open()
    if config.key_file is not None:
        check_key_outside(config.key_file, config.url)
        return read_key_file(config.key_file)
    if any(slot.kind is SlotKind.OPEN for slot in access.slots(storage)):
        return SlotSecret.open()
    if unlocking.ask_passphrase is None:
        raise WrongSecret(f"open repository: no key for {named.title} is at hand", hint=_KEYS_HINT)
    return SlotSecret.passphrase(unlocking.ask_passphrase(f"Passphrase of {named.title}"))


def ring_of(context: Context, named: Named, unlocking: Unlocking) -> Ring:
    """The keys of a repository, for a sibling of it. Raises: as ``opened``."""
    with opened(context, named, unlocking) as repository:
        return repository.ring


def check_key_outside(key_file: Path, url: str) -> None:
    """Raises: ConfigurationError, when the key would lie in the repository that it opens."""
    folder = local_path(url)
    if folder is not None and inside(key_file, folder):
        raise ConfigurationError(
            f"open repository: its key file {key_file} lies inside it",
            hint="Move the key file out of the repository: whoever takes the drive would have the key.",
        )


_KEYS_HINT = "Give --passphrase-file, --recovery-code-file or --key-file."


def _same_folder(one: str, other: str) -> bool:
    first, second = local_path(one), local_path(other)
    return first is not None and second is not None and first.resolve() == second.resolve()
