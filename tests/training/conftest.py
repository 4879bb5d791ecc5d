"""A folder to train in, for several test files."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest, questions, releases and a policy."""
    from tests.training.devices import prepare

    home = tmp_path_factory.mktemp("devices") / "work"
    prepare(home)
    return home
