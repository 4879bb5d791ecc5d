"""`zoo import`: published heads and CLIPs become releases that judge; what is unknown, altered or unfit is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN

from zoo.cli import run
from zoo.errors import BadInputError, TamperedFileError, ZooError
from zoo.files.held import sha256
from zoo.inputs.text import train_tokenizer
from zoo.models.clip import DualEncoder
from zoo.models.heads import HEADS
from zoo.models.upstream import KINDS, UPSTREAM
from zoo.registry import create_model, list_models, model_card
from zoo.release.imports import CONVERT, import_release
from zoo.release.store import load_release, load_scorer, write_release

#: A tower as wide as the heads want it at its end, and small before it: what a test can make on the spot.
SMALL: dict[str, Any] = {"vision_layers": 1, "vision_width": 64, "vision_heads": 2}
SET = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
#: And a safeclip of three layers.
SAFECLIP = {**SMALL, "vision_layers": 3, "text_width": 32, "text_layers": 1, "text_heads": 2, "vocabulary_size": 300}
SAFECLIP |= {"start_token": 0, "end_token": 1, "embedding_dim": 16, "image_size": 64}
NAME = "safeclip_vit_b32.zeroshot"

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a CLIP as others publish it: transformers' files and a tokenizer.json."""

    def make(seed: int, embedding: int, layers: int = 1, side: int = 224, patch: int = 14, **vision: Any) -> Path:
        torch.manual_seed(seed)
        tower = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "projection_dim": embedding}
        text = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 300}
        tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        sizes = {"num_hidden_layers": layers, "image_size": side, "patch_size": patch}
        config = CLIPConfig(
            vision_config=tower | sizes | vision, text_config=tower | text | tokens, projection_dim=embedding
        )
        clip = CLIPModel(config)
        for parameter in clip.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)  # fresh LayerNorms would hide a mistake about them
        folder = tmp_path_factory.mktemp("clip")
        clip.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(train_tokenizer(["a dog"] * seed, 0), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def towers(make_clip: Make) -> dict[str, Path]:
    """A CLIP for the heads of each size."""
    return {
        "vit_l14": make_clip(1, 768),
        "vit_b16": make_clip(2, 512, patch=16),
        "vit_b32": make_clip(3, 512, patch=32),
    }


@pytest.fixture(scope="session")
def clip(make_clip: Make) -> Path:
    return make_clip(4, 16, layers=3, side=64, patch=32)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def _size(kind: str) -> str:
    return "_".join(kind.split("_")[-2:])


def _tensors(kind: str) -> dict[str, Tensor]:
    """A head of that kind with random weights, as its published file names them."""
    torch.manual_seed(7)
    card = model_card(UPSTREAM[kind].model)
    state = HEADS[card.hparams["head"]](card).state_dict()
    if kind.startswith("q16"):
        widths = {"vit_b16": 512, "vit_b32": 512, "vit_l14": 768}
        return {size: torch.randn(2, width) for size, width in widths.items()}
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _file(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "head.safetensors")
    return folder / "head.safetensors"


@pytest.mark.parametrize("kind", UPSTREAM)
def test_a_head_becomes_a_release_that_judges(
    kind: str, towers: dict[str, Path], tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = _tensors(kind)
    file, tower = _file(tmp_path, tensors), towers[_size(kind)]
    args = ["import", kind, str(file), "--tower", str(tower), "--sha256", sha256(file), "--out", str(tmp_path / "r")]
    assert run([*args, *SET]) == 0
    shown = capsys.readouterr().out
    assert UPSTREAM[kind].model in shown
    assert UPSTREAM[kind].licence in shown

    release = load_release(tmp_path / "r")
    card = release.card
    assert card.name == UPSTREAM[kind].model
    assert UPSTREAM[kind].file in card.source
    assert f"sha256 {sha256(file)}, not the file that was tested" in card.source
    assert tower.name in card.source
    assert release.model.tokenizer_json is None

    transformers = CLIPModel.from_pretrained(tower).eval()
    spec = card.image
    assert spec is not None
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    pixels = torch.rand(2, 3, 224, 224)
    reference = HEADS[card.hparams["head"]](card).eval()
    named = {"prompts": tensors[_size(kind)]} if kind.startswith("q16") else tensors
    reference.load_state_dict(named, strict=False)
    with torch.inference_mode():
        embedding = transformers.get_image_features(pixel_values=(pixels - mean) / std).pooler_output
        assert (release.model(pixels) - reference(embedding)).abs().max() < 1e-4
    verdict = load_scorer(tmp_path / "r").verdict(photo)
    assert verdict.status == "ok"
    assert verdict.model == card.name


@pytest.mark.shared_data
@pytest.mark.parametrize("kind", UPSTREAM)
def test_the_published_file_is_known(kind: str, shared: Path, towers: dict[str, Path], tmp_path: Path) -> None:
    """Without --sha256: the files are the ones that the table names."""
    file = shared / "heads" / ("q16_prompts.safetensors" if kind.startswith("q16") else f"{kind}.safetensors")
    card = import_release(kind, file, tmp_path / "r", tower=str(towers[_size(kind)]), hparams=SMALL)
    assert f"sha256 {UPSTREAM[kind].sha256}; CLIP tower" in card.source
    assert "vouched" not in card.source
    assert load_release(tmp_path / "r").card == card


def test_the_full_file_of_the_safety_checker_is_read_without_its_tower(towers: dict[str, Path], tmp_path: Path) -> None:
    extra = {f"{name}.weight": torch.ones(8) for name in ("vision_model.vision_model.norm", "visual_projection")}
    file = _file(tmp_path, _tensors("safety_checker_vit_l14") | extra)
    options: dict[str, Any] = {"tower": str(towers["vit_l14"]), "hparams": SMALL, "sha256": sha256(file)}
    import_release("safety_checker_vit_l14", file, tmp_path / "r", **options)
    with pytest.raises(BadInputError, match=r"unknown: concept_embeds.*, visual_projection\.weight"):
        import_release("laion_nsfw_vit_l14", file, tmp_path / "other", **options)


def test_a_release_of_ours_serves_as_tower(towers: dict[str, Path], tmp_path: Path) -> None:
    """From one head's release to another's; the tower is the same, and only a release with all its layers will do."""
    file = _file(tmp_path, _tensors("q16_vit_l14"))
    options: dict[str, Any] = {"hparams": SMALL, "sha256": sha256(file)}
    first = tmp_path / "first"
    import_release("q16_vit_l14", file, first, tower=str(towers["vit_l14"]), **options)
    import_release("q16_vit_l14", file, tmp_path / "second", tower=str(first), **options)
    states = [load_release(folder).model.state_dict() for folder in (first, tmp_path / "second")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert "release first (q16_vit_l14.prompts" in load_release(tmp_path / "second").card.source
    nsfwjs = load_release("test_nsfwjs.random")
    write_release(nsfwjs.model, nsfwjs.policy, tmp_path / "no_clip")
    with pytest.raises(BadInputError, match="has no CLIP image tower to copy"):
        import_release("q16_vit_l14", file, tmp_path / "r", tower=str(tmp_path / "no_clip"), **options)


# What a file of a head may not be


@pytest.mark.parametrize("legacy", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_pickle_is_refused_with_the_line_that_converts_it(
    legacy: bool, towers: dict[str, Path], tmp_path: Path
) -> None:
    kind, tower = "laion_nsfw_vit_b32", str(towers["vit_b32"])
    pickle = tmp_path / "head.pth"
    torch.save(_tensors(kind), pickle, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BadInputError, match=r"is a pickle, which can run code .* weights_only=True") as refusal:
        import_release(kind, pickle, tmp_path / "r", tower=tower, hparams=SMALL)
    line = CONVERT.format(pickle, tmp_path / "head.safetensors")
    assert f'python -c "{line}"' in str(refusal.value)
    subprocess.run([sys.executable, "-c", line], check=True)
    file = tmp_path / "head.safetensors"
    import_release(kind, file, tmp_path / "r", tower=tower, hparams=SMALL, sha256=sha256(file))


def test_another_file_is_refused_with_both_hashes(towers: dict[str, Path], tmp_path: Path) -> None:
    kind, tower = "laion_nsfw_vit_b32", str(towers["vit_b32"])
    file = _file(tmp_path, _tensors(kind))
    found, other = sha256(file), "0" * 64
    with pytest.raises(TamperedFileError, match=rf"{found}, .*{UPSTREAM[kind].sha256}.* `sha256`: {found}"):
        import_release(kind, file, tmp_path / "r", tower=tower, hparams=SMALL)
    with pytest.raises(TamperedFileError, match=rf"{found}, the one given is {other}"):
        import_release(kind, file, tmp_path / "r", tower=tower, hparams=SMALL, sha256=other)
    with pytest.raises(BadInputError, match='64 hexadecimal digits, got "abc"'):
        import_release(kind, file, tmp_path / "r", tower=tower, hparams=SMALL, sha256="abc")
    import_release(kind, file, tmp_path / "r", tower=tower, hparams=SMALL, sha256=found.upper())


def _without(tensors: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name != key}


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("laion_nsfw_vit_b32", lambda t: _without(t, "norm.mean"), r"missing: norm\.mean$"),
        (
            "laion_nsfw_vit_b32",
            lambda t: t | {"linear_4.bias": torch.ones(1)},
            r'unknown: linear_4\.bias; did you mean "linear_',
        ),
        (
            "laion_nsfw_vit_b32",
            lambda t: t | {"linear_1.bias": torch.ones(33)},
            r"unfit: linear_1\.bias is \[33\], expected \[32\]",
        ),
        ("laion_nsfw_vit_b32", lambda t: t | {"linear_1.bias": torch.full((32,), torch.nan)}, "not finite"),
        ("laion_nsfw_vit_b32", lambda t: t | {"linear_1.bias": torch.ones(32, dtype=torch.int32)}, "floating-point"),
        ("multihead_vit_l14", lambda t: _without(t, "hateful.3.running_var"), r"missing: hateful\.3\.running_var$"),
        ("q16_vit_b32", lambda t: _without(t, "vit_b32"), "missing: prompts"),
        ("q16_vit_b32", lambda t: t | {"vit_h14": torch.ones(2, 1024)}, "unknown: vit_h14"),
        ("q16_vit_b32", lambda t: t | {"vit_b32": torch.ones(3, 512)}, r"prompts is \[3, 512\], expected \[2, 512\]"),
        ("safety_checker_vit_l14", lambda t: _without(t, "concept_embeds"), "missing: concept_embeds$"),
    ],
)
def test_tensors_that_are_not_the_heads_are_named(
    kind: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], named: str, tmp_path: Path
) -> None:
    file = _file(tmp_path, change(_tensors(kind)))
    with pytest.raises(BadInputError, match=named):
        import_release(kind, file, tmp_path / "r", tower="/no/clip/needed", hparams=SMALL, sha256=sha256(file))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"\x08\0\0\0\0\0\0\0{broken}", None])
def test_a_file_that_is_no_safetensors_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "head.safetensors"
    if content is not None:
        file.write_bytes(content)
    known = sha256(file) if content is not None else None
    with pytest.raises(BadInputError, match=r"head\.safetensors: (no such file|is not a safetensors|not readable as)"):
        import_release("q16_vit_b32", file, tmp_path / "r", sha256=known)


# Towers that do not fit


@pytest.mark.parametrize(
    ("sizes", "vision", "named"),
    [
        ({}, {"hidden_act": "gelu"}, r"hidden_act gelu \(expected quick_gelu\)"),
        ({}, {"num_attention_heads": 4}, r"num_attention_heads 4 \(expected 2\)"),
        ({"layers": 2}, {}, r"num_hidden_layers 2 \(expected 1\)"),
        ({"patch": 28}, {}, r"patch_embedding\.weight \[64, 3, 28, 28\] \(expected \[64, 3, 32, 32\]\)"),
        ({"side": 256}, {}, r"position_embedding\.weight \[65, 64\] \(expected \[50, 64\]\)"),
    ],
)
def test_a_tower_that_would_compute_something_else_is_refused(
    sizes: dict[str, int], vision: dict[str, Any], named: str, make_clip: Make, tmp_path: Path
) -> None:
    """Layers, heads and activation show in no shape: loaded all the same, they would silently give other answers."""
    tower = make_clip(5, 512, **{"patch": 32, **sizes}, **vision)
    file = _file(tmp_path, _tensors("q16_vit_b32"))
    with pytest.raises(BadInputError, match=named):
        import_release("q16_vit_b32", file, tmp_path / "r", tower=str(tower), hparams=SMALL, sha256=sha256(file))


@pytest.mark.parametrize("tower", [None, "hf-hub:openai/clip-vit-base-patch32", "./no/such", "clip"])
def test_a_tower_that_is_not_there_is_refused(tower: str | None, tmp_path: Path) -> None:
    file = _file(tmp_path, _tensors("q16_vit_b32"))
    with pytest.raises(BadInputError, match=r"clip-vit-base-patch32: cannot be fetched|no such directory"):
        import_release("q16_vit_b32", file, tmp_path / "r", tower=tower, sha256=sha256(file))


# CLIP


def _import_clip(source: Path, out: Path, **options: Any) -> DualEncoder:
    hparams = SAFECLIP | options.pop("hparams", {})
    import_release("clip", source, out, name=NAME, hparams=hparams, **options)
    model = load_release(out).model
    assert isinstance(model, DualEncoder)
    return model


TRANSFORMERS: dict[str, Any] = {
    "do_resize": True, "size": {"shortest_edge": 64}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5],
}  # fmt: skip


def _with(source: Path, folder: Path, name: str, content: dict[str, Any]) -> Path:
    copy = Path(shutil.copytree(source, folder / "published"))
    (copy / name).write_text(json.dumps(content), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "preprocessor_config.json",
            TRANSFORMERS,
            ("shortest_edge_crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.25, 0.5)),
        ),
        (
            "preprocessor_config.json",
            {**TRANSFORMERS, "size": 64, "crop_size": 64, "resample": 2, "do_normalize": False},
            ("shortest_edge_crop", "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ),
        (
            "preprocessor_config.json",
            {**TRANSFORMERS, "size": {"height": 64, "width": 64}, "do_center_crop": False},
            ("squash", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.25, 0.5)),
        ),
        (
            "preprocessor_config.json",
            {**TRANSFORMERS, "size": [64, 64], "crop_size": None, "do_center_crop": False, "image_mean": None},
            ("squash", "bicubic", tuple(OPENAI_CLIP_MEAN), (0.5, 0.25, 0.5)),
        ),
        (
            "preprocessor_config.json",
            {"image_processor_type": "ViTImageProcessor", "size": 64, "resample": 2, "image_mean": [0.5] * 3}
            | {"image_std": [0.5] * 3},
            ("squash", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ),
        (
            "processor_config.json",
            {"processor_class": "CLIPProcessor", "image_processor": TRANSFORMERS},
            ("shortest_edge_crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.25, 0.5)),
        ),
        (
            "open_clip_config.json",
            {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}},
            ("squash", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ),
    ],
)
def test_the_preprocessing_of_a_clip_is_that_of_its_files(
    name: str, content: dict[str, Any], expected: tuple[Any, ...], clip: Path, tmp_path: Path
) -> None:
    model = _import_clip(_with(clip, tmp_path, name, content), tmp_path / "release")
    image = model.card.image
    assert image is not None
    assert (image.resize, image.interpolation, image.mean, image.std) == expected
    normal = model.image_tower.get_submodule("normalise")(torch.full((1, 3, 64, 64), 0.5))
    wanted = [(0.5 - mean) / std for mean, std in zip(*expected[2:], strict=True)]
    torch.testing.assert_close(normal[0, :, 0, 0], torch.tensor(wanted))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"crop_size": 56}, "crop_size is .*56"),
        ({"size": {"shortest_edge": 72}}, "size is .*72"),
        ({"do_center_crop": False}, "do_center_crop is False"),
        ({"do_resize": False}, "do_resize is False"),
        ({"rescale_factor": 1.0}, "rescale_factor is 255"),
        ({"resample": 0}, 'field "interpolation"'),
        ({"image_std": [0.5, 0.0, 0.5]}, 'field "std'),
        (
            {"image_processor_type": "ViTImageProcessor", "image_mean": None},
            "names no image_mean, as a ViT",
        ),
        ({"rescale_factor": "1/255"}, "preprocessor_config.json: "),
    ],
)
def test_a_preprocessing_that_no_card_can_say_is_refused(
    changes: dict[str, Any], named: str, clip: Path, tmp_path: Path
) -> None:
    folder = _with(clip, tmp_path, "preprocessor_config.json", TRANSFORMERS | changes)
    with pytest.raises(BadInputError, match=named):
        _import_clip(folder, tmp_path / "release")


@torch.inference_mode()
def test_a_clip_with_plain_gelu_answers_as_it_was_published(clip: Path, tmp_path: Path) -> None:
    config = json.loads((clip / "config.json").read_text(encoding="utf-8"))
    for tower in ("vision_config", "text_config"):
        config[tower]["hidden_act"] = "gelu"
    folder = _with(clip, tmp_path, "config.json", config)
    transformers = CLIPModel.from_pretrained(folder).eval()
    model = _import_clip(folder, tmp_path / "release", hparams={"layer": -1, "post_layernorm": True})
    assert model.card.hparams["hidden_act"] == "gelu"
    pixels = torch.rand(2, 3, 64, 64)
    normal = model.image_tower.get_submodule("normalise")(pixels)
    expected = transformers.get_image_features(pixel_values=normal).pooler_output
    assert (model.image_tower(pixels).embedding - expected).abs().max() < 1e-5
    quick = _import_clip(clip, tmp_path / "quick", hparams={"layer": -1, "post_layernorm": True})
    assert (quick.image_tower(pixels).embedding - expected).abs().max() > 1e-4
    ids = torch.tensor([[0, 5, 6, 1]])
    words = transformers.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output
    assert (model.text_tower(ids, torch.ones_like(ids)).embedding - words).abs().max() < 1e-5


@torch.inference_mode()
def test_a_clip_is_read_at_any_layer_and_again_from_its_release(clip: Path, tmp_path: Path) -> None:
    transformers = CLIPModel.from_pretrained(clip).eval()
    pixels = torch.rand(2, 3, 64, 64)
    model = _import_clip(clip, tmp_path / "minus_2")
    normal = model.image_tower.get_submodule("normalise")(pixels)
    states = transformers.vision_model(normal, output_hidden_states=True).hidden_states
    expected = {layer: transformers.visual_projection(states[layer][:, 0]) for layer in (-1, -2, -3)}
    assert (model.image_tower(pixels).embedding - expected[-2]).abs().max() < 1e-5
    again = _import_clip(tmp_path / "minus_2", tmp_path / "minus_3", hparams={"layer": -3})
    assert (again.image_tower(pixels).embedding - expected[-3]).abs().max() < 1e-5
    assert (expected[-2] - expected[-3]).abs().max() > 1e-2
    with pytest.raises(BadInputError, match=r"keeps 2 of the 3 layers .* 3 are needed here: .* layer of -2 or below"):
        _import_clip(tmp_path / "minus_2", tmp_path / "minus_1", hparams={"layer": -1})
    with pytest.raises(BadInputError, match="minus_2: is what this reads"):  # it would keep one layer less
        _import_clip(tmp_path / "minus_2", tmp_path / "minus_2", hparams={"layer": -3}, overwrite=True)
    plain = _import_clip(clip, tmp_path / "minus_1", hparams={"layer": -1, "post_layernorm": True})
    features = transformers.get_image_features(pixel_values=normal).pooler_output
    assert (plain.image_tower(pixels).embedding - features).abs().max() < 1e-5
    assert again.tokenizer_json == model.tokenizer_json
    assert float(again.logit_scale) == float(transformers.logit_scale)
    card = load_release(tmp_path / "minus_3").card
    assert card.hparams["layer"] == -3
    assert f"release minus_2 ({NAME}, sha256 {sha256(tmp_path / 'minus_2' / 'model.safetensors')})" in card.source


@torch.inference_mode()
def test_the_projection_and_the_text_side_come_from_another_clip(clip: Path, make_clip: Make, tmp_path: Path) -> None:
    other = make_clip(9, 16, layers=2, side=32, patch=16)  # another depth, side and patch: none of them is used
    first, second = (CLIPModel.from_pretrained(folder).eval() for folder in (clip, other))
    second.logit_scale.fill_(3.25)
    second.save_pretrained(other)
    model = _import_clip(clip, tmp_path / "mixed", projection_from=str(other))
    pixels = torch.rand(2, 3, 64, 64)
    normal = model.image_tower.get_submodule("normalise")(pixels)
    cls = first.vision_model(normal, output_hidden_states=True).hidden_states[-2][:, 0]
    assert (model.image_tower(pixels).embedding - second.visual_projection(cls)).abs().max() < 1e-5
    tokens = model.codec().encode(["a red car"])
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    texts = second.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    assert (model.text_tower(ids, mask).embedding - texts).abs().max() < 1e-5
    assert float(model.logit_scale) == 3.25
    assert model.tokenizer_json == (other / "tokenizer.json").read_text(encoding="utf-8")
    source = load_release(tmp_path / "mixed").card.source
    assert f"image tower: directory {clip.name}; projection, text tower, temperature: directory {other.name}" == source


def test_a_norm_that_was_never_trained_is_not_used(clip: Path, tmp_path: Path) -> None:
    import_release("clip", clip, tmp_path / "r", name=NAME, hparams=SAFECLIP | {"layer": -1})
    release = load_release(tmp_path / "r")
    trained = release.card.training.__class__(recipe="mine")
    release.model.card = release.card.replace(training=trained)
    write_release(release.model, release.policy, tmp_path / "trained")
    hparams = {"layer": -1, "post_layernorm": True}
    _import_clip(tmp_path / "r", tmp_path / "copied", hparams=hparams)
    with pytest.raises(BadInputError, match="trained without the final LayerNorm"):
        _import_clip(tmp_path / "trained", tmp_path / "other", hparams=hparams)


def test_a_head_has_no_text_side_to_give(clip: Path, tmp_path: Path) -> None:
    heads = create_model("test_q16.random", image_size=64, patch_size=32, vision_layers=3, vision_width=64)
    write_release(heads, load_release("test_q16.random").policy, tmp_path / "head")
    with pytest.raises(BadInputError, match="has no text tower, tokenizer and temperature"):
        _import_clip(clip, tmp_path / "r", projection_from=str(tmp_path / "head"))


# Options


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("q16_vit_b23", {}, '"q16_vit_b23" is not a kind of published weights; did you mean "q16_vit_b32"'),
        ("nsfwjs", {"tower": "a/b"}, "nsfwjs takes no tower, got a/b; it takes none"),
        ("nsfwjs", {"sha256": "0" * 64}, "nsfwjs takes no sha256"),
        ("nsfwjs", {"hparams": {"a": 1}}, "nsfwjs takes no hparams"),
        ("clip", {"sha256": "0" * 64}, "clip takes no sha256"),
        ("clip", {"name": "safeclip_vit_b23.zeroshot"}, r'got "safeclip_vit_b23.zeroshot"; did you mean .*vit_b32'),
        ("clip", {}, 'name must be that of a safeclip model, got "None"'),
        ("clip", {"name": "q16_vit_b32.prompts"}, "must be that of a safeclip model"),
        ("clip", {"name": NAME, "hparams": {"layr": -1}}, 'no hyperparameter "layr"; did you mean "layer"'),
        ("clip", {"name": NAME, "hparams": {"layer": "-1"}}, "layer must be of type int, as -2 is, got '-1'"),
        ("clip", {"name": NAME, "hparams": {"post_layernorm": 1}}, "post_layernorm must be of type bool"),
        ("q16_vit_b32", {"projection_from": "a/b"}, "q16_vit_b32 takes no projection_from"),
        ("q16_vit_b32", {"name": NAME}, "q16_vit_b32 takes no name"),
    ],
)
def test_an_option_that_does_not_apply_is_refused(
    kind: str, options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ZooError, match=named):
        import_release(kind, tmp_path / "nothing", tmp_path / "r", **options)


def test_sizes_that_do_not_go_together_are_refused(clip: Path, tmp_path: Path) -> None:
    file = _file(tmp_path, _tensors("q16_vit_b32"))
    cases: tuple[tuple[str, Path, dict[str, Any]], ...] = (
        ("q16_vit_b32", file, {"hparams": {"vision_heads": 7}, "sha256": sha256(file)}),
        ("clip", clip, {"hparams": SAFECLIP | {"vision_heads": 7}, "name": NAME}),
        ("clip", clip, {"hparams": SAFECLIP | {"layer": -9}, "name": NAME}),
    )
    for kind, source, options in cases:
        with pytest.raises(BadInputError, match=r"cannot be built with these sizes|layer must lie in"):
            import_release(kind, source, tmp_path / "r", **options)


@pytest.mark.parametrize("pair", ["layer", "=1", "layer=[1"])
def test_a_setting_that_cannot_be_read_is_refused(pair: str, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import", "clip", str(clip), "--name", NAME, "--out", "/no/where", "--set", pair]) == 1
    assert "--set" in capsys.readouterr().err


def test_the_help_names_sources_licences_and_what_may_not_be_shared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["import", "--help"])
    shown = capsys.readouterr().out
    for kind, upstream in UPSTREAM.items():
        assert kind in shown
        assert upstream.url in shown
        assert upstream.licence in shown
    assert "no licence file" in shown
    assert "no licence file" in json.dumps(model_card("multihead_vit_l14.unsafe_diffusion").to_dict())


def test_every_published_head_has_an_upstream() -> None:
    heads = {name for name in list_models() if "head" in model_card(name).hparams and not name.startswith("test_")}
    assert {entry.model for entry in UPSTREAM.values()} == heads
    assert set(KINDS) == {"nsfwjs", "clip"} | {name.split(".")[0] for name in heads}
