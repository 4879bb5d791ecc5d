"""The rewrites of graphs for CPUs change how an answer is reached, and not the answer."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from export.onnx.graph import served_graph
from export.precision.nodes import count_products, patches_as_products, skip_resize
from zoo.models.served import text_banks
from zoo.release.store import load_release

#: A ViT, and a network all of whose convolutions overlap.
VIT, CONVOLUTIONS = "test_safeclip.random", "test_clip_resnet.random"


@pytest.fixture(scope="module")
def graphs() -> dict[str, tuple[onnx.ModelProto, int]]:
    """The float32 graphs by name, and the side of the images that they judge."""
    found = {}
    for name in (VIT, CONVOLUTIONS):
        release = load_release(name)
        assert release.card.image is not None
        found[name] = served_graph(release.model, text_banks(release.model, release.judge)), release.card.image.size
    return found


def test_patches_are_a_product_of_the_same_sums(graphs: dict[str, tuple[onnx.ModelProto, int]]) -> None:
    proto, size = graphs[VIT]
    rewritten = patches_as_products(proto)
    assert (_operators(proto)["Conv"], _operators(rewritten)["Conv"]) == (1, 0)
    assert count_products(rewritten) == count_products(proto)
    for images in (_images(3, size, size), _images(2, size + 9, size * 2)):
        np.testing.assert_allclose(_logits(rewritten, images), _logits(proto, images), atol=1e-5)


def test_convolutions_that_overlap_stay(graphs: dict[str, tuple[onnx.ModelProto, int]]) -> None:
    proto, _ = graphs[CONVOLUTIONS]
    assert _operators(proto)["Conv"] > 1
    assert patches_as_products(proto) == proto


@pytest.mark.parametrize("name", [VIT, CONVOLUTIONS])
def test_an_image_of_the_models_own_size_passes_the_resize_by(
    graphs: dict[str, tuple[onnx.ModelProto, int]], name: str
) -> None:
    proto, size = graphs[name]
    rewritten = skip_resize(proto, size)
    onnx.checker.check_model(rewritten)
    assert count_products(rewritten) == count_products(proto)  # those in the branch are counted too
    for images in (_images(2, size, size), _images(2, size, size + 1), _images(1, size * 2, size)):
        np.testing.assert_array_equal(_logits(rewritten, images), _logits(proto, images))
    # What the branch does is seen only where it is another one: without its clamp, say, other sizes change alone.
    (branch,) = [node for node in rewritten.graph.node if node.op_type == "If"]
    otherwise = next(attribute.g for attribute in branch.attribute if attribute.name == "else_branch")
    otherwise.node[-1].op_type = "Neg"
    del otherwise.node[-1].input[1:]
    fits, other = _images(2, size, size), _images(2, size * 2, size)
    np.testing.assert_array_equal(_logits(rewritten, fits), _logits(proto, fits))
    assert np.abs(_logits(rewritten, other) - _logits(proto, other)).max() > 1e-3


def _operators(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


def _images(count: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def _logits(proto: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["logits"], {"image": images})[0]
    return found
