"""Image models from archives: converted, in torch and as a graph that is written, they answer as their packages do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.runtime.scorer import load
from export.written.bundle import WRITERS, write_bundle
from zoo.archives import opennsfw
from zoo.archives.archive import Archived, Weights, golden_picture
from zoo.contract.card import ModelCard
from zoo.errors import BadDataError
from zoo.judging.scorer import feeds
from zoo.models.base import ZooModel, weights_sha256
from zoo.models.served import ServedRun
from zoo.registry import build, default_policy, model_card, model_entry

#: What the packages answer for the picture of ramps at the size that the model reads, and at 320 by 240.
GOLDEN: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "opennsfw.yahoo": ({"nsfw": 0.0138852}, {"nsfw": 0.00250017}),
    "opennsfw.yahoo_plain": ({"nsfw": 0.0138852}, {"nsfw": 0.01238578}),
}


def _filled(card: ModelCard, weights: Weights) -> ZooModel:
    model = build(card)
    model.load_state_dict({name: torch.from_numpy(one) for name, one in weights.arrays.items()})
    return model.eval()


@pytest.mark.network
@pytest.mark.parametrize("name", GOLDEN)
def test_published_weights_answer_as_their_package(
    name: str, published: Callable[[str], Weights], tmp_path: Path
) -> None:
    weights, entry = published(name), model_entry(name)
    assert isinstance(entry.pretrained, Archived)
    model = _filled(entry.card, weights)
    assert weights.sha256 == weights_sha256(model, sorted(model.state_dict().items()))
    eager = ServedRun(model, ())
    write_bundle(entry.card, default_policy(entry), weights, entry.pretrained, tmp_path)
    own, whole = GOLDEN[name]
    assert entry.card.image is not None
    side = entry.card.image.size
    with load(tmp_path, device="cpu", threads=1) as scorer:
        for wanted, picture in ((own, golden_picture(side, side)), (whole, golden_picture())):
            fed = feeds(entry.card, [scorer.prepare(picture)])
            for scores in (scorer.engine(fed)[0], eager(fed)[0]):
                found = {label: float(scores[entry.card.labels.index(label)]) for label in wanted}
                assert found == pytest.approx(wanted, abs=1e-4)


def _tiny(name: str, side: int, **hparams: Any) -> ModelCard:
    card = model_card(name, **hparams)
    assert card.image is not None
    return card.replace(image=replace(card.image, size=side))


TINY = {"opennsfw": _tiny("opennsfw.yahoo", 64, stem=8, stages=[[4, 2], [6, 1], [8, 1]])}


def _drawn(card: ModelCard) -> ZooModel:
    """A module with weights, means and variances that all count."""
    torch.manual_seed(0)
    model = build(card).eval()
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
        elif value.is_floating_point():
            value.mul_(1.5) if value.ndim > 1 else value.uniform_(0.5, 1.5)
    return model


def _arrays(model: ZooModel) -> dict[str, NDArray[Any]]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("architecture", TINY)
def test_the_written_graph_is_the_module(architecture: str) -> None:
    card = TINY[architecture]
    assert card.image is not None
    model = _drawn(card)
    module, _, write = WRITERS[card.architecture].partition(":")
    proto = getattr(__import__(module, fromlist=[write]), write)(card, _arrays(model))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    pixels = np.random.default_rng(0).integers(0, 256, (3, card.image.size, card.image.size, 3), dtype=np.uint8)
    logits, scores = ServedRun(model, ()).run({"image": pixels})
    found = session.run(None, {"image": pixels})
    assert logits.std(axis=0).min() > 1e-3, "the pictures do not tell"
    np.testing.assert_allclose(found[0], logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], scores, rtol=1e-4, atol=1e-4)


def _as_published(arrays: Mapping[str, NDArray[Any]], card: ModelCard) -> onnx.ModelProto:
    """The weights in a file whose names are those of the archive's: no graph that would run."""

    def nodes() -> Iterator[tuple[str, str]]:
        yield "bn_1", "stem"
        for place, block in enumerate(opennsfw.blocks(card)):
            start = f"bn_stage{block.stage}_block{block.number}"
            yield f"{start}_proj_shortcut", f"blocks.{place}.projection"
            yield f"{start}_branch2a", f"blocks.{place}.reduce"
            yield f"{start}_branch2b", f"blocks.{place}.convolve"
            yield f"{start}_branch2c", f"blocks.{place}.expand"

    there = [(theirs, ours) for theirs, ours in nodes() if f"{ours}.weight" in arrays]
    stored = {f"{ours}.{kind}": arrays[f"{ours}.{kind}"] for _, ours in there for kind in ("weight", "bias")}
    stored["stem.weight"] = np.ascontiguousarray(stored["stem.weight"][:, ::-1])
    stored["fc_nsfw/MatMul/ReadVariableOp:0"] = np.ascontiguousarray(arrays["head.weight"].T)
    stored["fc_nsfw/BiasAdd/ReadVariableOp:0"] = arrays["head.bias"]
    convolutions = [
        helper.make_node("Conv", ["x", f"{ours}.weight", f"{ours}.bias"], [f"{theirs}/FusedBatchNormV3:0"])
        for theirs, ours in there
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    weights = [numpy_helper.from_array(one, name) for name, one in stored.items()]
    return helper.make_model(helper.make_graph(convolutions, "g", inputs, [], weights))


def test_weights_of_opennsfw_find_their_places() -> None:
    card = TINY["opennsfw"]
    arrays = _arrays(_drawn(card))
    found = opennsfw.convert(card, {opennsfw.MEMBER: _as_published(arrays, card).SerializeToString()}).arrays
    assert found.keys() == arrays.keys()
    for name, one in arrays.items():
        np.testing.assert_array_equal(found[name], one)


def test_another_file_than_opennsfw_is_refused() -> None:
    card = TINY["opennsfw"]
    arrays = _arrays(_drawn(card))
    whole = _as_published(arrays, card)

    def refused(proto: onnx.ModelProto | bytes) -> str:
        content = proto if isinstance(proto, bytes) else proto.SerializeToString()
        with pytest.raises(BadDataError) as refusal:
            opennsfw.convert(card, {opennsfw.MEMBER: content})
        return str(refusal.value)

    assert "is not an ONNX file" in refused(b"no model")
    assert "is not an ONNX file" in refused(whole.SerializeToString()[:-100])
    other = onnx.ModelProto.FromString(whole.SerializeToString())
    other.graph.node[2].output[0] = "bn_stage7_block0_branch2a/FusedBatchNormV3:0"
    assert "weights missing: blocks.0.reduce.bias, blocks.0.reduce.weight" in refused(other)
    wide = _as_published(arrays | {"head.bias": np.zeros(3, np.float32)}, card)
    assert "head.bias is [3], expected [2]" in refused(wide)
    more = onnx.ModelProto.FromString(whole.SerializeToString())
    more.graph.node.append(helper.make_node("Conv", ["x", "stem.weight", "stem.bias"], ["more/x"]))
    assert "weights left over: more.bias, more.weight" in refused(more)
