"""Rows of the sample clinic as COPY text lines, in blocks, and images; all from one seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from datamanager.demo.words import DRUGS, ClinicText

# Rows to a block: some hundred kilobytes, so that a stop is seen soon and the server is kept busy.
_BLOCK_ROWS = 4000
_NOTES_BLOCK_ROWS = 500

_OPENED = datetime(2016, 1, 4, 7, 0, tzinfo=UTC)

_YEARS_SECONDS = 10 * 365 * 86400
_STAFF = 40
_CITIES = ("Springfield", "Zürich", "Kraków", "São Paulo", "Tromsø", "Málaga", "Łódź", "Reims", "横浜", "Austin")
_STREETS = ("Main Street", "Bahnhofstraße", "Rua Augusta", "Calle Mayor", "Elm Avenue", "Storgata", "ul. Długa")
_ROLES = ("physician", "nurse", "assistant", "receptionist", "radiologist", "Ärztin", "podólogo")
_TITLES = (
    "chest X-ray",
    "wound photo",
    "consent form",
    "insurance card",
    "ECG strip",
    "referral letter",
    "Röntgenbild",
)

_JPEG_HEAD = bytes.fromhex("ffd8ffe000104a46494600010100000100010000")
_JPEG_TAIL = bytes.fromhex("ffd9")


@dataclass(frozen=True, slots=True)
class RowCounts:
    """How many rows each table gets; the notes and the images are counted while they are written."""

    patients: int
    visits: int
    prescriptions: int
    appointments: int
    referrals: int


def plan_rows(size_bytes: int) -> RowCounts:
    """Rows for a clinic of ``size_bytes``: about 28 % of it are these tables with their indexes.

    The divisors are measured bytes on disk of a row and its index entries (PostgreSQL 15 and 18), over the share.
    """
    return RowCounts(
        patients=max(100, int(size_bytes * 0.05 / 260)),
        visits=max(200, int(size_bytes * 0.10 / 145)),
        prescriptions=max(200, int(size_bytes * 0.07 / 110)),
        appointments=max(100, int(size_bytes * 0.05 / 135)),
        referrals=max(50, int(size_bytes * 0.01 / 120)),
    )


class ClinicRows:
    """Makes the rows of each table; every method yields blocks of COPY lines, each line with its newline."""

    def __init__(self, seed: int, counts: RowCounts) -> None:
        self._numbers = np.random.default_rng(seed)
        self._text = ClinicText(seed)
        self._counts = counts
        self._phrases = [self._text.sentence()[:60] for _ in range(5000)]
        # Every second of a day as text, made once: formatting each row's time would be half of the work.
        self._times = [f"{at // 3600:02d}:{at // 60 % 60:02d}:{at % 60:02d}+00" for at in range(86400)]
        self._days = [(_OPENED + timedelta(days=at)).strftime("%Y-%m-%d ") for at in range(3651)]

    def staff(self) -> Iterator[list[str]]:
        names = [self._text.name() for _ in range(_STAFF)]
        yield [
            f"{at}\t{first}\t{last}\t{_ROLES[at % len(_ROLES)]}\t20{10 + at % 15}-0{1 + at % 9}-11\n"
            for at, (first, last) in enumerate(names, 1)
        ]

    def patients(self) -> Iterator[list[str]]:
        for start, count in _blocks(self._counts.patients):
            names = [self._text.name() for _ in range(count)]
            draws = self._integers(count, 70, 365, 10_000_000, 200, len(_STREETS), len(_CITIES), 60_000)
            yield [
                f"{at}\t{first}\t{last}\t{1940 + year}-{1 + day % 12:02d}-{1 + day % 28:02d}\t+1 555 {phone:07d}"
                f"\t{_STREETS[street]} {1 + house}\t{_CITIES[city]}\tINS-{phone:07d}-{at}\t{cents / 100:.2f}\n"
                for at, (first, last), year, day, phone, house, street, city, cents in zip(
                    range(start, start + count), names, *draws, strict=True
                )
            ]

    def visits(self) -> Iterator[list[str]]:
        for start, count in _blocks(self._counts.visits):
            draws = self._integers(count, self._counts.patients, _STAFF, 11, len(self._phrases))
            moments = self._moments(start, count, self._counts.visits)
            yield [
                f"{at}\t{1 + patient}\t{1 + staff}\t{moment}\t{10 + 5 * length}\t{self._phrases[phrase][:30]}"
                f"\t{20000 + 3 * at}\n"
                for at, moment, patient, staff, length, phrase in zip(
                    range(start, start + count), moments, *draws, strict=True
                )
            ]

    def prescriptions(self) -> Iterator[list[str]]:
        for start, count in _blocks(self._counts.prescriptions):
            draws = self._integers(count, self._counts.visits, len(DRUGS), 80, 28, 4)
            yield [
                f"{at}\t{1 + visit}\t{DRUGS[drug]}\t{2.5 * (1 + dose)}\t{3 + days}\t{refills}\n"
                for at, visit, drug, dose, days, refills in zip(range(start, start + count), *draws, strict=True)
            ]

    def appointments(self) -> Iterator[list[str]]:
        for start, count in _blocks(self._counts.appointments):
            draws = self._integers(count, self._counts.patients, 12, len(self._phrases))
            moments = self._moments(start, count, self._counts.appointments)
            yield [
                f"{at}\t{1 + patient}\t{moment}\t{1 + room}\t{self._phrases[phrase][:40]}\n"
                for at, moment, patient, room, phrase in zip(range(start, start + count), moments, *draws, strict=True)
            ]

    def referrals(self) -> Iterator[list[str]]:
        for start, count in _blocks(self._counts.referrals):
            draws = self._integers(count, self._counts.patients, 600, len(self._phrases))
            yield [
                f"{at}\t{1 + patient}\t{self._text.compound()}\t{140 + height / 10}\t{self._phrases[phrase]} 備考\n"
                for at, patient, height, phrase in zip(range(start, start + count), *draws, strict=True)
            ]

    def notes(self) -> Iterator[list[str]]:
        """Endless: the caller stops when the table is large enough."""
        start = 1
        while True:
            bodies = self._text.notes(_NOTES_BLOCK_ROWS)
            (visits,) = self._integers(len(bodies), self._counts.visits)
            (seconds,) = self._integers(len(bodies), _YEARS_SECONDS)
            yield [
                f"{at}\t{1 + visit}\t{self._moment(second)}\t{body}\n"
                for at, visit, second, body in zip(
                    range(start, start + len(bodies)), visits, seconds, bodies, strict=True
                )
            ]
            start += len(bodies)

    def _integers(self, count: int, *limits: int) -> list[list[int]]:
        """For each limit, ``count`` numbers from 0 to below it."""
        return [self._numbers.integers(0, limit, count).tolist() for limit in limits]

    def _moments(self, start: int, count: int, of: int) -> list[str]:
        """Times that rise with the row's number, as in a table written day by day, with some disorder."""
        rising = (np.arange(start, start + count) / (of + 1) * _YEARS_SECONDS).astype(np.int64)
        jitter = self._numbers.integers(0, 3 * 86400, count)
        return [self._moment(second) for second in np.minimum(rising + jitter, _YEARS_SECONDS).tolist()]

    def _moment(self, second: int) -> str:
        return self._days[second // 86400] + self._times[second % 86400]


def scan_images(seed: int, visits: int) -> Iterator[tuple[int, int, str, datetime, bytes]]:
    """Endless rows of scans: images of 20 to 200 kB with a JPEG's head and tail and incompressible bytes between."""
    numbers = np.random.default_rng(seed + 2)
    number = 0
    while True:
        number += 1
        size = int(numbers.integers(20_000, 200_000))
        image = _JPEG_HEAD + numbers.bytes(size) + _JPEG_TAIL
        taken = _OPENED + timedelta(minutes=number * 7)
        yield number, 1 + int(numbers.integers(0, visits)), _TITLES[number % len(_TITLES)], taken, image


def _blocks(total: int) -> Iterator[tuple[int, int]]:
    """First number (from 1) and length of each block."""
    for start in range(0, total, _BLOCK_ROWS):
        yield start + 1, min(_BLOCK_ROWS, total - start)
