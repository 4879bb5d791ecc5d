"""Tiny vision-language models of the real classes, with real processors, and a detector that flags red pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from zoo.contract.policy import Policy
from zoo.guard.detector import Detector
from zoo.guard.guard import Guard
from zoo.guard.insertion import INSTRUCTION
from zoo.guard.refusals import REFUSAL
from zoo.models.clip import DualEncoder
from zoo.release.store import load_release

SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
CORPUS = [
    INSTRUCTION,
    REFUSAL,
    "USER: \nWhat is shown in this image? ASSISTANT: A red octagon on a pole.",
    "USER: \nDescribe the first picture, then the second.\n\nWhich is larger? ASSISTANT: The second dog.",
    "Is this a sign? How many signs are there? What colour is it? It's yellow, isn't it?",
]


@dataclass
class Setup:
    """A model, its processor, a detector's release and policy that fit; it flags red, and neither green nor blue."""

    model: Any
    processor: Any
    release: DualEncoder
    policy: Policy
    red: ClassVar[Image.Image] = Image.new("RGB", (64, 64), "red")
    green: ClassVar[Image.Image] = Image.new("RGB", (64, 64), "green")
    blue: ClassVar[Image.Image] = Image.new("RGB", (64, 64), "blue")

    def guard(self, **options: Any) -> Guard:
        return Guard(self.model, self.processor, Detector(self.release, self.policy), **options)

    def inputs(self, images: list[Image.Image] | None, text: list[str], **options: Any) -> Any:
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt"} | options
        return self.processor(images=images, text=text, **options)

    def other(self, kind: Any, config: Any) -> Setup:
        """The same with another model class."""
        return Setup(seeded(kind, config, self.release), self.processor, self.release, self.policy)

    @staticmethod
    def plain(colour: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
        return Image.new("RGB", size, colour)

    @staticmethod
    def noise(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def byte_level_tokenizer() -> Any:
    """A byte-level BPE with GPT-2's splitting, trained on the corpus."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer, PreTrainedTokenizerFast)


def wrapped(tokenizer: Tokenizer, kind: Any, **options: Any) -> Any:
    return kind(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        **options,
    )


def vision_config(**changes: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return sizes | {"patch_size": 8, "image_size": 32, "projection_dim": 16} | changes


def text_config(tokenizer: Any, **changes: Any) -> Any:
    from transformers import LlamaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **(sizes | ids | changes))


def image_processor() -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def llava(
    release: DualEncoder, tokenizer: Any, *, vision_layers: int = 2, vision_feature_layer: int = -2
) -> tuple[Any, Any]:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision_config(num_hidden_layers=vision_layers)),
        text_config=text_config(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy="default",
    )
    processor = LlavaProcessor(
        image_processor(),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    return seeded(LlavaForConditionalGeneration, config, release), processor


def llava_next(release: DualEncoder, tokenizer: Any) -> tuple[Any, Any]:
    from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    pinpoints = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision_config()),
        text_config=text_config(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    return seeded(LlavaNextForConditionalGeneration, config, release), processor


CHAT = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def seeded(kind: Any, config: Any, release: DualEncoder) -> Any:
    """The model from seeded random weights, its tower with those of the release as far as that has layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = kind(config).eval()
    tower: Any = release.image_tower.vision_model
    left = model.base_model.vision_tower.load_state_dict(tower.state_dict(), strict=False)
    assert not left.unexpected_keys
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture(scope="session")
def release() -> DualEncoder:
    model = load_release("test_safeclip.random").model
    assert isinstance(model, DualEncoder)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def policy(release: DualEncoder, tokenizer: Any) -> Policy:
    """A policy that flags red and neither green nor blue: the weights are random, so the threshold is looked up."""
    return colour_policy(release, *llava(release, tokenizer))


def colour_policy(release: DualEncoder, model: Any, processor: Any) -> Policy:
    phrases = ["a red octagon", "a dog on grass", "blue sky", "yellow triangle", "a sign", "signs at night"]
    best: tuple[float, Policy] | None = None
    for phrase in phrases:
        others = [other for other in phrases if other != phrase][:2]

        def made(threshold: float, phrase: str = phrase, others: list[str] = others) -> Policy:
            return Policy.from_dict(
                {
                    "schema_version": 1,
                    "name": "red",
                    "version": "1",
                    "summary": "Flags red pictures",
                    "rule": "each",
                    "categories": [
                        {"name": "neutral", "action": "allow", "descriptors": others},
                        {
                            "name": "red_signs",
                            "action": "block",
                            "threshold": {"value": threshold},
                            "descriptors": [phrase],
                        },
                    ],
                }
            )

        guard = Guard(model, processor, Detector(release, made(0.5)), correction="flag")
        inputs = processor(images=[Setup.red, Setup.green, Setup.blue], text=["<image>"] * 3, return_tensors="pt")
        red, *safe = (row[0].scores["red_signs"] for row in guard.screen(**inputs).verdicts)
        gap = red - max(safe)
        if best is None or gap > best[0]:
            best = gap, made((red + max(safe)) / 2)
    assert best is not None
    assert best[0] > 1e-3
    return best[1]


@pytest.fixture(params=["llava", "llava_next"])
def setup(request: pytest.FixtureRequest, release: DualEncoder, tokenizer: Any, policy: Policy) -> Setup:
    build: Callable[..., tuple[Any, Any]] = {"llava": llava, "llava_next": llava_next}[request.param]
    return Setup(*build(release, tokenizer), release, policy)


@pytest.fixture
def tiny(release: DualEncoder, tokenizer: Any, policy: Policy) -> Setup:
    return Setup(*llava(release, tokenizer), release, policy)


@pytest.fixture
def tall(release: DualEncoder, tokenizer: Any, policy: Policy) -> Setup:
    """LLaVA-NeXT, which cuts a picture into tiles."""
    return Setup(*llava_next(release, tokenizer), release, policy)


@pytest.fixture
def cut(release: DualEncoder, tokenizer: Any, policy: Policy) -> Setup:
    """LLaVA whose tower ends behind the layer that it reads."""
    model, processor = llava(release, tokenizer, vision_layers=1, vision_feature_layer=-1)
    return Setup(model, processor, release, policy)
