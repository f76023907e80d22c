"""Manifests: what is written reads back; what cannot be a manifest is refused, however it is sealed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamanager.base.errors import FormatUnsupported, IntegrityError
from datamanager.repository.format import BACKUP_ID, MAX_LAYERS, canonical_json
from datamanager.repository.manifest import ChecksumFailure, LayerReference, Manifest, Tablespace

LAYER = LayerReference([("ab" * 16, 3, 4), ("cd" * 16, 0, 1)], 3, 1, 1, 10, 20)
MANIFEST = Manifest(
    backup="20250301T120000Z-0011aabb",
    sequence=2,
    previous={"backup": "20250228T120000Z-0011aabb", "sha256": "00" * 32},
    cluster="Praxis Dr. Größe",
    label="Freitag \U0001f418",
    program="datamanager 0.1.0",
    started="2025-03-01T12:00:00+00:00",
    ended="2025-03-01T12:05:00+00:00",
    system_identifier="7301234567890123456",
    version="18.1",
    major=18,
    page_size=8192,
    segment_size=1 << 30,
    wal_segment_size=16 << 20,
    checksums=True,
    timeline=1,
    start_lsn="0/2000028",
    stop_lsn="0/2000158",
    method="full",
    parent=None,
    layers=[LAYER],
    tablespaces=[Tablespace(16400, "/srv/größe", 5)],
    volumes={"base": 7, "16400": 5},
    files=3,
    bytes_read=12,
    bytes_stored=9,
    bytes_reused=0,
    server={"databases": [{"name": "praxis"}]},
    checksum_failures=[ChecksumFailure("base/5/1259", [1, 7])],
    warnings=["one"],
)


def read(value: Any) -> Manifest:
    return Manifest.from_json(canonical_json(value), "manifest")


def as_value() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(MANIFEST.to_json())
    return value


def test_a_manifest_reads_back_equal() -> None:
    assert Manifest.from_json(MANIFEST.to_json(), "manifest") == MANIFEST
    assert MANIFEST.damaged
    assert MANIFEST.total_bytes == 12
    assert str(MANIFEST.stop) == "0/2000158"


def test_fields_of_a_newer_program_are_ignored() -> None:
    assert read({**as_value(), "colour": "green"}) == MANIFEST


def test_a_manifest_of_a_newer_format_is_unsupported() -> None:
    with pytest.raises(FormatUnsupported, match="format 2"):
        read({**as_value(), "format": 2})


@pytest.mark.parametrize("name", [name for name in as_value() if name not in ("warnings", "checksum_failures")])
def test_a_manifest_without_a_field_is_refused(name: str) -> None:
    value = as_value()
    del value[name]
    with pytest.raises(IntegrityError, match="malformed manifest"):
        read(value)


@pytest.mark.parametrize("name", ["layers", "tablespaces", "checksum_failures"])
@pytest.mark.parametrize("bad", [None, 5, "x", [5], [None], [{}], [{"spans": []}], {"a": 1}])
def test_a_list_that_is_none_is_refused(name: str, bad: object) -> None:
    with pytest.raises(IntegrityError, match="malformed manifest"):
        read({**as_value(), name: bad})


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"5", b'"x"', b"{}", b"\xff\xfe", b"{", b"[" * 100_000])
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Manifest.from_json(data, "manifest")


@pytest.mark.parametrize("count", [0, MAX_LAYERS + 1])
def test_a_manifest_has_one_to_eight_layers(count: int) -> None:
    with pytest.raises(IntegrityError):
        read(json.loads(replace(MANIFEST, layers=[LAYER] * count).to_json()))


@pytest.mark.parametrize(
    "layer",
    [
        replace(LAYER, blocks=4),
        replace(LAYER, spans=[("ab" * 16, 0, 10**12)], blocks=10**12 - 2),
        replace(LAYER, spans=[("ab" * 16, -1, 5)]),
        replace(LAYER, spans=[("ab" * 16, 131_070, 5)]),
        replace(LAYER, spans=[("ab" * 16, 0, 6), ("ab" * 16, 0, -1)]),
        replace(LAYER, spans=[("ab" * 15, 0, 5)]),
        replace(LAYER, spans=[("zz" * 16, 0, 5)]),
        replace(LAYER, blocks=-1, table=3, index=3),
    ],
)
def test_a_layer_of_absurd_extent_is_refused_before_anything_is_allocated(layer: LayerReference) -> None:
    with pytest.raises(IntegrityError, match="malformed manifest"):
        read(json.loads(replace(MANIFEST, layers=[layer]).to_json()))


@given(st.text(max_size=40))
def test_only_names_of_backups_are_names_of_backups(text: str) -> None:
    matches = BACKUP_ID.match(text)
    assert not matches or (len(text) == 25 and text.isascii())


@pytest.mark.parametrize(
    "name", ["20250301T120000Z-0011aabb\n", "20250301T120000Z-0011AABB", "٢٠٢٥0301T120000Z-0011aabb"]
)
def test_names_that_only_look_like_one_are_refused(name: str) -> None:
    assert not BACKUP_ID.match(name)
    with pytest.raises(IntegrityError):
        read({**as_value(), "backup": name})
