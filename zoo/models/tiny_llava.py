"""A LLaVA that is small enough to train on a laptop, around the vision tower of a released tiny CLIP.

The classes are transformers' own (`LlavaForConditionalGeneration`, `LlavaProcessor`), so code for it also works with
LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744), whose layout it copies: CLIP patch tokens of the last layer but one,
a two-layer projector, a Llama. It differs in its sizes and its vocabulary, and it reads an early layer as well.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from zoo.errors import BadArgumentError
from zoo.inputs.text import train_bpe
from zoo.models.base import image_of
from zoo.models.clip import ClipImageTower, DualEncoder, clip_config

BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"

#: The hidden state that is read beside LLaVA's own. A tiny CLIP forgets on the way up where things are: a probe finds
#: the place of a drawn sign in 79 % of pictures here, and in 62 % from the last layer but one.
EARLY = 1

#: LLaVA-1.5's conversation, with the end token after each answer: `USER: <image>\nQUESTION ASSISTANT: ANSWER</s>`.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %} {% else %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def train_llava_tokenizer(texts: Iterable[str], vocabulary_size: int) -> str:
    """Train a byte-level BPE with the control tokens `<s>`, `</s>`, `<pad>`, `<image>`; returns its tokenizer.json.

    Every text begins with `<s>` when encoded, as in Llama.
    """
    return train_bpe(texts, vocabulary_size, [BOS, EOS, PAD, IMAGE], f"{BOS} $A", like_clip=False)


def tiny_llava_processor(clip: DualEncoder, tokenizer_json: str, known: Iterable[str] = ()) -> LlavaProcessor:
    """The processor: the release's own preprocessing, and the tokenizer.

    `known` are texts that must come back unchanged from their token ids, such as the guard's instruction. Raises
    BadArgumentError for one that does not, and for a model without a CLIP vision tower.
    """
    tower, image = _tower(clip), image_of(clip.card)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    for text in known:
        back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True)
        if back != text:
            raise BadArgumentError(
                f"the tokenizer does not know a text of {len(text)} characters: it comes back as another"
            )
    if image.resize != "shortest_edge_crop" or image.interpolation != "bicubic":
        raise BadArgumentError(f"{clip.card.name}: a LLaVA's images are resized as CLIP's are, not by {image.resize}")
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": image.size},
            crop_size={"height": image.size, "width": image.size},
            image_mean=list(image.mean),
            image_std=list(image.std),
        ),
        tokenizer=tokenizer,
        patch_size=tower.vision_model.config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLS, which "default" removes
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def build_tiny_llava(
    clip: DualEncoder,
    processor: LlavaProcessor,
    *,
    vocabulary_size: int = 768,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    context: int = 512,
) -> LlavaForConditionalGeneration:
    """An untrained LLaVA around the CLIP's vision tower, whose weights are copied and frozen.

    `width`, `layers`, `heads` and `context` (tokens, the image's included) are the Llama's. The projector reads the
    hidden state that is last but one in the whole CLIP, whether or not the release carries the layer after it, and
    beside it that of the first layer. Raises BadArgumentError for a model without a CLIP vision tower or that layer,
    and for a vocabulary too small.
    """
    tower, tokenizer = _tower(clip), processor.tokenizer
    if len(tokenizer) > vocabulary_size:
        raise BadArgumentError(f"the tokenizer has {len(tokenizer)} tokens, vocabulary_size is only {vocabulary_size}")
    vision = clip_config(clip.card).vision_config
    depth, built = vision.num_hidden_layers, len(tower.vision_model.encoder.layers)
    read = depth - 1 - built - 1
    if read > -1:
        raise BadArgumentError(f"{clip.card.name}: carries {built} of {depth} layers; a LLaVA reads number {depth - 1}")
    vision.num_hidden_layers = built
    text = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        intermediate_size=-(-8 * width // 3 // 32) * 32,  # gated: weights of a plain MLP of 4 x width
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        initializer_range=width**-0.5,  # the usual 0.02 is for widths of thousands
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=[EARLY, read],
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.vision_model.state_dict())
    model.model.vision_tower.requires_grad_(False)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    return model.to(torch.float32).eval()


def _tower(clip: DualEncoder) -> ClipImageTower:
    tower = getattr(clip, "image_tower", None)
    if not isinstance(tower, ClipImageTower):
        raise BadArgumentError(
            f"{clip.card.name}: a LLaVA needs a CLIP vision transformer, as safeclip_tiny.zeroshot has"
        )
    return tower
