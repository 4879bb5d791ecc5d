"""Run a bundle: numpy, Pillow, tokenizers and the engine's library; neither torch nor transformers nor lightning.

from export import runtime
with runtime.load("bundles/demo") as scorer:
    print(scorer.engine.why)
    print(scorer.verdict("photo.jpg"))
"""

from export.runtime.engine import RunningEngine
from export.runtime.onnx import OnnxEngine
from export.runtime.scorer import BundleScorer, load, read_codec, serve, text_bank, text_banks
from export.runtime.service import Health, Service

__all__ = [
    "BundleScorer",
    "Health",
    "OnnxEngine",
    "RunningEngine",
    "Service",
    "load",
    "read_codec",
    "serve",
    "text_bank",
    "text_banks",
]
