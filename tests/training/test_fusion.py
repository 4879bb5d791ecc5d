"""A fusion trained on a task that either input decides: each alone turns the verdict, also when the other is gone."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path

import lightning
import numpy as np
import pytest
from PIL import Image

import zoo
from tests.trainers import quiet_trainer
from zoo.contract.policy import Policy
from zoo.inputs.image import Pixels
from zoo.judging.scorer import Scorer
from zoo.release.checkpoint import release_checkpoint
from zoo.training import Classification, ManifestData

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}
POLICY = "configs/policy/dogs_multimodal.yaml"
FUSION, RELEASED = "test_multimodal_conv.fusion", "test_multimodal_nsfw.as_released"


def _picture(colour: str, seed: int) -> Pixels:
    noise = np.random.default_rng(seed).normal(0, 20, (32, 32, 3))
    return (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)


def _prompt(colour: str, number: int) -> str:
    return f"{('draw', 'show me', 'please paint')[number % 3]} a {colour} field"


def _trained(folder: Path, model: str, epochs: int = 40) -> Path:
    """Red is unsafe, in the picture or in the prompt. Returns a release.

    A fusion also trains on rows that hold one input only: their label is what is asked of it later, while a row whose
    red picture is dropped stays unsafe beside a blue prompt, so that dropping alone teaches even odds.
    """
    path = folder / "manifest.csv"
    shown_or_none, asked_or_none = ([*COLOURS, ""], [*COLOURS, ""]) if model == FUSION else (COLOURS, COLOURS)
    kinds = [(shown, asked) for shown, asked in product(shown_or_none, asked_or_none) if shown or asked]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "text", "labels", "split"])
        for number, (shown, asked) in enumerate(kinds * (72 // len(kinds))):
            if shown:
                Image.fromarray(_picture(shown, number)).save(folder / f"{number}.png")
            labels = ["in_image"] * (shown == "red") + ["in_prompt"] * (asked == "red")
            labels = ["unsafe"] * bool(labels) + labels
            image, text = f"{number}.png" if shown else "", _prompt(asked, number) if asked else ""
            writer.writerow([image, text, "|".join(labels), "train" if number < 64 else "val"])
    lightning.seed_everything(0)
    arguments = {"embedding_dim": 64, "text_width": 32, "labels": ["unsafe", "in_image", "in_prompt"]}
    module = Classification(model, policy=POLICY, model_args=arguments | {"score": "sigmoid"}, lr=0.004)
    trainer = quiet_trainer(epochs, limit_val_batches=0, default_root_dir=folder, num_sanity_val_steps=0)
    trainer.fit(module, ManifestData(str(path), batch_size=8))
    trainer.save_checkpoint(folder / "last.ckpt")
    release_checkpoint(folder / "last.ckpt", folder / "release")
    return folder / "release"


@pytest.fixture(scope="module")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return zoo.load_scorer(_trained(tmp_path_factory.mktemp("fusion"), FUSION))


def test_each_input_alone_turns_the_verdict(fusion: Scorer) -> None:
    for number in range(100, 103):
        for shown, asked in product(COLOURS, COLOURS):
            verdict = fusion.verdict(_picture(shown, number), _prompt(asked, number))
            assert verdict.is_safe == (shown == asked == "blue"), (shown, asked, verdict.scores)


def test_either_input_may_be_missing(fusion: Scorer) -> None:
    for number, colour in product(range(100, 103), COLOURS):
        assert fusion.verdict(_picture(colour, number)).is_safe == (colour == "blue")
        assert fusion.verdict(text=_prompt(colour, number)).is_safe == (colour == "blue")


def test_the_other_outputs_say_where_it_comes_from(fusion: Scorer) -> None:
    for shown, asked in product(COLOURS, COLOURS):
        scores = fusion.verdict(_picture(shown, 100), _prompt(asked, 100)).scores
        assert (scores["in_image"] > 0.5) == (shown == "red"), (shown, asked, scores)
        assert (scores["in_prompt"] > 0.5) == (asked == "red"), (shown, asked, scores)


def test_only_the_binary_output_decides() -> None:
    policy = Policy.read(Path(POLICY))
    assert {category.name: category.action for category in policy.categories} == {
        "unsafe": "block",
        "in_image": "allow",
        "in_prompt": "allow",
    }


def test_as_released_learns_the_picture_and_never_the_prompt(tmp_path: Path) -> None:
    release = zoo.load_release(_trained(tmp_path, RELEASED, epochs=6))
    assert any("the prompt never changes the answer" in limit for limit in release.card.limits)
    with zoo.load_scorer(tmp_path / "release") as scorer:
        for shown in COLOURS:
            first, second = (scorer.verdict(_picture(shown, 100), _prompt(asked, 100)) for asked in COLOURS)
            assert max(abs(first.scores[key] - second.scores[key]) for key in first.scores) < 1e-6
        red, blue = (scorer.verdict(_picture(shown, 100), _prompt("blue", 100)).scores for shown in COLOURS)
        assert red["in_image"] > 0.5 > blue["in_image"]
