"""Fixtures for all tests: no network, the shared data where they lie, images made on the spot, exported bundles."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# Before anything imports huggingface_hub: offline, each look-up that fails costs minutes otherwise.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Text banks of random test models are of no use to anybody else.
os.environ["SAFETY_ZOO_CACHE"] = tempfile.mkdtemp(prefix="safety-zoo-tests-")
# The models of the tests are tiny: a second thread gains nothing, and where the cores are busy it costs a hundredfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The `data` folder with photos and published weights; skips where there is none."""
    folder = Path(os.environ.get("SAFETY_ZOO_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set SAFETY_ZOO_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def golden() -> dict[str, bytes]:
    """Image files by name, of the kinds that decoders get wrong. What they show is in tests/inputs/test_image.py."""
    from export.verify.golden import golden_images

    return golden_images()


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every `test_*` model, exported once; by registry name. Copy a bundle before you change it."""
    from export.onnx.export import export_onnx
    from zoo.registry import list_models

    folder = tmp_path_factory.mktemp("bundles")
    names = list_models("test_*")
    for name in names:
        export_onnx(name, folder / name)
    return {name: folder / name for name in names}
