"""What all tests of exports share."""

from __future__ import annotations

import pytest

from export.runtime import engine


@pytest.fixture(autouse=True)
def _share_traces(traced_once: None) -> None:
    """Every export in these tests takes part."""


#: Before `_trust_int8` replaces it.
CLAMPS = engine.clamps_int8()


@pytest.fixture
def exact_products() -> None:
    """Skip where sums of 8-bit products are clamped: the runtime takes no engine of 8 bits by itself there."""
    if CLAMPS:
        pytest.skip("this processor clamps 8-bit products (it has no VNNI)")


@pytest.fixture(autouse=True)
def _trust_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of engines does not depend on the processor that the tests run on; one test looks at processors."""
    monkeypatch.setattr(engine, "clamps_int8", lambda: False)
