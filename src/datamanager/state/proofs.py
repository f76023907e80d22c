"""Test restores and what they showed."""

from __future__ import annotations

import builtins

from sqlalchemy import select

from datamanager.state.connections import Database
from datamanager.state.model import Proof
from datamanager.state.rows import row_of, value_of
from datamanager.state.tables import proofs


class ProofStore:
    """Thread-safe; every method raises StateUnavailable (retryable) and StateError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, proof: Proof) -> None:
        """Keep a proof; the one of the same job and backup is kept once."""
        row = row_of(proof) | {"checks": dict(proof.checks)}
        with self._database.writing("save proof") as connection:
            connection.execute(self._database.insert(proofs).values(**row).on_conflict_do_nothing())

    def list(self, cluster: str | None = None, limit: int | None = 50) -> builtins.list[Proof]:
        """Proofs, newest first."""
        return self._found(cluster, None, limit)

    def last(self, cluster: str, *, passed: bool | None = None) -> Proof | None:
        """The newest proof of a cluster; with ``passed``, the newest that passed or failed."""
        found = self._found(cluster, passed, 1)
        return found[0] if found else None

    def _found(self, cluster: str | None, passed: bool | None, limit: int | None) -> builtins.list[Proof]:
        query = select(proofs).order_by(proofs.c.time.desc(), proofs.c.number.desc()).limit(limit)
        if cluster is not None:
            query = query.where(proofs.c.cluster == cluster)
        if passed is not None:
            query = query.where(proofs.c.passed == passed)
        with self._database.reading("list proofs") as connection:
            return [value_of(Proof, row) for row in connection.execute(query).mappings()]
