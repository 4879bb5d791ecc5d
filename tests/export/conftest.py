"""What all tests of exports share."""

from __future__ import annotations

import pytest

from export.runtime import engine


@pytest.fixture(autouse=True)
def _share_traces(traced_once: None) -> None:
    """Every export in these tests takes part."""


@pytest.fixture(autouse=True)
def _trust_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of engines does not depend on the processor that the tests run on; one test looks at processors."""
    monkeypatch.setattr(engine, "clamps_int8", lambda: False)
