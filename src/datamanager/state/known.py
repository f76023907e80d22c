"""What was last seen of clusters and repositories, for when they cannot be asked."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, case, delete, select

from datamanager.state.connections import Database
from datamanager.state.model import Activity, KnownCluster, KnownRepository
from datamanager.state.rows import row_of, value_of
from datamanager.state.tables import activity, clusters, repositories

# An average over this many weeks: half a year, so that an old habit is forgotten.
MOST_SAMPLES = 26


class KnownStore:
    """Thread-safe; every method raises StateUnavailable (retryable) and StateError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def cluster(self, name: str) -> KnownCluster | None:
        row = self._row(clusters, name)
        return None if row is None else _cluster(row)

    def clusters(self) -> list[KnownCluster]:
        """All of them, by name."""
        with self._database.reading("list clusters") as connection:
            return [_cluster(row) for row in connection.execute(select(clusters).order_by(clusters.c.name)).mappings()]

    def put_cluster(self, cluster: KnownCluster) -> None:
        """Write what is known of a cluster, in place of what was."""
        with self._database.writing("save cluster") as connection:
            self._database.put(connection, clusters, row_of(cluster) | {"databases": list(cluster.databases)})

    def forget_cluster(self, name: str) -> None:
        """Drop what is known of a cluster, its activity too; its jobs and proofs stay. Also when nothing is known."""
        with self._database.writing("forget cluster") as connection:
            connection.execute(delete(clusters).where(clusters.c.name == name))
            connection.execute(delete(activity).where(activity.c.cluster == name))

    def repository(self, name: str) -> KnownRepository | None:
        row = self._row(repositories, name)
        return None if row is None else value_of(KnownRepository, row)

    def repositories(self) -> list[KnownRepository]:
        """All of them, by name."""
        query = select(repositories).order_by(repositories.c.name)
        with self._database.reading("list repositories") as connection:
            return [value_of(KnownRepository, row) for row in connection.execute(query).mappings()]

    def put_repository(self, repository: KnownRepository) -> None:
        """Write what is known of a repository, in place of what was."""
        with self._database.writing("save repository") as connection:
            self._database.put(connection, repositories, row_of(repository))

    def forget_repository(self, name: str) -> None:
        """Drop what is known of a repository; also when nothing is."""
        with self._database.writing("forget repository") as connection:
            connection.execute(delete(repositories).where(repositories.c.name == name))

    def activity(self, cluster: str) -> list[Activity]:
        """The hours of the week that were looked at, in order."""
        query = select(activity).where(activity.c.cluster == cluster).order_by(activity.c.hour)
        with self._database.reading("read activity") as connection:
            return [value_of(Activity, row) for row in connection.execute(query).mappings()]

    def add_activity(self, cluster: str, hour: int, transactions: float) -> None:
        """Take one more hour into the average. Args: hour - of the week, 0 to 167; transactions - ended in it."""
        if not 0 <= hour < 168:
            raise ValueError(f"no hour of a week: {hour}")
        first = self._database.insert(activity).values(
            cluster=cluster, hour=hour, transactions=float(transactions), samples=1
        )
        counted = activity.c.samples + 1
        weight = case((counted < MOST_SAMPLES, counted), else_=MOST_SAMPLES)
        average = activity.c.transactions + (first.excluded.transactions - activity.c.transactions) / weight
        statement = first.on_conflict_do_update(
            index_elements=["cluster", "hour"], set_={"transactions": average, "samples": counted}
        )
        with self._database.writing("save activity") as connection:
            connection.execute(statement)

    def _row(self, table: Table, name: str) -> Any:
        with self._database.reading(f"read {table.name}") as connection:
            return connection.execute(select(table).where(table.c.name == name)).mappings().first()


def _cluster(row: Any) -> KnownCluster:
    return value_of(KnownCluster, {**row, "databases": tuple(row["databases"])})
