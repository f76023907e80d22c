"""What commands need is loaded when they run, so that ``--help`` needs click alone."""

from __future__ import annotations

from datamanager.base.lazy import lazy as lazy
from datamanager.base.lazy import load as load
