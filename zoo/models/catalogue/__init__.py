"""Every model that the zoo ships, as data: its card, its builder, where its weights come from. No torch here.

Names are written out, so that a text search for a name of `zoo list` finds the place that registers it.
"""

from zoo.models.catalogue import archived, classifiers, clip, hardened, heads, multimodal

__all__ = ["archived", "classifiers", "clip", "hardened", "heads", "multimodal"]
