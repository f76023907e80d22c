"""A drill from beginning to end, with nothing left behind, however it ends.

1 restore     as a person would, into a new folder
2 start       as a clone that reaches nobody and that nobody reaches; until here the time counts as ``restore_seconds``
3 open        every database, also those that admit nobody
4 read        every table and large object
5 amcheck     indexes against tables
6 stop, remove
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg

from datamanager.base.clock import Clock
from datamanager.base.errors import (
    DataManagerError,
    IntegrityError,
    ObjectMissing,
    ServerDidNotStart,
    ServerError,
    ServerUnfit,
)
from datamanager.base.events import Listener, PhaseStarted, Progress, Touched, Warned
from datamanager.base.pipeline import StopToken
from datamanager.drills.amcheck import PROGRAM, check_database, has_program, install_extensions
from datamanager.drills.clone import Clone, Database, running_clone
from datamanager.drills.counts import Counted, Reader, refuse_missing_software, size_of_tables
from datamanager.drills.findings import Finding, Kind
from datamanager.drills.leftovers import end_server
from datamanager.drills.plan import DrillPlan
from datamanager.engine.restore.run import apply_restore
from datamanager.postgres.connection_errors import error_of_query
from datamanager.postgres.fact_queries import printable
from datamanager.repository.repository import Repository

# A start that failed for one of these says nothing about the backup: this machine is in the way.
_OF_THIS_MACHINE = re.compile(
    r"could not access file|could not load library|shared memory|Cannot allocate memory|huge pages|No space left"
    r"|could not bind|lock file|wrong ownership|group or world access|locale|collation|semaphore|too long"
    r"|invalid value for parameter|unrecognized configuration parameter|Permission denied",
    re.IGNORECASE,
)
# What a database says that this machine cannot open, whatever state it is in.
_LOCALE = re.compile(r"locale|collation|encoding", re.IGNORECASE)


@dataclass(slots=True)
class DrillResult:
    """What a drill showed.

    Args:
        findings: what does not come back as it should; none when the backup passed.
        more_findings: how many there are beside those.
        seconds: from the first byte to the last check; restore_seconds: until the server answered.
        amcheck: ``passed``, ``failed``, or why it did not run.
        visibility: the same of the visibility maps.
        dropped: databases that were being dropped when the backup was taken.
        kept: the folder that was left, on request.
    """

    findings: list[Finding] = field(default_factory=list)
    more_findings: int = 0
    seconds: float = 0.0
    restore_seconds: float = 0.0
    counted: Counted = field(default_factory=Counted)
    restored_bytes: int = 0
    page_checksums: bool = False
    amcheck: str = ""
    visibility: str = ""
    dropped: list[str] = field(default_factory=list)
    prepared_transactions: int = 0
    kept: Path | None = None

    @property
    def passed(self) -> bool:
        return not self.findings

    def checks(self) -> dict[str, Any]:
        """For ``Proof.checks``: JSON, sizes in bytes."""
        counted = self.counted
        return {
            "databases": counted.databases,
            "tables": counted.tables,
            "rows": counted.rows,
            "large_objects": counted.large_objects,
            "bytes_read": counted.bytes,
            "restored_bytes": self.restored_bytes,
            "partitioned_tables": counted.partitioned_tables,
            "foreign_tables_not_read": counted.foreign_tables,
            "materialized_views_not_populated": counted.views_not_populated,
            "databases_half_dropped": self.dropped,
            "prepared_transactions": self.prepared_transactions,
            "page_checksums": self.page_checksums,
            "amcheck": self.amcheck,
            "visibility_maps": self.visibility,
            "findings": [one.sentence for one in self.findings],
            "more_findings": self.more_findings,
        }


def run_drill(
    repository: Repository, plan: DrillPlan, clock: Clock, stop: StopToken, listener: Listener
) -> DrillResult:
    """Carry out a plan. What is wrong with the backup stands in the result; an error is raised for all else.

    Raises: TargetUnfit, TargetTooSmall, StoreError, ServerDidNotStart, ServerUnfit, ProgramMissing, Cancelled.
    """
    drill = _Drill(repository, plan, clock, stop, listener)
    with _workplace(plan, listener, drill.result):
        drill.run()
    return drill.result


@contextlib.contextmanager
def _workplace(plan: DrillPlan, listener: Listener, result: DrillResult) -> Iterator[None]:
    workplace = plan.workplace
    workplace.make(plan.manifest.backup, plan.options.account)
    finished = False
    try:
        yield
        finished = True
    finally:
        end_server(workplace.data)
        if finished and plan.options.keep:
            workplace.leave()
            result.kept = workplace.folder
        else:
            listener(PhaseStarted("removing the restored copy"))
            try:
                workplace.remove()
            except OSError as error:
                listener(
                    Warned(f"the restored copy {workplace.folder} could not be removed, the next one tries: {error}")
                )


class _Drill:
    """One drill at work; ``result`` fills up."""

    def __init__(
        self, repository: Repository, plan: DrillPlan, clock: Clock, stop: StopToken, listener: Listener
    ) -> None:
        self._repository = repository
        self._plan = plan
        self._clock = clock
        self._stop = stop
        self._listener = listener
        self._began = clock.elapsed()
        self._at = ""
        manifest = plan.manifest
        self.result = DrillResult(restored_bytes=manifest.total_bytes, page_checksums=manifest.checksums)

    def run(self) -> None:
        try:
            if self._restore():
                self._start_and_check()
        finally:
            self.result.seconds = self._clock.elapsed() - self._began
        counted = self.result.counted
        self.result.findings += counted.findings
        self.result.more_findings += counted.more_findings
        if self.result.passed:
            refuse_missing_software(counted)

    def _restore(self) -> bool:
        try:
            done = apply_restore(self._repository, self._plan.restore, self._stop, self._listener)
        except (IntegrityError, ObjectMissing) as error:
            self.result.findings.append(Finding(Kind.RESTORE, said=error.message))
            return False
        for warning in done.warnings:
            if warning not in self._plan.manifest.warnings:  # those were told when the backup was taken
                self._listener(Warned(warning))
        return True

    def _start_and_check(self) -> None:
        self._listener(PhaseStarted("starting the server on the restored copy"))
        try:
            with running_clone(self._plan, self._stop, self._listener) as clone:
                self._check(clone)
        except ServerDidNotStart as error:
            self._stop.check()
            if _OF_THIS_MACHINE.search(error.message):
                raise
            self.result.findings.append(Finding(Kind.START, said=error.message.removeprefix("start server: ")))

    def _check(self, clone: Clone) -> None:
        """Look into the clone; that its server crashes is a finding, wherever it happens."""
        try:
            databases, self.result.dropped = clone.open_all()
            self.result.restore_seconds = self._clock.elapsed() - self._began
            self._check_databases(clone, databases)
        except (psycopg.Error, ServerError) as error:
            self._stop.check()
            if clone.stays_up():
                if isinstance(error, psycopg.Error):
                    raise error_of_query("test backup", error) from error
                raise
            self.result.counted.server_lost = True
        if self.result.counted.server_lost:
            self._explain_crash(clone)

    def _check_databases(self, clone: Clone, databases: list[Database]) -> None:
        missing: dict[str, str] = {}
        without_visibility = False
        for database in databases:
            self._stop.check()
            self._at = printable(database.name)
            size = self._opened(clone, database)
            if size is None:
                continue
            title = printable(database.name)
            visibility = ""
            if self._wants_amcheck:
                installed = install_extensions(clone, database)
                visibility = installed.visibility
                without_visibility = without_visibility or not visibility
                if installed.missing:
                    missing[title] = installed.missing
            self._read(clone, database, size, visibility)
            if self._wants_amcheck and title not in missing and not self.result.counted.server_lost:
                self._amcheck(clone, database)
            if self.result.counted.server_lost:
                break
        self._judge(missing, without_visibility)

    def _explain_crash(self, clone: Clone) -> None:
        """Add the server's own words. Raises: ServerError, when nothing says that the data brought it down."""
        said = clone.last_crash()
        if said in ("", "killed"):
            raise ServerError(
                "test backup: the server on the restored copy was ended from outside",
                hint="Most often the machine ran out of memory; look into its log, then run the test restore again.",
            )
        findings = self.result.counted.findings
        if not any(one.kind is Kind.CRASH for one in findings):
            self.result.counted.found(Finding(Kind.CRASH, self._at))
        findings[:] = [replace(one, said=one.said or said) if one.kind is Kind.CRASH else one for one in findings]

    @property
    def _wants_amcheck(self) -> bool:
        return self._plan.options.amcheck and has_program(self._plan.programs)

    def _opened(self, clone: Clone, database: Database) -> int | None:
        """Bytes of its tables; None when it cannot be opened, which was noted."""
        try:
            with clone.session(database.name, writing=True) as session:
                self.result.prepared_transactions += clone.release_prepared(session)
                return size_of_tables(session)
        except psycopg.Error as error:
            self._stop.check()
            refusal: DataManagerError = error_of_query("open database", error)
        except ServerError as error:
            refusal = error
        if not clone.stays_up():
            raise refusal
        title = printable(database.name)
        if _LOCALE.search(refusal.message):
            raise ServerUnfit(
                f"open database {title}: {refusal.message}",
                hint="Install the locale that is named on this machine, or test on one like the original.",
            ) from refusal
        self.result.counted.found(Finding(Kind.OPEN, title, said=refusal.message))
        return None

    def _read(self, clone: Clone, database: Database, size: int, visibility: str) -> None:
        self._listener(PhaseStarted(f"reading every table of {printable(database.name)}"))
        progress = _Progress(size, self._listener)
        reader = Reader(clone, database, self._stop, progress.add, visibility=visibility)
        counted = reader.read()
        self.result.counted.add(counted)
        title = printable(database.name)
        self._listener(Touched(f"database {title}: {counted.tables} tables, {counted.rows} rows counted"))

    def _amcheck(self, clone: Clone, database: Database) -> None:
        self._listener(PhaseStarted(f"checking the indexes of {printable(database.name)}"))
        output = self._plan.workplace.side / "pg_amcheck.out"
        options = self._plan.options
        found = check_database(clone, database, self._plan.programs, options.account, output, self._stop)
        output.unlink(missing_ok=True)
        self.result.counted.add(found)

    def _judge(self, missing: dict[str, str], without_visibility: bool) -> None:
        """What amcheck showed, and a warning where it could not run."""
        kinds = {one.kind for one in self.result.counted.findings}
        result, options = self.result, self._plan.options
        if not options.amcheck:
            result.amcheck = result.visibility = "not asked for"
        elif not has_program(self._plan.programs):
            result.amcheck = result.visibility = f"not run: {PROGRAM} is not in {self._plan.programs.bin_directory}"
            self._warn_of(f"{PROGRAM} is not in {self._plan.programs.bin_directory}")
        else:
            result.visibility = "failed" if Kind.VISIBILITY in kinds else "passed"
            if without_visibility and Kind.VISIBILITY not in kinds:
                result.visibility = "not checked: the extension pg_visibility cannot be installed"
            result.amcheck = "failed" if kinds & {Kind.INDEX, Kind.TABLE} else "passed"
            if missing:
                where, why = next(iter(missing.items()))
                said = f"in {len(missing)} of {result.counted.databases} databases, as {where}: {why}"
                if result.amcheck == "passed":
                    result.amcheck = f"not run {said}"
                self._warn_of(f"the extension amcheck cannot be installed {said}")

    def _warn_of(self, why: str) -> None:
        self._listener(
            Warned(
                f"every row was read, but no index was held against its table: {why}; install PostgreSQL's contrib "
                "package on this machine"
            )
        )


class _Progress:
    """Adds up what the sessions have read. Thread-safe."""

    def __init__(self, total: int, listener: Callable[[Progress], None]) -> None:
        self._total = total
        self._listener = listener
        self._done = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            # Tables may have grown by the catalogs of the extensions since their sizes were added up.
            self._listener(Progress(min(self._done, self._total), self._total))
