"""Training a LLaVA: what it reads, what changes, what is written, and that the written model answers the same."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging
from PIL import Image
from transformers import AutoProcessor, CLIPConfig, LlavaForConditionalGeneration

from tests.trainers import quiet_trainer
from zoo.assets import find_asset
from zoo.contract.policy import Policy
from zoo.data.questions import write_questions
from zoo.data.signs import write_signs
from zoo.errors import BadInputError
from zoo.guard.guard import Guard
from zoo.guard.insertion import INSTRUCTION
from zoo.guard.lvlm import load_lvlm
from zoo.guard.refusals import REFUSAL
from zoo.inputs.image import decode, load
from zoo.models.clip import DualEncoder
from zoo.models.tiny_llava import build_tiny_llava, tiny_llava_processor, train_llava_tokenizer
from zoo.registry import create_model
from zoo.release.store import load_model, write_release
from zoo.training import QuestionData, VisionLanguage
from zoo.training.cli import run
from zoo.training.vision_language import TowerFeatures

SIZES = {"vocabulary_size": 400, "width": 32, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `questions.csv` about 16 + 4 + 4 pictures, and `release`, a random CLIP."""
    folder = tmp_path_factory.mktemp("home")
    write_signs(folder / "signs", train=16, val=4, test=4, size=32)
    write_questions(folder / "signs", folder / "questions.csv")
    torch.manual_seed(0)
    policy = Policy.read(find_asset("configs/policy/quickstart.yaml"))
    write_release(create_model("test_safeclip.random"), policy, folder / "release")
    return folder


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    """A LLaVA directory after two steps of training."""
    _fit(VisionLanguage(str(home / "lvlm"), clip=str(home / "release"), language=SIZES), _data(home))
    return home / "lvlm"


def _data(home: Path, **options: Any) -> QuestionData:
    return QuestionData(str(home / "questions.csv"), **{"batch_size": 8, "evaluated": 6} | options)


def _trainer(folder: Path, epochs: int = 1) -> lightning.Trainer:
    return quiet_trainer(epochs, check_val_every_n_epoch=epochs, default_root_dir=folder, num_sanity_val_steps=0)


def _fit(module: VisionLanguage, data: QuestionData, epochs: int = 1) -> lightning.Trainer:
    lightning.seed_everything(0, verbose=False)
    trainer = _trainer(module.out.parent, epochs)
    trainer.fit(module, data)
    return trainer


def _state(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


# The tiny LLaVA


def test_its_images_are_those_of_the_release_to_a_grey_level(home: Path) -> None:
    clip = load_model(home / "release")
    assert isinstance(clip, DualEncoder)
    assert clip.card.image is not None
    processor = tiny_llava_processor(clip, train_llava_tokenizer(["a text"], 300))
    rng = np.random.default_rng(0)
    for size in ((32, 32), (80, 80), (333, 200), (40, 125)):
        coarse = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).resize(size)
        ours = load(np.asarray(coarse), clip.card.image).astype(np.float32)
        theirs = processor.image_processor(images=[coarse], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        pixels = (theirs * np.array(clip.card.image.std) + np.array(clip.card.image.mean)) * 255
        assert np.abs(pixels - ours).max() < 1.01


def test_its_tower_is_the_releases_and_its_projector_reads_llavas_layer(home: Path) -> None:
    clip = load_model(home / "release")
    assert isinstance(clip, DualEncoder)
    processor = tiny_llava_processor(clip, train_llava_tokenizer(["a text"], 300))
    pixels = torch.rand(3, 3, 32, 32)
    weights: Any = clip.image_tower.vision_model.state_dict()  # type: ignore[union-attr]
    wanted: Any = clip.image_tower(pixels)  # hidden state -2 of two layers: the only layer that is built
    for model in (build_tiny_llava(clip, processor, **SIZES), _deep_llava(processor)):
        tower = model.model.vision_tower
        if len(tower.encoder.layers) == 2:
            tower.load_state_dict(weights, strict=False)
        hidden = tower(clip.image_tower.normalise(pixels), output_hidden_states=True).hidden_states  # type: ignore[operator]
        early, last = model.config.vision_feature_layer
        assert early == 1
        assert torch.allclose(hidden[last], wanted.sequence, atol=1e-5)
        assert model.model.multi_modal_projector.linear_1.in_features == 2 * 32
        assert not any(parameter.requires_grad for parameter in tower.parameters())


def _deep_llava(processor: Any) -> Any:
    """Around a release that carries its last layer, too."""
    clip = create_model("test_safeclip.random", layer=-1, post_layernorm=True)
    assert isinstance(clip, DualEncoder)
    return build_tiny_llava(clip, processor, **SIZES)


def test_what_cannot_become_a_llava_is_refused(home: Path) -> None:
    clip, other = load_model(home / "release"), create_model("test_clip_resnet.random")
    assert isinstance(clip, DualEncoder)
    assert isinstance(other, DualEncoder)
    tokenizer = train_llava_tokenizer(["a text"], 300)
    with pytest.raises(BadInputError, match="needs a CLIP vision transformer"):
        tiny_llava_processor(other, tokenizer)
    with pytest.raises(BadInputError, match="does not know a text of 8 characters"):
        tiny_llava_processor(clip, tokenizer, known=["a </s> b"])
    with pytest.raises(BadInputError, match="vocabulary_size is only 100"):
        build_tiny_llava(clip, tiny_llava_processor(clip, tokenizer), **{**SIZES, "vocabulary_size": 100})
    shallow = create_model("test_safeclip.random", layer=-3)
    assert isinstance(shallow, DualEncoder)
    with pytest.raises(BadInputError, match="carries 0 of 2 layers; a LLaVA reads number 1"):
        build_tiny_llava(shallow, tiny_llava_processor(shallow, tokenizer), **SIZES)


def test_averages_of_a_model_that_is_not_built_yet_are_refused(home: Path, tmp_path: Path) -> None:
    module = VisionLanguage(str(tmp_path / "lvlm"), clip=str(home / "release"), language=SIZES)
    with pytest.raises(BadInputError, match="WeightAveraging copies a model before this one is built"):
        quiet_trainer(callbacks=[EMAWeightAveraging()]).fit(module, _data(home))


def test_kept_features_are_those_that_the_model_computes(trained: Path, home: Path) -> None:
    lvlm = load_lvlm(trained)
    model, processor = lvlm.model, lvlm.processor
    paths = sorted((home / "signs" / "images").glob("*.jpg"))[:5]
    guard = Guard(model, processor, home / "release")
    features = TowerFeatures(model, processor, guard.detector)
    features.compute(paths, batch_size=2)
    pixels = processor.image_processor(images=[decode(path) for path in paths], return_tensors="pt")["pixel_values"]
    wanted = model.get_image_features(pixel_values=pixels).pooler_output
    kept = features.outputs(paths)["image"].pooler_output
    assert kept is not None
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(kept, wanted, strict=True))
    inputs = processor(images=[decode(p) for p in paths], text=["<image>"] * 5, return_tensors="pt")
    screened = [row[0] for row in guard.screen(**inputs).verdicts]
    for path, verdict in zip(paths, screened, strict=True):
        assert features.verdicts[path].decision == verdict.decision
        assert features.verdicts[path].scores == pytest.approx(verdict.scores, abs=1e-5)
    with pytest.raises(BadInputError, match="more than max_cache_gb"):
        TowerFeatures(model, processor, None, max_gigabytes=1e-9).compute(paths)


# Training


def test_only_projector_and_language_model_change(home: Path) -> None:
    module = VisionLanguage(str(home / "changed"), clip=str(home / "release"), language=SIZES)
    data = _data(home)
    trainer = _trainer(home)
    lightning.seed_everything(0, verbose=False)
    module.trainer = trainer
    trainer.datamodule = data  # type: ignore[attr-defined]
    module.setup("fit")
    before = _state(module.lvlm)
    _fit(module, data)
    after = module.lvlm.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == {key for key in before if "vision_tower" not in key}


def test_the_written_model_answers_the_same_from_pixels(home: Path, trained: Path) -> None:
    module = VisionLanguage(str(home / "again"), clip=str(home / "release"), language=SIZES, overwrite=True)
    data = _data(home)
    _fit(module, data)
    rows = [row for batch in data.val_dataloader() for row in batch]
    model = LlavaForConditionalGeneration.from_pretrained(home / "again")
    processor: Any = AutoProcessor.from_pretrained(home / "again")
    prompts = [module.prompts(row)[0] for row in rows]
    assert [INSTRUCTION in prompt for prompt in prompts] == [row.instructed for row in rows]
    inputs = processor(images=[decode(row.image) for row in rows], text=prompts, padding=True, return_tensors="pt")
    sequences = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    texts = processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in texts] == module.answers(rows)
    # The same seed and data give the same model.
    same = _state(load_lvlm(trained).model)
    assert all(torch.equal(value, same[key]) for key, value in _state(model).items())


def test_it_learns_to_answer_and_to_refuse(home: Path, tmp_path: Path) -> None:
    """By heart, on two pictures: with the instruction the unsafe one is refused, and nothing else."""
    with (home / "questions.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "train" and row["kind"] == "colour"]
    pair = [next(row for row in rows if row["label"] == label) for label in ("0", "1")]
    with (tmp_path / "questions.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, pair[0])
        writer.writeheader()
        for row in pair:
            absolute = {**row, "image": str((home / row["image"]).resolve())}
            writer.writerows({**absolute, "split": split} for split in ("train", "val"))
    data = QuestionData(str(tmp_path / "questions.csv"), batch_size=2)
    module = VisionLanguage(str(tmp_path / "lvlm"), clip=str(home / "release"), language=SIZES, lr=1e-2, warmup=0.1)
    trainer = _fit(module, data, epochs=150)
    figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert figures["val/exact_match"] == figures["val/exact_match/colour"] == figures["val/refused_unsafe"] == 1
    assert figures["val/refused_safe"] == figures["val/refused_plain"] == 0
    assert figures["train/loss"] < 0.2


def test_the_guard_corrects_flagged_training_samples(home: Path, tmp_path: Path) -> None:
    policy = Policy.read(find_asset("configs/policy/quickstart.yaml")).to_dict()
    policy["rule"] = "each"
    policy["categories"][0]["threshold"]["value"] = 0.0  # all are flagged
    (tmp_path / "all.yaml").write_text(Policy.from_dict(policy).to_yaml(), encoding="utf-8")
    policy["categories"][0]["threshold"]["value"] = 1.0  # none is
    (tmp_path / "none.yaml").write_text(Policy.from_dict(policy).to_yaml(), encoding="utf-8")
    seen = {}
    for name, share in (("all", 1.0), ("none", 0.0), ("none", 1.0)):
        policy_file = str(tmp_path / f"{name}.yaml")
        guard = {"detector": str(home / "release"), "policy": policy_file, "instructed": share}
        module = VisionLanguage(str(tmp_path / name), clip=str(home / "release"), language=SIZES, guard=guard)
        module.overwrite = True
        texts: list[str] = []
        _record(module, texts)
        _fit(module, _data(home, instructed=0.0))
        seen[name, share] = texts
    refused = REFUSAL.format(categories="forbidden signs")
    assert {len(texts) for texts in seen.values()} == {16}
    assert all(text.count(INSTRUCTION) == 1 and refused in text for text in seen["all", 1.0])
    assert not any(INSTRUCTION in text or refused in text for text in seen["none", 0.0])
    assert all(text.count(INSTRUCTION) == 1 and refused not in text for text in seen["none", 1.0])


def _record(module: VisionLanguage, texts: list[str]) -> None:
    """Keep the text of every training conversation that the model is given."""

    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        forward = module.lvlm.forward

        def kept(**inputs: Any) -> Any:
            texts.extend(module.processor.tokenizer.batch_decode(inputs["input_ids"]))
            return forward(**inputs)

        module.lvlm.forward = kept
        try:
            return step(batch, batch_idx)
        finally:
            module.lvlm.forward = forward

    module.training_step = training_step  # type: ignore[method-assign]


# Fine-tuning


def test_lora_trains_adapters_alone_and_merges_them(home: Path, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = _state(load_lvlm(trained).model)
    lora = {"r": 2, "alpha": 64, "target_modules": ["q_proj", "down_proj"]}
    module = VisionLanguage(str(tmp_path / "lora"), lvlm=str(trained), lora=lora, lr=0.05)
    data = _data(home)
    trainer = _trainer(tmp_path)
    names: list[str] = []

    class Look(lightning.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            names.extend(name for name, parameter in pl_module.lvlm.named_parameters() if parameter.requires_grad)
            self.before = pl_module.answers(rows)
            for key, value in pl_module.lvlm.state_dict().items():
                if "lora_" not in key:
                    assert torch.equal(value, base[key.replace(".base_layer", "")]), key

    look = Look()
    trainer.callbacks.append(look)  # type: ignore[attr-defined]
    data.trainer = trainer
    data.setup()
    rows = [row for batch in data.val_dataloader() for row in batch]
    trainer.fit(module, data)
    assert names
    assert all(re.fullmatch(r"model\.language_model\..*(q|down)_proj\.lora_[AB].*", name) for name in names)
    merged = load_lvlm(tmp_path / "lora").model
    changed = {key for key, value in merged.state_dict().items() if not torch.equal(value, base[key])}
    assert changed == {key for key in base if "language_model" in key and re.search("(q|down)_proj", key)}
    again = VisionLanguage(str(tmp_path / "unused"), lvlm=str(tmp_path / "lora"))
    tester = _trainer(tmp_path)
    tester.test(again, _data(home), verbose=False)
    assert again.answers(rows) == look.before


def test_a_saved_model_is_tested_and_fine_tuned_whole(home: Path, trained: Path, tmp_path: Path) -> None:
    module = VisionLanguage(str(tmp_path / "tuned"), lvlm=str(trained))
    trainer = _fit(module, _data(home))
    trainer.test(module, _data(home), verbose=False)
    figures = trainer.callback_metrics
    assert 0 <= float(figures["test/exact_match"]) <= 1
    assert float(figures["test/refused_unsafe"]) in (0, 1) or 0 < float(figures["test/refused_unsafe"]) < 1


# The command line, checkpoints


def _recipe(home: Path, folder: Path, epochs: int, **arguments: Any) -> list[str]:
    config = {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": epochs,
            "default_root_dir": str(folder / "logs"),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": str(folder), "save_last": True, "enable_version_counter": False},
                }
            ],
        },
        "model": {
            "class_path": "zoo.training.VisionLanguage",
            "init_args": {"out": str(folder / "lvlm"), "clip": str(home / "release"), "language": SIZES} | arguments,
        },
        "data": {
            "class_path": "zoo.training.QuestionData",
            "init_args": {"questions": str(home / "questions.csv"), "batch_size": 8, "evaluated": 4},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return ["--config", str(path)]


def test_a_run_is_resumed_with_its_own_tokenizer_only(home: Path, tmp_path: Path) -> None:
    run(["fit", *_recipe(home, tmp_path, 1)])
    checkpoint = tmp_path / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
    run(["fit", *_recipe(home, tmp_path, 2, overwrite=True), "--ckpt_path", str(checkpoint)])
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 4
    fewer = {**SIZES, "vocabulary_size": 360}
    with pytest.raises(SystemExit) as caught:
        run(["test", *_recipe(home, tmp_path, 2, language=fewer), "--ckpt_path", str(checkpoint)])
    assert "another tokenizer" in str(caught.value.code)


def test_a_taken_directory_is_refused_before_training(home: Path, tmp_path: Path) -> None:
    (tmp_path / "lvlm").mkdir()
    (tmp_path / "lvlm" / "thesis.txt").write_text("words")
    with pytest.raises(SystemExit) as caught:
        run(["fit", *_recipe(home, tmp_path, 1)])
    assert "is not empty; name another out, or set overwrite" in str(caught.value.code)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either clip"),
        ({"clip": "a", "lvlm": "b"}, "give either clip"),
        ({"lvlm": "a", "lora": {"rank": 4}}, 'lora: no key "rank"'),
        ({"lvlm": "a", "guard": {"detectr": "b"}}, 'guard: no key "detectr"; did you mean "detector"'),
        ({"lvlm": "a", "guard": {"policy": "b"}}, "guard: needs a detector"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        VisionLanguage("out", **arguments)


def test_wrong_models_are_refused(home: Path, trained: Path, tmp_path: Path) -> None:
    lora = {"target_modules": ["q_porj"]}
    with pytest.raises(BadInputError, match='the language model has no "q_porj"; did you mean "q_proj"'):
        _fit(VisionLanguage(str(tmp_path / "x"), lvlm=str(trained), lora=lora), _data(home))
    sizes = {"vocabulary_size": 400, "widht": 32}
    with pytest.raises(BadInputError, match="widht"):
        _fit(VisionLanguage(str(tmp_path / "x"), clip=str(home / "release"), language=sizes), _data(home))
    with pytest.raises(BadInputError, match="cannot be loaded as a vision-language model"):
        _fit(VisionLanguage(str(tmp_path / "x"), lvlm=str(tmp_path)), _data(home))
    CLIPConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(BadInputError, match="it is a clip, and a llava is needed"):
        _fit(VisionLanguage(str(tmp_path / "x"), lvlm=str(tmp_path / "clip")), _data(home))
