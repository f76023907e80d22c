"""Databases of a test's own on the shared server."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from tests.servers import Server

Connection = psycopg.Connection[TupleRow]


class NewDatabase:
    """Makes databases with names of their own and connects to them (superuser, autocommit); ``drop`` ends them all."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connections: list[Connection] = []
        self._names: list[str] = []

    def __call__(self, *, encoding: str = "UTF8") -> Connection:
        name = f"demo_{id(self)}_{len(self._names)}"
        self._names.append(name)
        self._administer(
            sql.SQL("CREATE DATABASE {} TEMPLATE template0 LOCALE 'C' ENCODING {}").format(
                sql.Identifier(name), sql.Literal(encoding)
            )
        )
        connection = self._server.connect(database=name)
        self._connections.append(connection)
        return connection

    def drop(self) -> None:
        for connection in self._connections:
            connection.close()
        for name in self._names:
            self._administer(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _administer(self, statement: sql.Composed) -> None:
        with self._server.connect() as connection:
            connection.execute(statement)


@pytest.fixture
def new_database(server: Server) -> Iterator[NewDatabase]:
    maker = NewDatabase(server)
    yield maker
    maker.drop()
