"""The contract, on the stores that need nothing but a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.pipeline import StopToken
from datamanager.storage.base import Storage
from datamanager.storage.local import LocalStorage
from datamanager.storage.memory import MemoryStorage
from datamanager.storage.retry import RetryingStorage

from .contract import FOLDERS, StorageContract
from .faults import FaultyStorage


class TestMemoryStorage(StorageContract):
    @pytest.fixture(params=[None, 64 << 20], ids=["boundless", "bounded"])
    def store(self, request: pytest.FixtureRequest) -> Storage:
        return MemoryStorage(SystemClock(), capacity_bytes=request.param)


class TestLocalStorage(StorageContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Storage:
        return LocalStorage.create(tmp_path / "store", FOLDERS)


class TestRetryingLocalStorage(StorageContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Storage]:
        with StopToken() as stop:
            yield RetryingStorage(LocalStorage.create(tmp_path / "store", FOLDERS), stop)


class TestFaultyStorageWithoutFaults(StorageContract):
    @pytest.fixture
    def store(self) -> Storage:
        return FaultyStorage(MemoryStorage(SystemClock()))
