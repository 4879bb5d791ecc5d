"""Run a bundle: numpy, Pillow, tokenizers and onnxruntime; neither torch nor transformers nor lightning.

from export import runtime
with runtime.load("bundles/demo") as scorer:
    print(scorer.verdict("photo.jpg"))
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle import MODEL, TEXT_ENCODER, TOKENIZER, Bundle, read_bundle
from zoo.errors import BadInputError, IncompatibleBundleError, MissingDependencyError
from zoo.inputs.image import DEFAULT_LIMITS, ImageLimits
from zoo.inputs.text import TextCodec
from zoo.judge import Judge, phrases
from zoo.policy import Policy
from zoo.scorer import Feeds, Scorer


def load(
    bundle: str | Path,
    policy: Policy | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    batch_size: int = 32,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Scorer:
    """Load a bundle and bind it to a policy (its own when None; another one never needs an export).

    `device` is `cpu` or `cuda`; what was asked for is what runs, or IncompatibleBundleError says why not.
    `threads` bounds the engine's threads (all cores when None) and decodes images with as many. Raises what
    `export.bundle.read_bundle` raises, and MissingDependencyError without onnxruntime.
    """
    found = read_bundle(bundle)
    engine = OnnxEngine(found, device=device, threads=threads)
    if policy is not None and found.card.task == "zero_shot":
        engine.text_bank = embed_phrases(found, phrases(policy), threads=threads)
    judge = Judge(found.card, policy or found.policy)
    codec = read_codec(found) if found.card.reads_text else None
    return Scorer(judge, codec, engine, limits=limits, batch_size=batch_size, threads=threads or 2)


class OnnxEngine:
    """One onnxruntime session on model.onnx. Thread-safe, as onnxruntime's sessions are.

    `text_bank` `[P, D]` unit float32 replaces the default bank of a zero-shot graph when it is set.
    """

    def __init__(self, bundle: Bundle, *, device: str = "cpu", threads: int | None = None) -> None:
        self.session = _session(bundle.folder / MODEL, device, threads)
        self.text_bank: NDArray[np.float32] | None = None

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:
        """Scores `[B, N]` of one batch; the feeds are those of `card.input_names`."""
        return self.run(feeds)[1]

    def run(self, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and scores `[B, N]` of one batch."""
        if self.text_bank is not None:
            feeds = {**feeds, "text_bank": self.text_bank}
        logits, scores = self.session.run(["logits", "scores"], feeds)
        return logits, scores


def embed_phrases(bundle: Bundle, words: tuple[str, ...], *, threads: int | None = None) -> NDArray[np.float32]:
    """The text bank `[P, D]` of phrases, unit norm, by the bundle's own text encoder."""
    if TEXT_ENCODER not in bundle.manifest.files:
        raise IncompatibleBundleError(
            f"{bundle.folder}: has no {TEXT_ENCODER}, so new phrases cannot be embedded; "
            f"export again: zoo export onnx --model {bundle.manifest.source} --out {bundle.folder} --overwrite"
        )
    tokens = read_codec(bundle).encode(words)
    session = _session(bundle.folder / TEXT_ENCODER, "cpu", threads)
    (bank,) = session.run(["text_embedding"], {"input_ids": tokens.ids, "attention_mask": tokens.mask})
    result: NDArray[np.float32] = bank
    return result


def read_codec(bundle: Bundle) -> TextCodec:
    """The tokenizer of a bundle. Raises BadInputError when its model reads no text at all."""
    if bundle.card.text is None:
        raise BadInputError(f"{bundle.card.name} reads no text")
    return TextCodec((bundle.folder / TOKENIZER).read_text(encoding="utf-8"), bundle.card.text)


def _session(path: Path, device: str, threads: int | None) -> Any:
    ort = _onnxruntime()
    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device)
    if wanted is None:
        raise BadInputError(f'device must be "cpu" or "cuda", got "{device}"')
    if wanted not in ort.get_available_providers():
        raise IncompatibleBundleError(
            f"onnxruntime {ort.__version__} has no {wanted}; install `safety-zoo[gpu]` in place of `safety-zoo[cpu]`"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 3  # a default bank that may be replaced draws a warning on every load
    if threads is not None:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=[wanted])
    if session.get_providers()[0] != wanted:  # onnxruntime-gpu falls back to the CPU without a word
        raise IncompatibleBundleError(f"{device} was asked for, but onnxruntime chose {session.get_providers()}")
    return session


def _onnxruntime() -> Any:
    """Import onnxruntime on first use; refuse the two distributions side by side, which break each other."""
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise IncompatibleBundleError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'safety-zoo[cpu]' (or [gpu])"
        )
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime is not installed: pip install 'safety-zoo[cpu]' (or [gpu])") from None
    return onnxruntime


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
