"""What all tests of exports share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _share_traces(traced_once: None) -> None:
    """Every export in these tests takes part."""
