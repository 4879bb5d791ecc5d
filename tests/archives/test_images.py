"""Image models from archives: converted, in torch and as a graph that is written, they answer as their packages do."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
from collections import OrderedDict
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
from export.verify.inputs import drawn_images
from export.written.bundle import WRITERS
from zoo.archives import efficientnet, inception, nsfwjs, opennsfw
from zoo.archives.archive import golden_picture
from zoo.archives.pickles import tensors
from zoo.contract.card import ModelCard
from zoo.errors import BadDataError
from zoo.judging.scorer import Feeds, feeds
from zoo.models.base import ZooModel
from zoo.models.served import ServedRun
from zoo.registry import ModelEntry, build, model_card

#: What the packages answer for the picture of ramps at the size that the model reads, and at 320 by 240.
#: NSFWJS resizes to fractions of grey levels, and the zoo to 8 bits: only through `Resize` are the answers the same.
GOLDEN: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "opennsfw.yahoo": ({"nsfw": 0.0138852}, {"nsfw": 0.00250017}),
    "opennsfw.yahoo_plain": ({"nsfw": 0.0138852}, {"nsfw": 0.01238578}),
    "nsfwjs_mobilenet_v2.gantman": (
        {"drawing": 0.8848746, "hentai": 0.0189882, "neutral": 0.0915848, "porn": 0.0036434, "sexy": 0.0009091},
        {"drawing": 0.8790774, "hentai": 0.0193756, "neutral": 0.0967999, "porn": 0.0037931, "sexy": 0.0009539},
    ),
    "nsfwjs_inception_v3.gantman": (
        {"drawing": 0.4218878, "hentai": 0.0532030, "neutral": 0.5001327, "porn": 0.0181660, "sexy": 0.0066105},
        {"drawing": 0.4103473, "hentai": 0.0535253, "neutral": 0.5125332, "porn": 0.0174317, "sexy": 0.0061624},
    ),
}


@pytest.mark.network
@pytest.mark.parametrize("name", GOLDEN)
def test_published_weights_answer_as_their_package(
    name: str, converted: Callable[[str], tuple[ModelEntry, ServedRun]], tmp_path: Path
) -> None:
    entry, eager = converted(name)
    own, whole = GOLDEN[name]
    spec = entry.card.image
    assert spec is not None

    def answers(scores: NDArray[np.floating], wanted: dict[str, float], tolerance: float) -> None:
        found = {label: float(scores[0, entry.card.labels.index(label)]) for label in wanted}
        assert found == pytest.approx(wanted, abs=tolerance)

    eight_bits = 5e-3 if spec.interpolation == "bilinear_align_corners" else 1e-4
    with load(tmp_path, device="cpu", threads=1) as scorer:
        for wanted, size, tolerance in ((own, (spec.size, spec.size), 1e-4), (whole, (240, 320), eight_bits)):
            fed = feeds(entry.card, [scorer.prepare(golden_picture(*size))])
            answers(scorer.engine(fed), wanted, tolerance)
            answers(eager(fed), wanted, tolerance)
    if eight_bits > 1e-4:
        answers(eager({"image": golden_picture()[None]}), whole, 1e-4)


#: The logits of the highest classes for the picture of ramps at the size that the model reads.
LOGITS = {
    "efficientnet_lite0.imagenet": {"818": 4.24884, "782": 4.00249, "604": 3.85898},
    "efficientnet_lite2.imagenet": {"499": 5.30341, "782": 4.46226, "149": 4.30612},
}


@pytest.mark.network
@pytest.mark.parametrize("name", LOGITS)
def test_published_weights_have_the_logits_of_their_package(
    name: str, converted: Callable[[str], tuple[ModelEntry, ServedRun]], tmp_path: Path
) -> None:
    entry, eager = converted(name)
    assert entry.card.image is not None
    fed: Feeds = {"image": golden_picture(entry.card.image.size, entry.card.image.size)[None]}
    session = onnxruntime.InferenceSession(tmp_path / "onnx-fp32.onnx")
    for logits in (eager.run(fed)[0][0], session.run(["logits"], fed)[0][0]):
        highest = {entry.card.labels[place]: float(logits[place]) for place in np.argsort(-logits)[:3]}
        assert highest == pytest.approx(LOGITS[name], abs=1e-4)


def _tiny(name: str, side: int, **hparams: Any) -> ModelCard:
    card = model_card(name, **hparams)
    assert card.image is not None
    return card.replace(image=replace(card.image, size=side))


TINY = {
    # 75 leaves odd sides to pad, with kernels of both sizes; the third block has a shortcut.
    "efficientnet_lite0": _tiny(
        "efficientnet_lite0.imagenet",
        75,
        stem=4,
        features=16,
        stages=[[1, 3, 1, 1, 4], [2, 5, 2, 3, 6], [1, 3, 2, 2, 8], [1, 5, 1, 2, 8]],
        labels=["0", "1", "2"],
    ),
    "opennsfw": _tiny("opennsfw.yahoo", 64, stem=8, stages=[[4, 2], [6, 1], [8, 1]]),
    # 75 leaves odd sides to pad.
    "nsfwjs_mobilenet_v2": _tiny("nsfwjs_mobilenet_v2.gantman", 75, depth_multiplier=0.05, hidden=[16, 8]),
    "nsfwjs_inception_v3": _tiny("nsfwjs_inception_v3.gantman", 107, width=0.04, hidden=[16, 8]),
}


def _drawn(card: ModelCard) -> ZooModel:
    """A module with weights, means and variances that all count."""
    torch.manual_seed(0)
    model = build(card).eval()
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
        elif value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.5, 1.5)
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
    pixels = np.stack(drawn_images(3, card.image.size))
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


#: The names of the file's convolutions and norms by those of the module.
_LITE = {
    "stem": ("_conv_stem", "_bn0"),
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
    "head": ("_conv_head", "_bn1"),
}


def _lite_state(model: ZooModel) -> dict[str, Any]:
    """The weights of an EfficientNet-Lite under the names of its file; the first lies as TensorFlow has it."""
    state = {}
    for name, value in model.state_dict().items():
        *path, kind = name.split(".")
        if path == ["classifier"]:
            state[f"_fc.{kind}"] = value
            continue
        *block, part, layer = path[1:]
        place = f"_blocks.{block[1]}." if block else ""
        state[f"{place}{_LITE[part][layer == 'normalization']}.{kind}"] = value
    state["_conv_stem.weight"] = state["_conv_stem.weight"].permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    return state


def _torch_file(state: Any, **options: Any) -> dict[str, bytes]:
    """What `torch.save` wrote before it wrote zips, by the member's path."""
    buffer = io.BytesIO()
    torch.save(state, buffer, **{"_use_new_zipfile_serialization": False} | options)
    return {"weights.pth": buffer.getvalue()}


def test_weights_of_efficientnet_lite_find_their_places() -> None:
    card = TINY["efficientnet_lite0"]
    model = _drawn(card)
    found = efficientnet.convert(card, _torch_file(OrderedDict(_lite_state(model)))).arrays
    assert found.keys() == model.state_dict().keys()
    for name, one in _arrays(model).items():
        np.testing.assert_array_equal(found[name], one)
        assert (found[name].dtype, found[name].shape) == (one.dtype, one.shape)


def test_another_file_than_efficientnet_lite_is_refused() -> None:
    card = TINY["efficientnet_lite0"]
    state = OrderedDict(_lite_state(_drawn(card)))

    def refused(members: dict[str, bytes]) -> str:
        with pytest.raises(BadDataError) as refusal:
            efficientnet.convert(card, members)
        return str(refusal.value)

    whole = _torch_file(state)["weights.pth"]
    assert "efficientnet_lite0.imagenet: weights.pth is no file of torch" in refused({"weights.pth": b"no file"})
    assert "weights.pth is no file of torch" in refused(_torch_file(state, _use_new_zipfile_serialization=True))
    assert "is no state dict of torch" in refused({"weights.pth": b"".join(map(pickle.dumps, range(5)))})
    assert "holds an object of pathlib." in refused(_torch_file(OrderedDict(a=Path("a"))))
    assert "ends in a tensor of" in refused({"weights.pth": whole[:-10]})
    assert "holds an object of torch.DoubleStorage" in refused(_torch_file(OrderedDict(a=torch.zeros(2).double())))
    assert "weights missing: classifier.bias" in refused(_torch_file(OrderedDict(list(state.items())[:-1])))
    assert "weights left over: more" in refused(_torch_file(OrderedDict(state, more=torch.zeros(2))))
    wide = OrderedDict(state, **{"_fc.bias": torch.zeros(4)})
    assert "classifier.bias is [4], expected [3]" in refused(_torch_file(wide))


def test_a_tensor_outside_its_storage_is_refused() -> None:
    content = _torch_file(OrderedDict(a=torch.arange(6.0).reshape(2, 3)[:, 1:]))["weights.pth"]
    np.testing.assert_array_equal(tensors(content)["a"], [[1, 2], [4, 5]])
    strides = b"K\x03K\x01\x86"  # the pair (3, 1), as protocol 2 writes it
    assert content.count(strides) == 1
    with pytest.raises(BadDataError, match=r"a tensor \[2, 2\] with strides \[9, 1\] outside its storage"):
        tensors(content.replace(strides, b"K\x09K\x01\x86"))


def _script(exported: str) -> bytes:
    """A minified script around what it exports."""
    before, after = "!function(a){module.exports=a()}(({1:[function(a,n,i){n.exports=", "},{}]},{},[1])(1));"
    return f"{before}{exported}{after}".encode()


def _literal(value: Any) -> str:
    """A value as minifiers write it."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_literal(one)}' for key, one in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_literal, value))}]"
    words = {True: "!0", False: "!1", None: "null"}
    if value is None or isinstance(value, bool):
        return words[value]
    return json.dumps(value) if isinstance(value, str) else re.sub(r"^(-?)0\.", r"\1.", repr(value))


def _package(card: ModelCard, arrays: Mapping[str, NDArray[Any]], table: Mapping[str, str]) -> dict[str, bytes]:
    """The scripts of a package with these weights, in two shards that are cut in the middle of a number."""
    weights, blob = [], b""
    for ours, theirs in table.items():
        one = arrays[ours]
        if one.ndim == 4:
            one = one.transpose((2, 3, 0, 1) if theirs.endswith("depthwise_kernel") else (2, 3, 1, 0))
        one = one.T if one.ndim == 2 else one
        weights.append({"name": theirs, "shape": list(one.shape), "dtype": "float32"})
        blob += np.ascontiguousarray(one).tobytes()
    model = {
        "modelTopology": {
            "model_config": {"class_name": "Model", "config": {"sparse": False, "seed": None, "a": -0.25}}
        },
        "weightsManifest": [{"paths": ["group1-shard1of2", "group1-shard2of2"], "weights": weights}],
    }
    shards = [base64.b64encode(part).decode() for part in (blob[:1001], blob[1001:])]
    folder = f"package/dist/models/{nsfwjs.FOLDERS[card.architecture]}"
    return {
        f"{folder}/model.min.js": _script(_literal(model)),
        f"{folder}/group1-shard1of2.min.js": _script(f'"{shards[0]}"'),
        f"{folder}/group1-shard2of2.min.js": _script(f'"{shards[1]}"'),
    }


def _of_package(architecture: str) -> tuple[ModelCard, dict[str, NDArray[Any]], dict[str, bytes]]:
    card = TINY[architecture]
    model = _drawn(card)
    table = nsfwjs.mobilenet_table() if architecture == "nsfwjs_mobilenet_v2" else nsfwjs.inception_table()
    for name, value in model.state_dict().items():
        if name.endswith("normalization.weight") and name not in table:
            value.fill_(1)
    arrays = _arrays(model)
    return card, arrays, _package(card, arrays, table)


@pytest.mark.parametrize("architecture", ["nsfwjs_mobilenet_v2", "nsfwjs_inception_v3"])
def test_weights_of_nsfwjs_find_their_places(architecture: str) -> None:
    card, arrays, members = _of_package(architecture)
    found = nsfwjs.convert(card, members).arrays
    assert found.keys() == arrays.keys()
    for name, one in arrays.items():
        np.testing.assert_array_equal(found[name], one)
        assert found[name].dtype == one.dtype


def test_the_blocks_have_as_many_convolutions_as_are_named() -> None:
    assert len(build(TINY["nsfwjs_inception_v3"]).convolutions) == inception.COUNT  # type: ignore[arg-type]


SHARD = "group1-shard1of2.min.js"
#: What a script may be instead, and the part of the message that says so.
BAD_SCRIPTS: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("model.min.js", lambda _: b"", r"model\.min\.js exports 0 object literals"),
    ("model.min.js", lambda one: one + one, r"exports 2 object literals"),
    ("model.min.js", lambda one: one[:300], r"model\.min\.js is no object literal of plain values at character 300"),
    ("model.min.js", lambda _: _script("{a:run()}"), r"no object literal of plain values at character \d+: 'run"),
    ("model.min.js", lambda _: _script("{a:1,}"), "no object literal of plain values"),
    ("model.min.js", lambda _: _script("{a:[1}]"), "no object literal of plain values"),
    ("model.min.js", lambda _: _script("{a:1}"), r"model\.min\.js is not a TensorFlow\.js layers model"),
    (SHARD, lambda _: _script("{a:1}"), r"shard1of2\.min\.js exports 0 strings of base64"),
    (SHARD, lambda _: _script('"abc"'), r"shard1of2\.min\.js is no base64"),
    (SHARD, lambda one: one.replace(b'="', b'="AAAA'), r"group1-shard2of2 holds \d+ bytes; the weights"),
    (SHARD, lambda one: re.sub(rb'="....', b'="', one), r"group1-shard2of2 holds \d+ bytes; 'dense_3/bias' ends at"),
]


@pytest.mark.parametrize(("script", "change", "message"), BAD_SCRIPTS)
def test_another_package_than_nsfwjs_is_refused(script: str, change: Callable[[bytes], bytes], message: str) -> None:
    card, _, members = _of_package("nsfwjs_mobilenet_v2")
    path = f"package/dist/models/mobilenet_v2/{script}"
    with pytest.raises(BadDataError, match=message):
        nsfwjs.convert(card, members | {path: change(members[path])})


def test_a_shard_that_the_archive_lacks_is_named() -> None:
    card, _, members = _of_package("nsfwjs_mobilenet_v2")
    del members[f"package/dist/models/mobilenet_v2/{SHARD}"]
    with pytest.raises(BadDataError, match=r"mobilenet_v2/group1-shard1of2\.min\.js is missing; .*model\.min\.js"):
        nsfwjs.convert(card, members)
