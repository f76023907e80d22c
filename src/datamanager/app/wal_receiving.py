"""One receiver of WAL at work: its archive, what it says of itself, its end."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass, replace

from datamanager.app import wal_settings
from datamanager.app.addresses import address_of
from datamanager.app.context import Context
from datamanager.app.opening import Unlocking, choose, opened
from datamanager.app.wal import drop_slots, note_slot, slot_of, whose
from datamanager.app.wal_archive import check_system
from datamanager.app.wal_beat import BEAT_SECONDS, WalBeat, WalFiles, read_wal_beat, write_wal_beat
from datamanager.app.wal_looking import look_at_archive
from datamanager.base.errors import Busy, DataManagerError
from datamanager.base.events import Touched, Warned
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.config.home import make_private_folder
from datamanager.engine.recovery.windows import BackupPoint
from datamanager.engine.wal.receive import ReceiveOptions, receive_wal
from datamanager.engine.wal.state import ReceiverState
from datamanager.postgres.wal.slot import receiver_name
from datamanager.postgres.wal.watch import system_of
from datamanager.repository.wal.archive import WalArchive
from datamanager.system.locks import held
from datamanager.system.processes import this_process

# A receiver that has said nothing of its own for so long stops its beat, and is taken for hung then.
_MUTE_SECONDS = 300.0
_LOCK_SECONDS, _SUPERVISED_LOCK_SECONDS = 1.0, 30.0
_PUT_BACK_SECONDS = 5.0
# A slot that nobody reads any more may stay for a while; looking reads every manifest.
_FORMER_SECONDS, _FORMER_AGAIN_SECONDS = 10.0, 3600.0


@dataclass(frozen=True, slots=True)
class WalStart:
    """A receiver to run.

    Args:
        repository: where to; the cluster's own unless given.
        synchronous: let commits wait for it until it ends in an orderly way; as configured unless given.
        interval_seconds: as configured unless given.
        supervised: the service keeps it running and ends it through standard input.
    """

    cluster: str
    repository: str | None = None
    synchronous: bool = False
    new_history: bool = False
    interval_seconds: float | None = None
    supervised: bool = False


def receive(context: Context, options: WalStart, unlocking: Unlocking) -> None:
    """Archive the WAL of a cluster until ``context.stop`` or ``wal stop``.

    Raises: Busy (another receiver of it runs here), WalForeign, WalContradicts, ConfigurationError, NotFound,
        StoreUnplugged (before it began); as ``receive_wal``.
    """
    make_private_folder(context.home.wal)
    files = WalFiles.of(context.home, options.cluster)
    patience = _SUPERVISED_LOCK_SECONDS if options.supervised else _LOCK_SECONDS
    with held(files.lock, context.stop, limit_seconds=patience) as mine:
        if not mine:
            raise Busy(
                f"receive WAL of {options.cluster}: another receiver of it runs{whose(files)}",
                hint=f"Run `datamanager wal stop {options.cluster}` to end that one.",
            )
        _Receiving(context, options, unlocking, files).run()


class _Receiving:
    """One receiver's process: its archive, its beat, its end."""

    def __init__(self, context: Context, options: WalStart, unlocking: Unlocking, files: WalFiles) -> None:
        self._outer = context
        self._options = options
        self._unlocking = unlocking
        self._files = files
        self._config = context.cluster(options.cluster)
        self._named = choose(context, options.repository, options.cluster)
        self._stack = contextlib.ExitStack()
        self._progress = ReceiverState()
        self._heard = context.clock.elapsed()
        self._began = context.clock.now()
        self._before = read_wal_beat(files.beat)  # of the receiver before this one
        self._slot = ""
        self._system: int | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        """Raises: as ``receive``."""
        error = ""
        self._files.stop.unlink(missing_ok=True)
        with StopToken() as stop, self._stack:
            self._context = replace(self._outer, stop=stop)
            beside = (self._beat, self._watch, self._drop_former)
            helpers = [threading.Thread(target=one, daemon=True) for one in beside]
            if self._options.synchronous or self._config.wal_synchronous:
                helpers.append(threading.Thread(target=self._synchronize, daemon=True))
            for helper in helpers:
                helper.start()
            try:
                self._receive()
            except DataManagerError as failure:
                error = failure.message
                if not self._outer.stop.stopping:
                    self._let_go_own()
                raise
            finally:
                self._ended.set()
                stop.stop("receive WAL: ended")
                for helper in helpers:
                    helper.join(_PUT_BACK_SECONDS + BEAT_SECONDS)
                self._say_how_it_goes(ended=True, error=error)

    def _receive(self) -> None:
        self._slot = slot_of(self._context, self._options.cluster, self._named, self._unlocking)
        note_slot(self._context, self._options.cluster, self._slot)
        interval = self._options.interval_seconds
        receive_wal(
            self._archive,
            address_of(self._config),
            ReceiveOptions(
                self._options.cluster,
                self._slot,
                receiver_name(self._options.cluster),
                self._config.wal_interval if interval is None else interval,
                synchronous=self._options.synchronous or self._config.wal_synchronous,
                new_history=self._options.new_history,
                reached=self._reached_before(),
            ),
            self._context.stop,
            self._context.listener,
            self._context.clock,
            self._heard_of,
        )

    def _archive(self) -> WalArchive:
        """The archive, opened anew; what was open before is closed."""
        self._stack.close()
        repository = self._stack.enter_context(opened(self._context, self._named, self._unlocking))
        if self._system is None:
            system = system_of(address_of(self._config), self._context.stop, self._context.executed)
            check_system(repository, self._options.cluster, system)
            self._system = system
        return WalArchive(repository, self._system)

    def _reached_before(self) -> tuple[str, Lsn] | None:
        """The line and the position that the last receiver had brought into this archive."""
        before = self._before
        if before is None or before.repository != self._named.title or not before.progress.line:
            return None
        return before.progress.line, before.progress.sealed

    def _heard_of(self, state: ReceiverState) -> None:
        self._heard = self._outer.clock.elapsed()
        self._progress = state

    # -- beside it -----------------------------------------------------------------------------------------------------
    def _beat(self) -> None:
        """Say how it goes as long as the receiver does anything, and look whether it is asked to end."""
        while not self._ended.is_set():
            if self._files.stop.exists():
                self._outer.stop.stop("receive WAL: stopped by `wal stop`")
            if self._outer.clock.elapsed() - self._heard < _MUTE_SECONDS:
                self._say_how_it_goes()
            self._ended.wait(BEAT_SECONDS / 2)

    def _say_how_it_goes(self, *, ended: bool = False, error: str = "") -> None:
        beat = WalBeat(
            self._outer.clock.now(),
            this_process(),
            self._began,
            self._named.title,
            self._slot,
            receiver_name(self._options.cluster),
            self._options.supervised,
            ended,
            error,
            self._progress,
        )
        # A full disk must not end the archive; whoever looks sees an old beat.
        with contextlib.suppress(OSError):
            write_wal_beat(self._files.beat, beat)

    def _watch(self) -> None:
        """Pass on that it is to end; commits that wait only for this run are let go first."""
        while not self._ended.is_set() and not self._outer.stop.wait(BEAT_SECONDS):
            pass
        if not self._ended.is_set():
            self._let_go_own()
        self._context.stop.stop(self._outer.stop.reason or "receive WAL: ended")

    def _let_go_own(self) -> None:
        """Let commits go that the service does not want to wait; also those of a receiver before that was killed."""
        if self._config.wal_synchronous:
            return
        with StopToken() as stop:
            timer = threading.Timer(_PUT_BACK_SECONDS, stop.stop, ["put settings back: it takes too long"])
            timer.daemon = True
            timer.start()
            try:
                wal_settings.turn_off_synchronous(replace(self._outer, stop=stop), self._options.cluster)
            except DataManagerError as error:
                self._outer.listener(Warned(f"{error.message}; commits wait until synchronous_standby_names is reset"))
            finally:
                timer.cancel()
                timer.join()

    def _drop_former(self) -> None:
        """Drop the slots of repositories that the archive went to before, once this one has taken their place."""
        while not self._context.stop.wait(_FORMER_SECONDS):
            if not (self._progress.caught_up and set(self._files.slot_names()) - {self._slot}):
                continue
            try:
                if self._is_own() and self._takes_over():
                    for one in drop_slots(self._context, self._options.cluster, but=self._slot):
                        self._outer.listener(Touched(f"slot {one} on the server, of a former archive: dropped"))
            except DataManagerError as error:
                if not self._context.stop.stopping:
                    self._outer.listener(Warned(f"a former slot stays on the server: {error.message}"))
                    self._context.stop.wait(_FORMER_AGAIN_SECONDS)

    def _is_own(self) -> bool:
        """Whether the archive goes where the configuration says, and not elsewhere for once."""
        return choose(self._context, None, self._options.cluster).config == self._named.config

    def _takes_over(self) -> bool:
        """Whether moments can be restored from it: a backup lies there, and the archive goes on from it."""
        with opened(self._context, self._named, self._unlocking) as repository:
            newest = max(
                (
                    one
                    for one in repository.manifests()
                    if (one.cluster, one.system_identifier) == (self._options.cluster, str(self._system))
                ),
                key=lambda one: one.sequence,
                default=None,
            )
            if newest is None:
                return False
            seen = look_at_archive(repository, newest)
        return seen.newest is not None and seen.gap_since is None and seen.end >= BackupPoint.of(newest).stop

    def _synchronize(self) -> None:
        """Let commits wait once there is somebody to wait for."""
        while not self._context.stop.wait(0.1):
            if not (self._progress.connected and self._progress.caught_up):
                continue
            try:
                wal_settings.turn_on_synchronous(self._context, self._options.cluster)
            except DataManagerError as error:
                if error.retryable and not self._context.stop.stopping:
                    self._context.stop.wait(5.0)
                    continue
                if not self._context.stop.stopping:
                    self._outer.listener(Warned(f"{error.message}; commits do not wait. {error.hint}".rstrip()))
            return


def obey_supervisor(context: Context) -> None:
    """End when standard input does: the supervisor says so, or is gone."""

    def read() -> None:
        # Not through sys.stdin: its lock, held by a thread that waits, makes Python abort at its end.
        os.read(0, 64)
        context.stop.stop("receive WAL: the service is about to end")

    threading.Thread(target=read, name="supervisor", daemon=True).start()
