"""The tree of errors, grouped by what the caller can do.

    DataManagerError                    1
    ├── UsageError                      2   the command was given something it cannot use
    ├── ConfigurationError             10   the configuration must be mended
    ├── NotFound                       11   no such cluster, repository, backup
    ├── Busy                           12   someone else is at it; wait or look
    ├── Cancelled                     130   stopped on request
    ├── ServerError                         the PostgreSQL server
    │   ├── ServerUnreachable          20   (retryable)
    │   ├── AuthenticationFailed       21
    │   ├── RightMissing               22
    │   ├── ServerUnfit                23   a setting or a version is in the way
    │   ├── StreamBroken               24   (retryable) the connection or the server went away midway
    │   ├── ServerDidNotStart          25
    │   ├── ProgramMissing             26   a PostgreSQL program is not installed
    │   ├── IncrementRefused           27   the server cannot send only what changed; a full read can still be made
    │   └── RestoreFailed              28   it refused a statement of a dump, or PostgreSQL a restored directory
    ├── StoreError                          where sealed bytes land
    │   ├── StoreUnavailable           30   (retryable)
    │   ├── StoreUnplugged             31   the drive is not there
    │   ├── StoreFull                  32
    │   ├── StoreDenied                33   read-only or not permitted
    │   ├── ObjectExists               34
    │   └── ObjectMissing              35
    ├── RepositoryError                     the stored format
    │   ├── IntegrityError             40   stored bytes are not what was written
    │   ├── FormatUnsupported          41   written by a newer program
    │   ├── WrongSecret                42   passphrase, code or key file does not open it
    │   ├── NotARepository             43
    │   ├── WalContradicts             44   the archive holds other bytes at that place
    │   ├── WalForeign                 45   of another server, or no WAL at all
    │   └── WalMissing                 46   the archive does not hold what was asked for
    ├── StateError                     60   the database of history, schedules and audit
    │   └── StateUnavailable           62   (retryable) busy, or its server does not answer
    ├── ProofFailed                    61   a test restore found a backup that does not come back as it should
    ├── NotSent                        63   (retryable) a message did not leave
    ├── ServiceError                   64   a service around a job cannot be looked at, stopped or started
    ├── HookFailed                     65   the command before a job failed
    └── RestoreRefused                      nothing was touched
        ├── TargetUnfit                50   not empty, not writable, in use
        ├── TargetTooSmall             51
        ├── ServerMismatch             52   another version, system or architecture
        └── TargetUnreachable          53   no backup and WAL lead to that moment

``exit_code`` is stable and unique; ``hint`` is a full sentence that names what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class DataManagerError(Exception):
    """Anything this program reports as a failure.

    Args:
        message: ``verb noun: cause``, lower case, no full stop, no secret.
        hint: a full sentence with the remedy; replaces the class's own.
    """

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint


class UsageError(DataManagerError):
    exit_code = 2
    default_hint = "Run the command with --help to see its options."


class ConfigurationError(DataManagerError):
    exit_code = 10
    default_hint = "Run `datamanager config show` to see the configuration in force."


class NotFound(DataManagerError):
    exit_code = 11


class Busy(DataManagerError):
    exit_code = 12
    default_hint = "Wait until the other run has ended, then try again."


class Cancelled(DataManagerError):
    exit_code = 130
    default_hint = "Nothing was published; run the command again when ready."


class ServerError(DataManagerError):
    """Base of what goes wrong with the PostgreSQL server; ``sqlstate`` is its own code, where it gave one."""

    sqlstate = ""


class ServerUnreachable(ServerError):
    exit_code = 20
    retryable = True
    default_hint = "Check that the server runs and that host and port are right, then try again."


class AuthenticationFailed(ServerError):
    exit_code = 21
    default_hint = "Check the user name and the password (pgpass, service file or --password-file)."


class RightMissing(ServerError):
    exit_code = 22


class ServerUnfit(ServerError):
    exit_code = 23


class StreamBroken(ServerError):
    exit_code = 24
    retryable = True
    default_hint = "Nothing was published; run the backup again, it reuses what is already stored."


class ServerDidNotStart(ServerError):
    exit_code = 25


class ProgramMissing(ServerError):
    exit_code = 26


class IncrementRefused(ServerError):
    """Raised by an increment's own commands and nothing else: whoever began it reads everything instead."""

    exit_code = 27
    default_hint = "Run `datamanager cluster check NAME` to see what the server lacks for an increment."


class RestoreFailed(ServerError):
    """A foreign file that could not be restored whole."""

    exit_code = 28


class StoreError(DataManagerError):
    """Base of what goes wrong where sealed bytes land."""


class StoreUnavailable(StoreError):
    exit_code = 30
    retryable = True
    default_hint = "Check the drive or the connection, then try again."


class StoreUnplugged(StoreError):
    exit_code = 31
    default_hint = "Plug the drive in (or mount it) and run the command again."


class StoreFull(StoreError):
    exit_code = 32


class StoreDenied(StoreError):
    exit_code = 33
    default_hint = "Give this account the right to write there, or choose another place."


class ObjectExists(StoreError):
    exit_code = 34


class ObjectMissing(StoreError):
    exit_code = 35
    default_hint = "Run `datamanager repo verify` to see what is affected."


class RepositoryError(DataManagerError):
    """Base of what goes wrong with the stored format."""


class IntegrityError(RepositoryError):
    exit_code = 40
    default_hint = "Run `datamanager repo verify` to see which backups are affected; restore from another copy."


class FormatUnsupported(RepositoryError):
    exit_code = 41
    default_hint = "Install a newer release of DataManager and try again; nothing was changed."


class WrongSecret(RepositoryError):
    exit_code = 42
    default_hint = "Check the passphrase, the recovery code or the key file."


class NotARepository(RepositoryError):
    exit_code = 43
    default_hint = "Check the address, or run `datamanager repo init` to make a repository there."


class WalContradicts(RepositoryError):
    """The archive holds other bytes at the same place: the server went back in time, or it is another one."""

    exit_code = 44
    default_hint = (
        "If the server was put back to an older state, begin a new history with `datamanager wal start --new-history`."
    )


class WalForeign(RepositoryError):
    """WAL of another server, or none at all."""

    exit_code = 45
    default_hint = "Check which server archives here; each cluster has an archive of its own."


class WalMissing(RepositoryError):
    """The archive does not hold what was asked for. ``position`` is the first byte that it lacks."""

    exit_code = 46
    default_hint = "Run `datamanager wal gaps` to see what the archive holds."

    def __init__(self, message: str, position: int = 0, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.position = position


class RestoreRefused(DataManagerError):
    """Base of refusals made before anything was touched."""


class TargetUnfit(RestoreRefused):
    exit_code = 50


class TargetTooSmall(RestoreRefused):
    exit_code = 51
    default_hint = "Make room, or give a target on a bigger volume."


class ServerMismatch(RestoreRefused):
    exit_code = 52


class TargetUnreachable(RestoreRefused):
    """No backup and WAL lead to the moment that was asked for; the message tells what can be reached."""

    exit_code = 53
    default_hint = "Choose a moment that can be reached; `datamanager wal status` shows them all."


class StateError(DataManagerError):
    """The database of history, schedules, alerts and audit cannot be used; no backup depends on it."""

    exit_code = 60
    default_hint = "Run `datamanager config get state.url` to see where it is; backups do not depend on it."


class StateUnavailable(StateError):
    exit_code = 62
    retryable = True
    default_hint = "Wait a moment and try again; backups do not depend on it."


class NotSent(DataManagerError):
    """A channel did not take a message; nothing but the message waits for it."""

    exit_code = 63
    retryable = True
    default_hint = "Run `datamanager notify test` when it is mended; unsent messages are tried again by themselves."


class ServiceError(DataManagerError):
    """A service of this machine cannot be looked at, stopped or started."""

    exit_code = 64
    default_hint = "Run `datamanager services list` to see what state they are in."


class HookFailed(DataManagerError):
    """A person's own command around a job did not do its part."""

    exit_code = 65
    default_hint = "Mend the command, or leave it out; what it said stands in the log."


class ProofFailed(DataManagerError):
    """A test restore found that a backup does not come back as it should."""

    exit_code = 61
    default_hint = "Test the backup before it with `datamanager drill run ID`, and pin the newest one that passes."
