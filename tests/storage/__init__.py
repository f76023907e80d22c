"""Tests of the stores: one contract, run against every store and on real volumes."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.contract")
