"""Classifiers that recipes train: of small images, and of prompts, as data."""

from __future__ import annotations

from zoo.contract.card import ImageInput, TextInput
from zoo.models.catalogue.clip import MINILM
from zoo.registry import register

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

#: The categories of configs/data/text_corpora.yaml. The last two tell styles of prompts apart, see there.
PROMPT_LABELS = (
    "davidson_hate",
    "davidson_offensive",
    "hateval",
    "olid_offensive",
    "toxic_chat",
    "jailbreak",
    "inappropriate_prompt",
    "red_team_prompt",
)

register(
    "vision_regnet_tiny.plain",
    builder="zoo.models.classifiers:ImageClassifier",
    policy="configs/policy/cifar10.yaml",
    summary="Small RegNetY for 32 px pictures, ten CIFAR-10 classes unless `labels` says otherwise",
    score="softmax",
    score_meaning="probability of each class; they add up to 1",
    # The mean and spread of CIFAR-10's training pixels.
    image=ImageInput(32, "shortest_edge_crop", "bicubic", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    labels=CIFAR10,
    hparams={"widths": [64, 128, 256], "depths": [1, 2, 2], "group_width": 32},
    limits=("A small network for small pictures: to measure attacks and defences on, not to moderate with.",),
)


def _prompt_classifier(name: str, summary: str, *, deobfuscate: bool = False) -> None:
    register(
        name,
        builder="zoo.models.classifiers:PromptClassifier",
        policy="configs/policy/prompts.yaml",
        summary=summary,
        score="sigmoid",
        score_meaning="probability of each category as its corpus understands it; they do not exclude each other",
        text=TextInput(128, deobfuscate=deobfuscate),
        labels=PROMPT_LABELS,
        requires=("text",),
        hparams=MINILM | {"dropout": 0.1},
        limits=(
            "English, and the notions of its corpora: tweets of some years, messages to one chatbot.",
            "inappropriate_prompt and red_team_prompt were learned against captions: they tell styles of prompts "
            "more than contents, and the policy only shows them.",
        ),
    )


_prompt_classifier("prompt_minilm.multilabel", "MiniLM that judges prompts for eight categories at once")
_prompt_classifier(
    "prompt_minilm.multilabel_textaug",
    "MiniLM that judges prompts for eight categories, trained on misspelt and disguised texts too",
    deobfuscate=True,
)
