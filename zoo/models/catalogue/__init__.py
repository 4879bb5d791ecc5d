"""Every model that the zoo ships, as data: its card, its builder, where its weights come from. No torch here."""

from zoo.models.catalogue import conv_clip, heads, multimodal, panels, safeclip

__all__ = ["conv_clip", "heads", "multimodal", "panels", "safeclip"]
