"""Every registered architecture in every precision: its products have it, and what must stay float32 does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from export.bundle.manifest import COUNTED_AS, Engine, Precision
from export.onnx.export import RUNS_ON, opset_of, write_onnx
from export.precision.half import HALVES, HalfAttention, in_half
from export.precision.int8 import quantise_rows
from export.precision.nodes import count_products, rounded_float32
from export.runtime.onnx import OnnxEngine
from export.verify.inputs import CALIBRATED, calibration, image_probes, text_probes
from tests.every_model import EVERY_MODEL
from zoo.errors import BadInputError, IncompatibleBundleError
from zoo.judging.scorer import Feeds
from zoo.models.served import ServedRun, text_banks
from zoo.registry import list_models, model_card
from zoo.release.store import Release, load_release

#: It only adds up rows of its weights, so that there is no product to make smaller.
TERMS = "test_terms.random"
MODELS = [one for one in EVERY_MODEL if one.id != TERMS]
CLIP, FUSION, CONV = "test_safeclip.random", "test_multimodal_nsfw.fusion", "test_clip_resnet.random"
PROMPTS = "test_prompt_bert.random"
#: What half precision would spoil.
FLOAT32_ONLY = {"Softmax", "LayerNormalization", "BatchNormalization", "ReduceL2", "ReduceSum", "Exp"}
#: How far scores in [0, 1] may lie from eager's, on random weights.
TOLERANCE: dict[Precision, float] = {"fp16": 0.005, "bf16": 0.05, "int8": 0.1, "int8_qdq": 0.15}


@pytest.fixture(scope="module")
def pairs(photos: Path) -> Path:
    """A manifest of those pictures with texts, to calibrate on."""
    names = [path.name for path in sorted(photos.glob("*.png"))]
    lines = [f"{name},{text}" for name, text in zip(names, text_probes(len(names)), strict=True)]
    (photos / "pairs.csv").write_text("\n".join(["image,text", *lines]), encoding="utf-8")
    return photos / "pairs.csv"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures to calibrate on."""
    folder = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(image_probes(8, None)[0].repeat(96, 1).repeat(64, 2)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    drawn, _ = image_probes(8, model_card(CLIP).image)
    for number, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(folder / f"drawn_{number}.png")
    return folder


def _feeds(release: Release, rows: int = 6) -> Feeds:
    """Drawn inputs; where the model allows it, one lacks its text and one its image."""
    card = release.card
    feeds: Feeds = {} if card.image is None else {"image": image_probes(rows, card.image)[0]}
    if card.reads_text and card.text is not None:
        tokens = release.model.codec().encode(text_probes(rows))
        there = np.ones((rows, 1), dtype=np.int64)
        there[2] = "text" in card.requires
        mask = tokens.mask * there.astype(tokens.mask.dtype)
        feeds |= {"input_ids": tokens.ids * there, card.text.mask_name: mask}
    if "image_present" in card.input_names:
        feeds["image_present"] = np.arange(rows) != 4
    return feeds


def _check(release: Release, precision: Precision, path: Path, files: tuple[str, ...], counts: dict[str, int]) -> None:
    """The finished engine has products in that precision and answers much as eager does."""
    assert counts[COUNTED_AS[precision]] > 0
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=not precision.startswith("int8"))
    assert [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")] == [opset_of(precision)]
    if precision == "bf16":
        onnx.save(rounded_float32(proto), path)
    spec = Engine("e", "onnx", precision, files, "latency", (1, 8, 64), RUNS_ON[precision], counts, "")
    engine = OnnxEngine(path, spec, "cpu", 1)
    feeds = _feeds(release)
    eager = ServedRun(release.model, text_banks(release.model, release.judge))
    assert np.abs(engine(feeds) - eager(feeds)).max() < TOLERANCE[precision]


#: Each is a graph of its own, which takes long to trace: a model with convolutions, texts and both inputs in float16, a
#: tower in bfloat16, which differs in the operators of its opset.
FAST = [("bf16", CLIP), ("fp16", "test_multimodal_conv.fusion")]
HALF = FAST + [
    pytest.param(precision, name, marks=pytest.mark.slow)
    for precision, names in {"bf16": [CONV], "fp16": list_models("test_*")}.items()
    for name in names
    if (precision, name) not in FAST and name != TERMS
]


@pytest.mark.parametrize(("precision", "name"), HALF)
def test_half_precision_keeps_in_float32_what_it_would_spoil(precision: Precision, name: str, tmp_path: Path) -> None:
    release = load_release(name)
    path = tmp_path / "e.onnx"
    files, counts = write_onnx(release, precision, path)
    resizes = release.card.image is None or release.card.image.recompress is None
    assert set(counts) == ({precision, "fp32"} if resizes else {precision})
    proto = onnx.load(path)
    types = {value.name: value.type.tensor_type.elem_type for value in (*proto.graph.value_info, *proto.graph.output)}
    for node in proto.graph.node:
        if node.op_type in FLOAT32_ONLY and types[node.output[0]] in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            pytest.fail(f"{node.op_type} {node.name} is in {precision}")
    assert {types["logits"], types["scores"]} == {TensorProto.FLOAT}
    # Resize twice, similarity or last layers; all else is in half precision.
    assert counts.get("fp32", 0) <= 2 + max(1, len(release.card.heads)) * max(1, len(release.card.labels), 5)
    _check(release, precision, path, files, counts)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_model_without_products_says_so(precision: Precision, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleBundleError, match=f"an {precision} engine was asked for, but none"):
        write_onnx(load_release(TERMS), precision, tmp_path / "e.onnx")


@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["int8", "int8_qdq"])
def test_eight_bits(pairs: Path, name: str, precision: Precision, tmp_path: Path) -> None:
    """One manifest does for models of images, of texts and of both: each takes what it reads."""
    release = load_release(name)
    path = tmp_path / "e.onnx"
    files, counts = write_onnx(release, precision, path, pairs if precision == "int8_qdq" else None)
    assert set(counts) == {"int8", "fp32"}
    _check(release, precision, path, files, counts)
    engine = OnnxEngine(path, Engine("e", "onnx", precision, files, "latency", (1, 8, 64), ("cpu",), counts, ""))
    feeds = _feeds(release, 12)
    if "image" in feeds:  # a quiet image among loud ones
        feeds["image"][:4] = 120 + feeds["image"][:4] // 16
        feeds["image"][4:] = np.random.default_rng(0).integers(0, 2, feeds["image"][4:].shape) * 255
    together = engine.run(feeds)
    for row in (0, 3, 11):
        alone = engine.run({name: value[row : row + 1] for name, value in feeds.items()})
        for one, all_rows in zip(alone, together, strict=True):
            assert np.abs(one[0] - all_rows[row]).max() < 1e-5


@pytest.mark.parametrize("precision", ["int8", "int8_qdq"])
def test_cosines_that_steps_of_0_01_decide_stay_in_float32(pairs: Path, precision: Precision, tmp_path: Path) -> None:
    release = load_release("test_safety_checker.random")
    write_onnx(release, precision, tmp_path / "e.onnx", pairs if precision == "int8_qdq" else None)
    proto = onnx.load(tmp_path / "e.onnx")
    floats = [weight for weight in proto.graph.initializer if weight.data_type == TensorProto.FLOAT]
    shapes = {weight.name: tuple(weight.dims) for weight in floats}
    products = [node for node in proto.graph.node if node.op_type == "MatMul"]
    kept = {shapes[node.input[1]] for node in products if node.input[1] in shapes}
    width = release.card.hparams["embedding_dim"]
    assert kept == {(width, 3), (width, 17)}  # special care, and the concepts


@pytest.mark.parametrize("rows", [8, 7])
def test_no_processor_clamps_the_sums_of_rows(rows: int) -> None:
    """The largest activations and weights of one sign meet: of codes of 127, an x86 without VNNI clamps the sums."""
    signs = np.where(np.arange(rows) // 2 % 2, -1, 1).astype(np.float32)
    weight = np.stack([np.ones(rows), signs, np.linspace(-1, 1, rows), np.zeros(rows)], axis=1).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, ["n", rows])], [value("y", TensorProto.FLOAT, ["n", 4])]
    graph = helper.make_graph([node], "g", *ends, [numpy_helper.from_array(weight, "w")])
    found = quantise_rows(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    codes = numpy_helper.to_array(next(one for one in found.graph.initializer if one.name == "w_int8")).astype(np.int64)
    for start in range(0, rows - 1, 2):
        assert (np.abs(codes[start : start + 2].sum(axis=0)) <= 128).all()
    x = np.stack([np.ones(rows), -signs, signs]).astype(np.float32)
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.abs(session.run(["y"], {"x": x})[0] - x @ weight).max() < 0.02 * rows


def test_a_product_by_rows_keeps_zeros_infinities_and_what_has_no_weight() -> None:
    """A row of zeros gives zeros, an infinity no number; a weight that is used twice is quantised once."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(16, 8)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="plain"),
        helper.make_node("Gemm", ["x", "t", "b"], ["z"], name="turned", transB=1),
        helper.make_node("MatMul", ["y", "turned_z"], ["s"], name="without_weight"),
        helper.make_node("Transpose", ["z"], ["turned_z"], name="turn", perm=[1, 0]),
    ]
    nodes = [nodes[0], nodes[1], nodes[3], nodes[2]]
    named = {"w": weight, "t": np.ascontiguousarray(weight.T), "b": bias}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 16])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", None]) for name in "yzs"]
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in named.items()]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    found = quantise_rows(proto)
    onnx.checker.check_model(found)
    assert count_products(found) == {"fp32": 1, "int8": 2}
    assert [node.op_type for node in found.graph.node].count("QuantizeLinear") == 1
    x = rng.normal(size=(5, 16)).astype(np.float32) * np.array([[1e-3], [1], [1e3], [0], [1]], np.float32)
    x[4, 3] = np.inf
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    y, z, _ = session.run(["y", "z", "s"], {"x": x})
    scale = np.abs(x[:4]).max(axis=1, keepdims=True)
    assert (np.abs(y[:4] - x[:4] @ weight) <= 0.1 * scale).all()
    assert np.allclose(z[:4], y[:4] + bias, atol=1e-4)
    assert (y[3] == 0).all()
    assert not np.isfinite(y[4]).any()


@pytest.mark.parametrize("name", MODELS)
def test_the_conversion_itself_changes_nothing(name: str) -> None:
    """Folded BatchNorms and the attention written out: in float32 the converted model is the model."""
    release = load_release(name)
    feeds = _feeds(release)
    banks = text_banks(release.model, release.judge)
    before = {key: value.clone() for key, value in release.model.state_dict().items()}
    found = ServedRun(in_half(release.model, torch.float32), banks).run(feeds)[0]
    assert np.abs(found - ServedRun(release.model, banks).run(feeds)[0]).max() < 1e-4
    after = release.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())  # the original is left alone


@pytest.mark.parametrize("dtype", HALVES.values())
def test_attention_in_half_precision_sees_no_masked_key(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    source = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    query, key = torch.randn(3, 4, 16), torch.randn(3, 5, 16)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[:, 3:] = True
    half = in_half_attention(source, dtype)
    found = half(query, key, key, key_padding_mask=mask)[0]
    assert found.dtype == dtype
    wanted = source(query, key, key, key_padding_mask=mask, need_weights=False)[0]
    assert torch.allclose(found.float(), wanted, atol=0.03)
    key[:, 3:] = 1e4
    assert torch.equal(half(query, key, key, key_padding_mask=mask)[0], found)


def in_half_attention(source: nn.MultiheadAttention, dtype: torch.dtype) -> nn.Module:
    """The attention alone, its layers cast as `in_half` casts them."""
    attention = HalfAttention(source, dtype)
    for layer in attention.modules():
        if isinstance(layer, nn.Linear):
            layer.to(dtype)
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    return attention


def test_calibration_takes_what_the_model_reads(photos: Path, pairs: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a red sign\n\ntwo dogs\n", encoding="utf-8")
    codec = load_release(FUSION).model.codec()
    image, text, both = (model_card(name) for name in (CLIP, PROMPTS, FUSION))
    (found,) = calibration(photos, image, None)
    assert {name: len(value) for name, value in found.items()} == {"image": 16}
    (found,) = calibration(texts, text, codec)
    assert np.array_equal(found["input_ids"], codec.encode(["a red sign", "two dogs"]).ids)
    (found,) = calibration(pairs, both, codec)
    assert set(found) == set(both.input_names)
    assert found["image_present"].all()
    assert found["attention_mask"].any(axis=1).all()


def test_calibration_takes_rows_evenly_and_leaves_out_what_a_row_has_not(photos: Path, tmp_path: Path) -> None:
    picture = next(photos.glob("*.png"))
    rows = [f"{picture},text {number}" for number in range(2 * CALIBRATED)]
    rows[0], rows[-1] = f"{picture},", ",the last text"
    (tmp_path / "manifest.csv").write_text("\n".join(["image,text", *rows]), encoding="utf-8")
    batches = calibration(tmp_path, model_card(FUSION), load_release(FUSION).model.codec())
    present = np.concatenate([feeds["image_present"] for feeds in batches])
    texts = np.concatenate([feeds["attention_mask"] for feeds in batches]).any(axis=1)
    assert len(present) == CALIBRATED
    assert np.flatnonzero(~present).tolist() == [CALIBRATED - 1]
    assert np.flatnonzero(~texts).tolist() == [0]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (CLIP, None, "int8_qdq takes its scales from what the model judges: give `calibrate`, a folder of images"),
        (CLIP, "texts.txt", r"holds no images, which test_safeclip.random reads; give `calibrate`, a folder"),
        (PROMPTS, None, "give `calibrate`, a file with texts like those that it will judge, one a line"),
        (PROMPTS, "photos", r"holds no texts, which test_prompt_bert.random reads; give `calibrate`, a file"),
        (FUSION, "photos", r"holds no texts, .*a manifest \(CSV\) with the columns image and text"),
        (FUSION, "texts.txt", r"holds no images, .*a manifest \(CSV\) with the columns image and text"),
        (CLIP, "empty", "holds no images"),
        (PROMPTS, "nowhere.txt", "no such file or folder; give `calibrate`, a file with texts"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused(
    photos: Path, tmp_path: Path, name: str, given: str | None, message: str
) -> None:
    (tmp_path / "texts.txt").write_text("a red sign\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").symlink_to(photos)
    with pytest.raises(BadInputError, match=message):
        write_onnx(load_release(name), "int8_qdq", tmp_path / "e.onnx", tmp_path / given if given else None)


def test_a_listed_image_that_cannot_be_read_stops_the_calibration(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "manifest.csv").write_text("image\nbroken.png\n", encoding="utf-8")
    with pytest.raises(BadInputError, match=r"broken\.png"):
        calibration(tmp_path, model_card(CLIP), None)
