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

from export.batching import Service
from export.bundle import MODEL, TEXT_ENCODER, TOKENIZER, Bundle, read_bundle
from zoo.bank_cache import cached_bank
from zoo.errors import BadInputError, IncompatibleBundleError, MissingDependencyError
from zoo.inputs.image import DEFAULT_LIMITS, ImageLimits
from zoo.inputs.text import TextCodec
from zoo.judge import phrases
from zoo.panel import AnyPolicy, bind, zero_shot_policies
from zoo.policy import Policy
from zoo.scorer import Feeds, Scorer


def load(
    bundle: str | Path,
    policy: AnyPolicy | None = None,
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
    judge = bind(found.card, policy or found.policy)
    if policy is not None:
        policies = zero_shot_policies(found.card, policy)
        banks = [text_bank(found, one, threads=threads) for one in policies]
        engine.text_banks = dict(zip(found.card.bank_names, banks, strict=True))
    codec = read_codec(found) if found.card.reads_text else None
    return Scorer(judge, codec, engine, limits=limits, batch_size=batch_size, threads=threads or 2)


def serve(
    bundle: str | Path,
    policy: AnyPolicy | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    max_batch: int = 32,
    max_wait_ms: float = 2.0,
    queue: int = 1024,
    decoders: int = 2,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Service:
    """Load a bundle and serve many threads with it, in batches, warmed up; see `export.batching.Service`.

    Raises what `load` raises, BadInputError for sizes below 1, and EngineError when the engine cannot run.
    """
    scorer = load(bundle, policy, device=device, threads=threads, limits=limits)
    service = Service(scorer, max_batch=max_batch, max_wait_ms=max_wait_ms, queue=queue, decoders=decoders)
    try:
        service.warm_up()
    except BaseException:
        service.close()
        raise
    return service


class OnnxEngine:
    """One onnxruntime session on model.onnx. Thread-safe, as onnxruntime's sessions are.

    `text_banks` replace the defaults of those graph inputs: each float32 `[P, D]`, unit norm over temperature.
    """

    def __init__(self, bundle: Bundle, *, device: str = "cpu", threads: int | None = None) -> None:
        self.session = _session(bundle.folder / MODEL, device, threads)
        self.text_banks: dict[str, NDArray[np.float32]] = {}

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:
        """Scores `[B, N]` of one batch; the feeds are those of `card.input_names`."""
        return self.run(feeds)[1]

    def run(self, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and scores `[B, N]` of one batch."""
        logits, scores = self.session.run(["logits", "scores"], {**feeds, **self.text_banks})
        return logits, scores


def text_bank(bundle: Bundle, policy: Policy, *, threads: int | None = None) -> NDArray[np.float32]:
    """The text bank `[P, D]` of a policy, unit norm over its temperature, by the bundle's own text encoder.

    The embeddings are kept on disk (see `zoo.bank_cache`). Raises IncompatibleBundleError without a text encoder.
    """
    if TEXT_ENCODER not in bundle.manifest.files:
        raise IncompatibleBundleError(
            f"{bundle.folder}: has no {TEXT_ENCODER}, so new phrases cannot be embedded; "
            f"export again: zoo export onnx --model {bundle.manifest.source} --out {bundle.folder} --overwrite"
        )

    def embed(words: tuple[str, ...]) -> NDArray[np.float32]:
        tokens = read_codec(bundle).encode(words)
        session = _session(bundle.folder / TEXT_ENCODER, "cpu", threads)
        found: NDArray[np.float32]
        (found,) = session.run(["text_embedding"], {"input_ids": tokens.ids, "attention_mask": tokens.mask})
        return found

    # read_bundle() compared both files with these hashes.
    encoder = " ".join(bundle.manifest.files[name] for name in (TEXT_ENCODER, TOKENIZER))
    return cached_bank(encoder, phrases(policy), embed) / np.float32(policy.temperature)


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
