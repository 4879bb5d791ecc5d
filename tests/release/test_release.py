"""Releases: what is written comes back, what was changed is refused; SafeCLIP is what transformers' CLIP computes."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from export.onnx.export import export_onnx, write_onnx
from zoo import registry
from zoo.contract.card import ModelCard
from zoo.contract.policy import AnyPolicy, Category, Policy, Threshold
from zoo.errors import (
    BadArgumentError,
    BadCardError,
    BadDataError,
    BadInputError,
    BadPolicyError,
    NoWeightsError,
    TamperedFileError,
    UnknownModelError,
    ZooError,
)
from zoo.evaluation.guard.run import RefusalJudge
from zoo.files.held import HeldFiles, sha256
from zoo.guard.lvlm import load_lvlm
from zoo.inputs.text import train_tokenizer
from zoo.judging.judge import bind
from zoo.models.base import ZooModel, check_finite
from zoo.models.clip import DualEncoder
from zoo.models.clip_weights import published_clip
from zoo.models.conv_clip import load_pretrained_text
from zoo.models.served import text_banks
from zoo.registry import create_model, list_models, model_card, register_model
from zoo.release.checkpoint import CHECKPOINT_KEY, release_checkpoint
from zoo.release.imports import read_clip
from zoo.release.store import load_clip, load_model, load_release, load_scorer, write_release

pytestmark = pytest.mark.usefixtures("traced_once")

NAME = "test_multimodal_nsfw.fusion"
TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)


def _logits(model: ZooModel, policy: AnyPolicy) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    given: list[Tensor] = []
    if model.card.image is not None:
        given.append(torch.rand(2, 3, model.image_size, model.image_size, generator=generator))
    if model.card.reads_text:
        tokens = model.codec().encode(["a red car", "two dogs"])
        given += [torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)]
    if "image_present" in model.card.input_names:
        given.append(torch.tensor([True, False]))
    banks = text_banks(model, bind(model.card, policy))
    with torch.inference_mode():
        logits: Tensor = model(*given, *banks)
    return logits


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = load_release(NAME)
    folder = tmp_path_factory.mktemp("release") / "release"
    write_release(found.model, found.policy, folder)
    return folder


@pytest.fixture
def release(written: Path, tmp_path: Path) -> Path:
    """A release that a test may spoil."""
    return shutil.copytree(written, tmp_path / "release")


def _edit_card(folder: Path, **fields: Any) -> None:
    path = folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", list_models("test_*"))
def test_what_was_written_answers_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(11)
    model, policy = create_model(name), load_release(name).policy
    card = write_release(model, policy, tmp_path / "r")
    found = load_release(tmp_path / "r")
    assert torch.equal(_logits(found.model, found.policy), _logits(model, policy))
    assert not found.model.training
    assert (found.policy, found.card) == (policy, card)
    assert set(card.files) == {path.name for path in (tmp_path / "r").iterdir()} - {"card.json"}


def test_what_is_not_a_release_says_what_it_is_and_what_to_do(
    release: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint, bundle = tmp_path / "x.ckpt", bundles["test_nsfwjs.random"]
    for load in (load_model, load_release, load_scorer):
        with pytest.raises(BadArgumentError, match=r"x\.ckpt: no such file; .*zoo release .*x\.ckpt --out DIR"):
            load(checkpoint)
    checkpoint.write_bytes(b"PK")
    with pytest.raises(BadArgumentError, match=r"x\.ckpt: a checkpoint of a training is not a release; make one"):
        load_model(checkpoint)
    with pytest.raises(BadArgumentError, match=r"x\.ckpt: no such file; a checkpoint"):
        load_model("x.ckpt")
    with pytest.raises(BadArgumentError, match=r"model\.safetensors: is a file, and a release is a directory"):
        load_model(release / "model.safetensors")
    with pytest.raises(BadArgumentError, match=r"is a bundle, .*give the release that it was exported from"):
        load_model(bundle)
    with pytest.raises(BadArgumentError, match="to add an engine, export that release into the bundle"):
        export_onnx(bundle, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_at_release_load_and_export(
    release: Path, tmp_path: Path, broken: float
) -> None:
    found = load_release(release)
    found.model.get_parameter("image_tower.visual_projection.weight").data[-1, -1] = broken
    named = r"image_tower\.visual_projection\.weight hold NaN or infinity"
    with pytest.raises(BadDataError, match=named):
        write_release(found.model, found.policy, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(BadDataError, match=named):
        write_onnx(found, "fp32", tmp_path / "model.onnx")
    with pytest.raises(BadDataError, match=named):
        load_scorer(found)
    # A file that somebody else wrote, with a card that vouches for it.
    save_file(found.model.state_dict(), release / "model.safetensors")
    files = {**found.card.files, "model.safetensors": sha256(release / "model.safetensors")}
    _edit_card(release, files=files)
    for refused in (lambda: load_release(release), lambda: export_onnx(release, tmp_path / "bundle")):
        with pytest.raises(BadDataError, match=named):
            refused()
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "buffer", "value"),
    [("test_nsfwjs.random", "running_var", -1.0), ("test_laion_nsfw.random", "head.norm.variance", 0.0)],
)
def test_a_variance_that_gives_nan_is_refused(name: str, buffer: str, value: float, tmp_path: Path) -> None:
    found = load_release(name)
    next(tensor for key, tensor in found.model.named_buffers() if key.endswith(buffer)).view(-1)[0] = value
    with pytest.raises(BadDataError, match=rf"{buffer} holds a variance of {value:.3g}"):
        write_release(found.model, found.policy, tmp_path / "new")


def test_a_weight_that_half_precision_makes_infinite_is_refused_at_export(release: Path, tmp_path: Path) -> None:
    found = load_release(release)
    name = "image_tower.visual_projection.weight"
    found.model.get_parameter(name).data[0, 0] = 1e5
    check_finite(copy.deepcopy(found.model).bfloat16(), "export")  # whose range is that of float32
    with pytest.raises(BadDataError, match=rf"{name} hold NaN or infinity in torch\.float16"):
        write_onnx(found, "fp16", tmp_path / "fp16.onnx")


@pytest.mark.parametrize("file", ["model.safetensors", "policy.yaml", "tokenizer.json"])
def test_one_changed_byte_or_a_missing_file_is_refused(release: Path, file: str) -> None:
    content = bytearray((release / file).read_bytes())
    content[len(content) // 2] ^= 1
    (release / file).write_bytes(content)
    with pytest.raises(TamperedFileError, match=rf"{file}: sha256 is .* it was changed"):
        load_release(release)
    (release / file).unlink()
    with pytest.raises(TamperedFileError, match=f"{file}: missing"):
        load_release(release)


@pytest.mark.parametrize("name", ["model.safetensors", "policy.yaml", "tokenizer.json"])
@pytest.mark.parametrize("written_to", [False, True], ids=["replaced", "written to"])
def test_what_takes_the_place_of_a_file_after_its_hash_is_not_used(
    release: Path, name: str, written_to: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_release(release)
    other = release.parent / "other"
    changed = bytearray((release / name).read_bytes())
    changed[-6:-2] = b"0000"
    other.write_bytes(changed)
    check = HeldFiles.check
    swapped: list[str] = []

    def check_and_swap(self: HeldFiles, named: str, wanted: str) -> None:
        check(self, named, wanted)
        if named == name and not swapped:
            swapped.append(name)
            if written_to:
                (release / name).write_bytes(other.read_bytes())
            else:
                other.replace(release / name)

    monkeypatch.setattr(HeldFiles, "check", check_and_swap)
    if written_to:
        with pytest.raises(TamperedFileError, match=f"{name}: was written to after it was checked"):
            load_release(release)
    else:
        found = load_release(release)
        assert found.policy == whole.policy
        assert found.model.tokenizer_json == whole.model.tokenizer_json
        torch.testing.assert_close(found.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert swapped == [name]
    with pytest.raises(TamperedFileError, match=f"{name}: sha256"):
        load_release(release)


def test_tensors_of_every_type_come_from_the_open_file_and_a_false_header_is_refused(
    release: Path, tmp_path: Path
) -> None:
    tensors = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in TYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3)}
    path = tmp_path / "some.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    held = HeldFiles(tmp_path)
    with held.place(path.name) as place:
        path.rename(tmp_path / "elsewhere")
        read = [load_file(place), load_bytes(held.read(path.name))] if isinstance(place, str) else [load_bytes(place)]
        for found in read:
            assert found.keys() == tensors.keys()
            for name, value in tensors.items():
                torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    weights = release / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header + b"0000")
    files = json.loads((release / "card.json").read_text())["files"]
    _edit_card(release, files=files | {weights.name: sha256(weights)})
    with pytest.raises(BadDataError, match=r"model\.safetensors: not readable as safetensors: .*a"):
        load_release(release)


def test_a_hash_that_is_left_out_or_points_elsewhere_is_refused(release: Path) -> None:
    files = json.loads((release / "card.json").read_text())["files"]
    _edit_card(release, files=files | {"../policy.yaml": "00"})
    with pytest.raises(TamperedFileError, match="a hash may only name a file of"):
        load_release(release)
    _edit_card(release, files={name: value for name, value in files.items() if name != "policy.yaml"})
    with pytest.raises(BadCardError, match=r"names no policy\.yaml"):
        load_release(release)


def test_a_changed_card_is_refused(release: Path) -> None:
    _edit_card(release, schema_version=3)
    with pytest.raises(BadCardError, match="3 is newer than 2"):
        load_release(release)
    _edit_card(release, schema_version=2, labels=["unsafe", "safe", "other"])
    with pytest.raises(BadInputError, match=r"model\.safetensors does not fit"):
        load_release(release)
    _edit_card(release, labels=["unsafe", "safe"], name="nobody.knows")
    with pytest.raises(UnknownModelError, match=r"nobody\.knows"):
        load_release(release)
    (release / "card.json").unlink()
    with pytest.raises(BadInputError, match=r"holds no card\.json"):
        load_release(release)


def test_a_policy_that_the_model_cannot_score_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    policy = Policy("p", "1", "", (Category("unsave", "block", Threshold(0.5)),))
    with pytest.raises(BadPolicyError, match='"unsave"; did you mean "unsafe"'):
        write_release(create_model(NAME), policy, tmp_path / "r")
    with pytest.raises(BadPolicyError, match="unsave"):
        load_scorer(NAME, policy)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_needs_overwrite(release: Path) -> None:
    found = load_release(release)
    with pytest.raises(BadInputError, match="exists and is not empty"):
        write_release(found.model, found.policy, release)
    (release / "notes.txt").touch()
    with pytest.raises(BadInputError, match=r"did not write notes\.txt"):
        write_release(found.model, found.policy, release, overwrite=True)
    (release / "notes.txt").unlink()
    write_release(found.model, found.policy, release, overwrite=True)
    assert load_release(release).card == found.card
    with pytest.raises(BadInputError, match="is a file"):
        write_release(found.model, found.policy, release / "card.json")


def test_an_interrupted_write_leaves_what_was_there(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    found = load_release(release)
    monkeypatch.setattr("zoo.release.store.write_card", stop)
    for out, overwrite in ((release, True), (release.parent / "new", False)):
        with pytest.raises(KeyboardInterrupt):
            write_release(found.model, found.policy, out, overwrite=overwrite)
    assert [path.name for path in release.parent.iterdir()] == ["release"]
    assert load_release(release).card == found.card


class _Custom:
    pass


def _checkpoint(path: Path, model: ZooModel, policy: AnyPolicy, **changes: Any) -> Path:
    stored = {"card": model.card.to_dict(), "policy": policy.to_dict(), "tokenizer": model.tokenizer_json}
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, CHECKPOINT_KEY: stored} | changes, path)
    return path


def test_a_checkpoint_becomes_a_release(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model, policy = create_model(NAME, labels=("unsafe", "safe", "odd")), load_release(NAME).policy
    release_checkpoint(_checkpoint(tmp_path / "a.ckpt", model, policy), tmp_path / "r")
    found = load_release(tmp_path / "r")
    assert found.card.labels == ("unsafe", "safe", "odd")
    assert torch.equal(_logits(found.model, policy), _logits(model, policy))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"extra": _Custom()}, "could run code; refused"),
        ({CHECKPOINT_KEY: None}, "carries no card"),
        ({"state_dict": {}}, "weights do not fit"),
    ],
)
def test_a_pickle_or_a_foreign_checkpoint_is_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = _checkpoint(tmp_path / "a.ckpt", create_model(NAME), load_release(NAME).policy, **changes)
    with pytest.raises(BadInputError, match=named):
        release_checkpoint(path, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_folder_is_called_by_what_it_is(tmp_path: Path) -> None:
    for name, kind in ((None, "a folder"), ("card.json", "a release"), ("manifest.json", "a bundle")):
        if name:
            (tmp_path / name).touch()
        with pytest.raises(BadInputError, match=f": is {kind}; give the checkpoint of a training"):
            release_checkpoint(tmp_path, tmp_path / "r")


@pytest.mark.parametrize("content", [b"", b"image,label\na.jpg,1\n", None])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInputError, match=r"a\.ckpt: (is not a checkpoint|no such)"):
        release_checkpoint(path, tmp_path / "r")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP as others publish it: transformers' own files and a tokenizer.json."""
    torch.manual_seed(2)
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "projection_dim": 16}
    config = CLIPConfig(
        vision_config=tower | {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        text_config=tower
        | {"num_hidden_layers": 2, "vocab_size": 300, "max_position_embeddings": 24, "bos_token_id": 0}
        | {"eos_token_id": 1, "pad_token_id": 1},
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("clip")
    clip = CLIPModel(config)
    for parameter in clip.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # fresh LayerNorms would hide a mistake about them
    clip.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(train_tokenizer([], 0), encoding="utf-8")
    return folder


@pytest.fixture
def clip_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two entries that fit the CLIP above: as SafeCLIP reads it, and as CLIP itself does."""
    list_models()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    for tag, layer, post in (("safeclip", -2, False), ("plain", -1, True), ("wide", -2, False)):
        changes = {"vision_layers": 3, "layer": layer, "post_layernorm": post}
        changes |= {"embedding_dim": 8} if tag == "wide" else {}
        card = model_card("test_safeclip.random", **changes).replace(name=f"saved_clip.{tag}")
        register_model(card, policy="configs/policy/safeclip.yaml", builder="zoo.models.clip:build_safeclip")


@pytest.mark.usefixtures("clip_entries")
@torch.inference_mode()
def test_safeclip_is_the_cls_token_of_the_last_layer_but_one(clip_folder: Path) -> None:
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    pixels = torch.rand(3, 3, 32, 32)
    safeclip, plain = (load_clip(f"saved_clip.{tag}", clip_folder) for tag in ("safeclip", "plain"))
    assert isinstance(safeclip, DualEncoder)
    assert isinstance(plain, DualEncoder)
    assert safeclip.card.image is not None
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (safeclip.card.image.mean, safeclip.card.image.std))
    normal = (pixels - mean) / std
    cls = clip.vision_model(normal, output_hidden_states=True).hidden_states[-2][:, 0]
    assert (safeclip.image_tower(pixels).embedding - clip.visual_projection(cls)).abs().max() < 1e-5
    features = clip.get_image_features(pixel_values=normal).pooler_output
    assert (plain.image_tower(pixels).embedding - features).abs().max() < 1e-5
    assert (plain.encode_image(pixels) - safeclip.encode_image(pixels)).abs().max() > 1e-3

    tokens = safeclip.codec().encode(["a red car", "a very " * 40])
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    texts = clip.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    texts = texts / texts.norm(dim=1, keepdim=True)
    assert (safeclip.embed_phrases(("a red car", "a very " * 40)) - texts).abs().max() < 1e-5
    image = features / features.norm(dim=1, keepdim=True)
    assert (plain(pixels, texts) - clip.logit_scale.exp() * image @ texts.T).abs().max() < 1e-4


@pytest.mark.usefixtures("clip_entries")
def test_a_clip_that_does_not_fit_or_is_incomplete_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"does not fit .*weight \[16, 32\] \(expected \[8, 32\]\)"):
        load_clip("saved_clip.wide", clip_folder)
    clip = CLIPModel.from_pretrained(clip_folder)
    state = {key: value for key, value in clip.state_dict().items() if key != "visual_projection.weight"}
    clip.save_pretrained(tmp_path, state_dict=state)
    shutil.copy(clip_folder / "tokenizer.json", tmp_path)
    with pytest.raises(BadInputError, match=r"incomplete, without visual_projection\.weight"):
        load_clip("saved_clip.safeclip", tmp_path)


@pytest.mark.parametrize(
    ("source", "error", "named"),
    [
        ("hf-hub:nobody/nothing", BadInputError, "cannot be fetched from the Hugging Face Hub"),
        (
            "nobody/nothing",
            BadInputError,
            'no such directory.*; a model on the Hugging Face Hub is "hf-hub:nobody/nothing"',
        ),
        ("safeclip_vit_b32.zeroshot", BadInputError, "openai/clip-vit-base-patch32"),
        ("multimodal_nsfw_tiny.fusion", NoWeightsError, "no downloadable weights are registered"),
        ("safeclip_vit_b23.zeroshot", UnknownModelError, r"safeclip_vit_b32\.zeroshot"),
        ("/no/such/folder", BadInputError, "no such directory"),
    ],
)
def test_a_source_without_weights_is_refused(source: str, error: type[ZooError], named: str) -> None:
    with pytest.raises(error, match=named):
        load_release(source)


def _hub(home: Path, repository: str, commit: str, files: Path) -> None:
    """A cache as huggingface_hub leaves it, of one revision."""
    folder = home / f"models--{repository.replace('/', '--')}"
    shutil.copytree(files, folder / "snapshots" / commit)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_release_on_the_hub(written: Path, hub: Path) -> None:
    first, second = "1" * 40, "2" * 40
    _hub(hub, "someone/guard", first, written)
    _hub(hub, "someone/guard", second, written)
    (hub / "models--someone--guard" / "snapshots" / second / "card.json").write_text("{")
    assert load_release(f"hf-hub:someone/guard@{first}").card == ModelCard.read(written / "card.json")
    with pytest.raises(BadInputError, match=second):
        load_release("hf-hub:someone/guard")
    with pytest.raises(BadInputError, match=r'no such directory.*"hf-hub:someone/guard"'):
        load_release("someone/guard")
    with pytest.raises(BadInputError, match="cannot be fetched"):
        load_release("hf-hub:someone/guard@" + "3" * 40)
    (hub / "models--someone--guard" / "refs" / "main").write_text(first)
    assert export_onnx("hf-hub:someone/guard", hub.parent / "bundle").source == f"hf-hub:someone/guard@{first}"


@pytest.mark.usefixtures("clip_entries")
def test_the_commit_of_a_clip_on_the_hub_is_in_the_card(clip_folder: Path, hub: Path, tmp_path: Path) -> None:
    commit = "4" * 40
    _hub(hub, "someone/clip", commit, clip_folder)
    assert published_clip("hf-hub:someone/clip", with_text=True).source == f"hf-hub:someone/clip@{commit}"
    snapshot = hub / "models--someone--clip" / "snapshots" / commit
    state = load_file(snapshot / "model.safetensors")
    (snapshot / "model.safetensors").unlink()
    torch.save(state, snapshot / "pytorch_model.bin")
    with pytest.raises(BadInputError, match="safetensors"):
        published_clip("hf-hub:someone/clip", with_text=True)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(
    name: str, written: Path, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (written, bundles[NAME]):
        monkeypatch.chdir(folder)
        for take in (load_release, load_scorer, lambda name: read_clip(name, with_text=False)):
            with pytest.raises(BadInputError, match="the name of the model is empty"):
                take(name)


def test_no_argument_downloads_a_name_without_the_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> str:
        raise AssertionError("asked the Hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "modell").mkdir()
    takers: list[Callable[[str], object]] = [
        load_release,
        lambda name: load_clip("safeclip_tiny.zeroshot", name),
        lambda name: read_clip(name, with_text=False),
        lambda name: load_pretrained_text(create_model(NAME), name),
        load_lvlm,
        RefusalJudge,
    ]
    for take in takers:
        with pytest.raises(BadInputError, match=r'did you mean "org/modell".*"hf-hub:org/model"|has no BERT'):
            take("org/model")


@pytest.mark.usefixtures("clip_entries")
def test_a_folder_with_an_adapter_does_not_download_the_model_that_it_names(clip_folder: Path, tmp_path: Path) -> None:
    """transformers takes the folder of an adapter for the name of the model below it."""
    folder = Path(shutil.copytree(clip_folder, tmp_path / "adapter"))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/body"}', encoding="utf-8")
    for take in (lambda: published_clip(str(folder), with_text=True), lambda: RefusalJudge(folder)):
        with pytest.raises(BadInputError, match="holds an adapter of peft on another model"):
            take()
