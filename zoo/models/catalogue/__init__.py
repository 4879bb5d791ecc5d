"""Every model that the zoo ships, as data: its card, its builder, where its weights come from. No torch here."""

from zoo.models.catalogue import classifiers, conv_clip, hardened, heads, multimodal, panels, safeclip

__all__ = ["classifiers", "conv_clip", "hardened", "heads", "multimodal", "panels", "safeclip"]
