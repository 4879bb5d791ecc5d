"""Hardened tags: the architectures of other modules, trained against attacks by a recipe, as data. No torch here."""

from __future__ import annotations

import dataclasses

import zoo.models.catalogue.classifiers
import zoo.models.catalogue.multimodal
import zoo.models.catalogue.panels  # noqa: F401  first: a panel takes every tag of a tower that is known by then
from zoo.registry import RANDOM, model_entry, register_model

_UNCERTAIN = "Hardened against the attacks that its card has figures for; against others nothing is known."

#: What a hardened tag did, for its summary, by the beginning of the tag.
_METHODS = {
    "pgd": "PGD adversarial training (arXiv 1706.06083)",
    "trades": "TRADES (arXiv 1901.08573)",
    "fast": "single-step adversarial training (arXiv 2001.03994)",
    "textaug": "character edits of the prompts in training, after deobfuscation",
    "pgd_joint": "PGD on the image, exchanged and misspelt words in the prompt, trained together, after deobfuscation",
    "offline": "adversarial examples made beforehand and mixed in (arXiv 2504.11707)",
    "fare": "unsupervised adversarial fine-tuning of the image tower, FARE (arXiv 2402.12336)",
    "tecoa": "adversarial fine-tuning of the image tower against phrases, TeCoA (arXiv 2212.07016)",
}


def _hardened(base: str, tag: str, limits: tuple[str, ...] = (), *, deobfuscate: bool = False) -> None:
    """Register a tag of the architecture of `base`, which says what was done and against which perturbation."""
    entry = model_entry(base)
    method, _, threat = tag.rpartition("_") if "_lin" in tag else (tag, "", "")
    against = f", Linf {threat.removeprefix('linf')}/255 on pixels in [0, 1]" if threat else ""
    name = f"{entry.card.architecture}.{tag}"
    register_model(
        entry.card.replace(
            name=name,
            summary=f"{entry.card.summary.split(' (')[0]}; {_METHODS[method]}{against}",
            text=entry.card.text and dataclasses.replace(entry.card.text, deobfuscate=deobfuscate),
            limits=(*entry.card.limits, *limits, _UNCERTAIN),
        ),
        builder=entry.builder,
        policy=entry.policy,
        pretrained=RANDOM if name.startswith("test_") else None,
    )


for _tag in ("pgd_linf4", "trades_linf4", "offline_linf4"):
    _hardened("multimodal_nsfw_mobilenet.fusion", _tag)
for _tag in ("textaug", "pgd_joint_linf4"):
    _hardened("multimodal_nsfw_mobilenet.fusion", _tag, deobfuscate=True)
for _tag in ("pgd_linf8", "trades_linf8", "fast_linf8"):
    _hardened("vision_regnet_tiny.plain", _tag)
for _size in ("tiny", "vit_b32", "vit_l14"):
    _hardened(f"safeclip_{_size}.zeroshot", "fare_linf4")
    _hardened(
        f"safeclip_{_size}.zeroshot",
        "tecoa_linf4",
        ("Trained towards the phrases of one policy: other policies lose more than with FARE.",),
    )
