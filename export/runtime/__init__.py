"""Run a bundle: numpy, Pillow, tokenizers and the engine's library; neither torch nor transformers nor lightning.

from export import runtime
with runtime.load("bundles/demo") as scorer:
    print(scorer.engine.why)
    print(scorer.verdict("photo.jpg"))
"""

import importlib
from typing import TYPE_CHECKING, Any

from export.runtime.engine import RunningEngine
from export.runtime.onnx import OnnxEngine
from export.runtime.scorer import BundleScorer, load, read_codec, text_bank, text_banks

if TYPE_CHECKING:
    from export.runtime.service import Health, Service, serve

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


def __getattr__(name: str) -> Any:
    """Load the service when it is asked for: most who judge do not serve."""
    if name not in __all__:
        raise AttributeError(f"module export.runtime has no attribute {name!r}")
    return getattr(importlib.import_module("export.runtime.service"), name)
