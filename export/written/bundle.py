"""A bundle of weights from archives, without torch: its graph is written, and run to answer as the package does."""

from __future__ import annotations

import dataclasses
import pkgutil
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

import zoo
from export.bundle.manifest import BATCHES, OPSET, Engine, Manifest
from export.precision.nodes import count_products, save
from export.runtime.onnx import installed_version
from export.runtime.scorer import load
from export.written.graph import written_contract
from zoo.archives.archive import GOLDEN_TEXT, Archived, Weights, golden_picture
from zoo.contract.card import ModelCard
from zoo.contract.policy import AnyPolicy
from zoo.errors import BadDataError, MissingDependencyError
from zoo.files.held import hashes
from zoo.files.writing import CARD, POLICY, TOKENIZER, write_file
from zoo.judging.scorer import feeds

#: What writes the graph of each architecture, from the card and the arrays of `Weights`.
WRITERS: dict[str, str] = {
    "efficientnet_lite0": "export.written.efficientnet:write",
    "efficientnet_lite2": "export.written.efficientnet:write",
    "nsfwjs_inception_v3": "export.written.nsfwjs:write_inception",
    "nsfwjs_mobilenet_v2": "export.written.nsfwjs:write_mobilenet",
    "opennsfw": "export.written.opennsfw:write",
    "prompt_injection_minilm": "export.written.bert:write",
    "prompt_injection_tfidf": "export.written.tfidf:write",
    "profanity_tfidf": "export.written.tfidf:write",
    "prompt_safety_minilm": "export.written.bert:write",
}

#: How far a converted model may lie from its package: on another processor the same sums are rounded otherwise.
TOLERANCE = 1e-3


def write_bundle(card: ModelCard, policy: AnyPolicy, weights: Weights, archived: Archived, folder: Path) -> None:
    """Write a bundle into an empty folder, and judge by it once. No torch.

    Raises BadDataError when it does not answer what the package answers (`archived.golden`), which is not asked without
    onnxruntime.
    """
    writer = pkgutil.resolve_name(WRITERS[card.architecture])
    proto = writer(card, weights.arrays)
    name = "onnx-fp32"
    files = save(proto, folder / f"{name}.onnx")
    card.write_json(folder / CARD, indent=2)
    write_file(folder / POLICY, policy.to_yaml())
    if weights.tokenizer is not None:
        write_file(folder / TOKENIZER, weights.tokenizer)
    versions = {"python": platform.python_version(), "safety-zoo": zoo.__version__, "onnx": version("onnx")}
    try:
        versions |= installed_version()
    except MissingDependencyError:  # where models are only trained
        archived = dataclasses.replace(archived, golden={})
    engine = Engine(
        name,
        "onnx",
        "fp32",
        files,
        "latency",
        BATCHES["latency"],
        ("cpu", "cuda"),
        count_products(proto),
        policy.id,
        opset=OPSET,
        versions=versions,
    )
    inputs, outputs = written_contract(card)
    Manifest((engine,), inputs, outputs, hashes(folder), card.name, weights.sha256).write(folder)
    _compare(folder, archived)


def _compare(folder: Path, archived: Archived) -> None:
    """Raise BadDataError unless the bundle answers as the package does."""
    if not archived.golden:
        return
    with load(folder, device="cpu", threads=1) as scorer:
        card = scorer.card
        image = golden_picture(*archived.size) if card.image is not None else None
        ready = scorer.prepare(image, GOLDEN_TEXT if card.reads_text else None)
        scores = scorer.engine(feeds(card, [ready]))[0]
    for label, wanted in archived.golden.items():
        found = float(scores[card.labels.index(label)])
        if not np.isclose(found, wanted, rtol=0, atol=TOLERANCE):
            raise BadDataError(
                f"{card.name}: was converted wrongly: {label} of the test input is {found:.5f}, its package says "
                f"{wanted:.5f}; nothing is kept. onnxruntime {installed_version()} may be at fault"
            )
