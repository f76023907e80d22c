"""Reaching a state's database behind our back, as someone with another program would."""

from __future__ import annotations

from sqlalchemy import Engine, create_engine

from datamanager.config.state_url import sqlite_path


def engine_of(url: str) -> Engine:
    """The caller disposes of it."""
    path = sqlite_path(url)
    if path is not None:
        return create_engine(f"sqlite:///{path}")
    address = url.replace("postgresql://", "postgresql+psycopg://")
    return create_engine(address, connect_args={"options": "-c search_path=datamanager"})


def by_hand(url: str, *statements: str) -> None:
    """Run statements in one transaction."""
    engine = engine_of(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()
