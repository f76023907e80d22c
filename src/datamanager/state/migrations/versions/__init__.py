"""One file a revision, as Alembic reads them."""
