from __future__ import annotations

from tests.cli.conftest import installation
from tests.system.conftest import daemons

__all__ = ["daemons", "installation"]
