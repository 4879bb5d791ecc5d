"""The trained model that engines are compared with works out each batch once."""

from __future__ import annotations

import numpy as np

from export.verify.threshold import Reference
from zoo.models.served import ServedRun, text_banks
from zoo.release.store import load_release


def test_the_same_inputs_are_answered_from_memory_and_others_are_not() -> None:
    release = load_release("test_laion_nsfw.random")
    reference, passes = Reference(release.model, release.judge), []
    first = next(module for module in release.model.modules() if not list(module.children()))
    first.register_forward_hook(lambda *_: passes.append(1))
    assert release.card.image is not None
    side = release.card.image.size
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, 2 * side, 3), dtype=np.uint8)
    answers = reference.run({"image": pixels})
    once = len(passes)
    assert once > 0
    for one, other in zip(answers, reference.run({"image": pixels.copy()}), strict=True):
        assert np.array_equal(one, other)
    assert len(passes) == once
    fresh = ServedRun(release.model, text_banks(release.model, release.judge)).run
    turned = pixels.reshape(2, 2 * side, side, 3)  # the same bytes, another picture
    for others in (turned, pixels[:1], 255 - pixels):
        for one, other in zip(reference.run({"image": others}), fresh({"image": others}), strict=True):
            assert np.array_equal(one, other)
    assert not np.array_equal(reference.run({"image": turned})[0], answers[0])
