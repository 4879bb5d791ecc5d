"""A bundle as a scorer: images and texts in, verdicts out, on the best engine that this machine can run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from export.bundle.manifest import TEXT_ENCODER
from export.bundle.rebuild import rebuild, rebuild_all
from export.bundle.store import Bundle, read_bundle
from export.runtime.engine import RunningEngine, open_best
from export.runtime.onnx import open_session
from zoo.contract.policy import AnyPolicy, Policy
from zoo.errors import BadArgumentError, IncompatibleBundleError
from zoo.files.writing import TOKENIZER
from zoo.inputs.image import DEFAULT_LIMITS, ImageLimits
from zoo.judging.banks import policy_bank
from zoo.judging.judge import AnyJudge, bind
from zoo.judging.scorer import Scorer

if TYPE_CHECKING:
    from zoo.inputs.text import TextCodec


def load(
    bundle: str | Path,
    policy: AnyPolicy | None = None,
    *,
    device: str = "auto",
    engine: str | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    public_key: str | Path | None = None,
) -> BundleScorer:
    """Load a bundle and bind it to a policy (its own when None; another one never needs an export).

    The engine is the best that this machine can run (see `export.runtime.engine.open_best`), or the one that is named;
    `scorer.engine.why` says why. `threads` bounds the engine's threads (all cores when None) and decodes images with as
    many. `batch_size` is the engine's usual one when None. Raises what `export.bundle.read_bundle` and `open_best`
    raise, MissingDependencyError without the engine's library, and BadInputError for a batch that the engine was not
    built for.

    >>> with runtime.load("my_bundle", device="cpu") as scorer:
    ...     scorer.verdict("photo.jpg").status
    'ok'
    """
    opened = read_bundle(bundle, public_key=public_key)
    running = open_best(opened, device=device, engine=engine, threads=threads)
    size = running.spec.batch[1] if batch_size is None else batch_size
    if size > running.spec.batch[2]:
        raise BadArgumentError(
            f"batch_size is {size}, and {running.spec.name} was built for up to {running.spec.batch[2]}; export again: "
            + rebuild(opened.manifest, running.spec, opened.folder, batch=(1, min(size, running.spec.batch[1]), size))
        )
    return BundleScorer(opened, running, policy or opened.policy, threads=threads, batch_size=size, limits=limits)


class BundleScorer(Scorer):
    """A scorer on an engine of a bundle. `bundle` is where it came from, `engine` what runs and why.

    >>> with runtime.load("my_bundle", engine="onnx-fp32") as scorer:
    ...     scorer.engine.spec.name, scorer.bundle.card.name
    ('onnx-fp32', 'test_safeclip.random')
    """

    engine: RunningEngine

    def __init__(
        self,
        bundle: Bundle,
        engine: RunningEngine,
        policy: AnyPolicy,
        *,
        threads: int | None,
        batch_size: int,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        judge = bundle.judge if policy is bundle.policy else bind(bundle.card, policy)
        codec = read_codec(bundle) if bundle.card.reads_text else None
        bound = engine.with_banks(text_banks(bundle, engine, judge, threads))
        super().__init__(judge, codec, bound, limits=limits, batch_size=batch_size, threads=threads or 2)
        self.bundle, self._threads = bundle, threads

    @property
    def weights(self) -> str:
        """The hash of the weights that all engines of the bundle were made of."""
        return self.bundle.manifest.weights

    def with_policy(self, policy: AnyPolicy) -> Self:
        """A scorer that judges by another policy, on the same loaded engine and the same decoding threads.

        This one is not changed, so calls that are under way end by the policy that they began with; closing either
        closes both. Raises BadPolicyError when policy and model do not fit.
        """
        other = copy.copy(self)
        other.judge = bind(self.card, policy)
        other.engine = self.engine.with_banks(text_banks(self.bundle, self.engine, other.judge, self._threads))
        return other


def text_banks(
    bundle: Bundle, engine: RunningEngine, judge: AnyJudge, threads: int | None = None
) -> dict[str, NDArray[np.float32]]:
    """The banks to feed an engine for a judge's policy, by input name; empty if its own are of that policy.

    >>> scorer = runtime.load("my_bundle")
    >>> runtime.text_banks(scorer.bundle, scorer.engine, scorer.judge)
    {}
    """
    if judge.policy_id == engine.spec.embedded:
        return {}
    banks = [text_bank(bundle, one, threads=threads) for one in judge.zero_shot_policies]
    return dict(zip(bundle.card.bank_names, banks, strict=True))


def text_bank(bundle: Bundle, policy: Policy, *, threads: int | None = None) -> NDArray[np.float32]:
    """The text bank `[P, D]` of a policy, unit norm over its temperature, by the bundle's own text encoder.

    The embeddings are kept on disk (see `zoo.judging.banks`), but not those of a signed bundle. Raises
    IncompatibleBundleError without a text encoder.

    >>> bundle = runtime.load("my_bundle").bundle
    >>> runtime.text_bank(bundle, bundle.policy).dtype
    dtype('float32')
    """
    if TEXT_ENCODER not in bundle.manifest.files:
        raise IncompatibleBundleError(
            f"{bundle.folder}: has no {TEXT_ENCODER}, so new phrases cannot be embedded; "
            f"export again: {rebuild_all(bundle.manifest, bundle.folder)}"
        )

    def embed(words: tuple[str, ...]) -> NDArray[np.float32]:
        tokens = read_codec(bundle).encode(words)
        encoder, _ = open_session(bundle.folder / TEXT_ENCODER, "cpu", threads, files=bundle.files)
        bank: NDArray[np.float32]
        (bank,) = encoder.run(["text_embedding"], {"input_ids": tokens.ids, "attention_mask": tokens.mask})
        return bank

    # read_bundle() compared both files with these hashes.
    encoder = " ".join(bundle.manifest.files[name] for name in (TEXT_ENCODER, TOKENIZER))
    return policy_bank(policy, embed, None if bundle.files.signed else encoder)


def read_codec(bundle: Bundle) -> TextCodec:
    """The tokenizer of a bundle. Raises BadInputError when its model reads no text at all.

    >>> len(runtime.read_codec(runtime.load("my_bundle").bundle).encode(["a dog", "two cats"]).ids)
    2
    """
    if bundle.card.text is None:
        raise BadArgumentError(f"{bundle.card.name} reads no text")
    from zoo.inputs.terms import codec_of  # with ftfy and tokenizers, 0.1 s that models of pictures do not need

    return codec_of(bundle.files.read(TOKENIZER).decode("utf-8"), bundle.card.text)
