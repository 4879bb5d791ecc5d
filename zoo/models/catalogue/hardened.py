"""Hardened tags: the architectures of other modules, trained against attacks by a recipe, as data. No torch here."""

from __future__ import annotations

import dataclasses

import zoo.models.catalogue.classifiers
import zoo.models.catalogue.clip
import zoo.models.catalogue.multimodal  # noqa: F401  these three register the architectures
from zoo.registry import model_entry, register_model

_UNCERTAIN = "Hardened against the attacks that its card has figures for; against others nothing is known."
_ONE_POLICY = "Trained towards the phrases of one policy: other policies lose more than with FARE."

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


def _hardened(name: str, base: str, *limits: str, deobfuscate: bool = False) -> None:
    """Register `name`, the architecture of `base` with a tag that says method and perturbation."""
    entry = model_entry(base)
    method, _, bound = name.partition(".")[2].partition("_linf")
    against = f", Linf {bound}/255 on pixels in [0, 1]" if bound else ""
    register_model(
        entry.card.replace(
            name=name,
            summary=f"{entry.card.summary.split(' (')[0]}; {_METHODS[method]}{against}",
            text=entry.card.text and dataclasses.replace(entry.card.text, deobfuscate=deobfuscate),
            limits=(*entry.card.limits, *limits, _UNCERTAIN),
        ),
        builder=entry.builder,
        policy=entry.policy,
    )


_hardened("multimodal_nsfw_mobilenet.pgd_linf4", "multimodal_nsfw_mobilenet.fusion")
_hardened("multimodal_nsfw_mobilenet.trades_linf4", "multimodal_nsfw_mobilenet.fusion")
_hardened("multimodal_nsfw_mobilenet.offline_linf4", "multimodal_nsfw_mobilenet.fusion")
_hardened("multimodal_nsfw_mobilenet.textaug", "multimodal_nsfw_mobilenet.fusion", deobfuscate=True)
_hardened("multimodal_nsfw_mobilenet.pgd_joint_linf4", "multimodal_nsfw_mobilenet.fusion", deobfuscate=True)
_hardened("vision_regnet_tiny.pgd_linf8", "vision_regnet_tiny.plain")
_hardened("vision_regnet_tiny.trades_linf8", "vision_regnet_tiny.plain")
_hardened("vision_regnet_tiny.fast_linf8", "vision_regnet_tiny.plain")
_hardened("safeclip_tiny.fare_linf4", "safeclip_tiny.zeroshot")
_hardened("safeclip_tiny.tecoa_linf4", "safeclip_tiny.zeroshot", _ONE_POLICY)
_hardened("safeclip_vit_b32.fare_linf4", "safeclip_vit_b32.zeroshot")
_hardened("safeclip_vit_b32.tecoa_linf4", "safeclip_vit_b32.zeroshot", _ONE_POLICY)
_hardened("safeclip_vit_l14.fare_linf4", "safeclip_vit_l14.zeroshot")
_hardened("safeclip_vit_l14.tecoa_linf4", "safeclip_vit_l14.zeroshot", _ONE_POLICY)
