"""Keep the state as this release writes it, for the test that later releases open it.

``python -m tests.state.make_released``, run once for each new revision of the tables, writes
``released/REVISION.sqlite.sql``, ``released/REVISION.postgresql.sql`` and ``released/REVISION.json``: the same contents
in both databases, and what a reader of that release saw. What is there is never written again.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from datamanager.config.state_url import sqlite_url
from datamanager.state.database import open_state
from datamanager.state.tables import REVISION
from tests.servers import create
from tests.state.contents import described, fill
from tests.state.parts import MovedClock

RELEASED = Path(__file__).parent / "released"


def main() -> None:
    if any(RELEASED.glob(f"{REVISION}.*")):
        sys.exit(f"{RELEASED} has {REVISION} already.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "state.sqlite")
        with open_state(sqlite_url(file), clock=MovedClock()) as state:
            fill(state)
            seen = described(state)
        with closing(sqlite3.connect(file)) as connection:
            text = "\n".join(connection.iterdump()) + "\n"
    server = create("18")
    try:
        with open_state(f"postgresql://postgres@127.0.0.1:{server.port}/postgres", clock=MovedClock()) as state:
            fill(state)
        dump = server.run("pg_dump", "--schema=datamanager", "--inserts", "--no-owner", "-d", "postgres").stdout
    finally:
        server.destroy()
    RELEASED.mkdir(exist_ok=True)
    RELEASED.joinpath(f"{REVISION}.sqlite.sql").write_text(text, encoding="utf-8")
    RELEASED.joinpath(f"{REVISION}.postgresql.sql").write_text(dump, encoding="utf-8")
    RELEASED.joinpath(f"{REVISION}.json").write_text(json.dumps(seen, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
