"""Fixtures for all tests: no network, the shared data where they lie, images made on the spot, exported bundles."""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports huggingface_hub: offline, each look-up that fails costs minutes otherwise.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Text banks of random test models are of no use to anybody else.
os.environ["SAFETY_ZOO_CACHE"] = tempfile.mkdtemp(prefix="safety-zoo-tests-")
# The models of the tests are tiny: a second thread gains nothing, and where the cores are busy it costs a hundredfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

import tests.tiny_models  # noqa: F401  registers the `test_*` models

if TYPE_CHECKING:  # torch takes seconds to import, which tests of plain data need not wait for
    from onnx import ModelProto
    from torch import Tensor

    from zoo.models.base import ZooModel
    from zoo.models.clip import PhraseEncoder

# Tracing makes millions of objects, nearly all of which reference counts free: a tenth of its time went to collections.
gc.set_threshold(100_000, 20, 20)

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
    from export.verify.inputs import golden_images

    return golden_images()


@pytest.fixture(scope="session")
def traces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for traced graphs that all processes share, and runs of the same code: tracing is what exports wait for.

    It is named by the code and the versions that a trace depends on; those of other code are removed.
    """
    if not hasattr(request.config, "cache"):  # -p no:cacheprovider
        return tmp_path_factory.mktemp("traces")
    said = hashlib.sha256()
    for name in ("torch", "onnx", "onnxscript", "transformers"):
        said.update(importlib.metadata.version(name).encode())
    for path in sorted(
        [*REPOSITORY.glob("zoo/**/*.py"), *REPOSITORY.glob("export/**/*.py"), *REPOSITORY.glob("tests/*.py")]
    ):
        said.update(path.read_bytes())
    folder: Path = request.config.cache.mkdir("traces") / said.hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


@pytest.fixture(scope="session")
def traced_once(traces: Path) -> Iterator[None]:
    """Exports of the same weights, card and phrases share one trace: it takes seconds, however small the model."""
    import onnx

    import export.make
    import export.onnx.export
    import export.openvino
    from export.onnx.graph import served_graph, text_encoder_graph
    from export.source import weights_hash

    def kept(trace: Callable[[], ModelProto], *key: object) -> ModelProto:
        path = traces / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.onnx"
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}")
            onnx.save(trace(), part)
            part.replace(path)  # whole: another process may look for it at the same time
        return onnx.load(path)

    def served(model: ZooModel, banks: tuple[Tensor, ...], *, opset: int) -> ModelProto:
        contents = tuple((*bank.shape, bank.numpy().tobytes()) for bank in banks)
        key = (weights_hash(model), repr(model.card), contents, opset)
        return kept(lambda: served_graph(model, banks, opset=opset), *key)

    def encoder(model: PhraseEncoder) -> ModelProto:
        return kept(lambda: text_encoder_graph(model), "encoder", weights_hash(model), repr(model.card))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.onnx.export, "served_graph", served)
        patch.setattr(export.openvino, "served_graph", served)
        patch.setattr(export.make, "text_encoder_graph", encoder)
        yield


class Exported(dict[str, Path]):
    """Bundles by registry name, each exported when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        from export.onnx.export import export_onnx

        export_onnx(name, self.folder / name)
        self[name] = self.folder / name
        return self[name]


@pytest.fixture(scope="session")
def bundles(traced_once: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every `test_*` model, exported once, when it is first asked for. Copy a bundle before you change it."""
    return Exported(tmp_path_factory.mktemp("bundles"))
