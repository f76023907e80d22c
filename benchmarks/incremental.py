"""Contenders that build upon their own last backup: ours, and pgBackRest's incremental."""

from __future__ import annotations

import shutil

from benchmarks.pgbackrest import OfPgBackRest, PgBackRest
from benchmarks.process import ContenderFailed, Finished
from benchmarks.product import OfProduct, Product
from benchmarks.workspace import tree_bytes


class ProductIncrement(OfProduct):
    """The whole command, upon the product's own last backup; what a run stores is the growth of the repository.

    A server from 17 on is expected to send an increment; when everything was read instead, the report says so.
    """

    label = ", increment"

    def __init__(self, product: Product, version: str, *, everything: bool = False) -> None:
        """Args: everything - read all of the cluster and compare, also where the server could send an increment."""
        super().__init__(product, version)
        if everything:
            self.name = f"DataManager {version}, encrypted, everything read again"
        self._options = product.full_option() if everything else ()
        self._failure = ""
        self._before = 0

    def base(self) -> None:
        try:
            self._repository, self._place = self._product.new_repository()
            self._product.backup(self._repository)
        except ContenderFailed as error:
            self._failure = str(error)

    def prepare(self) -> None:
        if self._failure or self._place is None:
            raise ContenderFailed(self._failure or "there is no backup to build upon")
        self._before = tree_bytes(self._place)

    def run(self, sample_memory: bool) -> Finished:
        self.command = self._product.shown(*self._product.backup_arguments(self._repository, *self._options))
        taken = self._product.backup(self._repository, *self._options, sample_memory=sample_memory)
        self.remark = taken.told
        return taken.finished

    def stored_bytes(self) -> int | None:
        return None if self._place is None else tree_bytes(self._place) - self._before

    def clean(self) -> None:
        return

    def remove(self) -> None:
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)


class PgBackRestIncrement(OfPgBackRest):
    """``--type=incr`` upon its own last backup; what a run stores is the growth of its backups, without their WAL."""

    def __init__(self, tool: PgBackRest, *, encrypted: bool) -> None:
        super().__init__(tool, encrypted=encrypted)
        self.name += ", incremental"
        self._failure = ""
        self._before = 0

    def base(self) -> None:
        try:
            stanza = self._ready("increment")
            stanza.call("--type=full", "backup")
            stanza.rest()
        except ContenderFailed as error:
            self._failure = str(error)

    def prepare(self) -> None:
        if self._failure:
            raise ContenderFailed(self._failure)
        stanza = self._ready("increment")
        stanza.archive()
        self._before = stanza.stored_bytes()

    def run(self, sample_memory: bool) -> Finished:
        stanza = self._ready("increment")
        self.command = self._tool.workspace.shown(stanza.argv("--type=incr", "backup"))
        return stanza.call("--type=incr", "backup", sample_memory=sample_memory)

    def stored_bytes(self) -> int | None:
        return None if self._stanza is None else self._stanza.stored_bytes() - self._before

    def clean(self) -> None:
        if self._stanza is not None:
            self._stanza.rest()
