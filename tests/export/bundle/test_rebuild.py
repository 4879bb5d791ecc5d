"""The command that a refusal prints is read by the real parser, and makes the same engine again beside the others."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from export.bundle.manifest import Engine, Manifest, budget_of, given
from export.bundle.rebuild import rebuild, rebuild_all, runs_anywhere
from export.bundle.store import read_bundle
from export.commands.formats import engine_options
from export.onnx.export import export_onnx
from export.verify.inputs import image_probes
from zoo.cli import build_parser, run
from zoo.errors import BadInputError, TamperedFileError
from zoo.files.held import hashes
from zoo.registry import model_card

CLIP = "test_safeclip.random"
RTX = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed (extra tensorrt-rtx)")


@pytest.fixture(scope="module")
def two(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an fp32 and an int8 engine, in a folder whose name wants quoting."""
    folder = Path(shutil.copytree(bundles[CLIP], tmp_path_factory.mktemp("two") / "my bundle"))
    export_onnx(CLIP, folder, precision="int8", batch=(1, 2, 4))
    return folder


@pytest.fixture
def bundle(two: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(two, tmp_path / "my bundle"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("some photos")
    for number, pixels in enumerate(image_probes(8, model_card(CLIP).image)[0]):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def _words(command: str) -> list[str]:
    program, *words = shlex.split(command)
    assert program == "zoo"
    return words


def _plain(words: list[str]) -> dict[str, Any]:
    options: argparse.Namespace = build_parser().parse_args(words)
    return {name: value for name, value in vars(options).items() if name not in ("replace", "overwrite")}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param("onnx --precision int8 --profile throughput --batch 1:4:16 --no-verify", id="batches"),
        pytest.param(
            "onnx --precision int8_qdq --calibrate {photos} --verify --images {photos} --count 260 --budget {budget}",
            id="calibrated and verified",
        ),
        pytest.param(
            "tensorrt --precision fp16 --batch 2 --image 32:64:128 --capability SM86 --capability SM89 "
            "--text-bank constant --package tensorrt_rtx --no-verify",
            marks=[RTX, pytest.mark.tensorrt],
            id="plan",
        ),
    ],
)
def test_the_command_makes_the_same_engine_again_and_leaves_the_others(
    bundle: Path, photos: Path, tmp_path: Path, arguments: str
) -> None:
    budget = tmp_path / "loose.yaml"
    loose = dataclasses.replace(budget_of("int8"), max_flips=1.0)  # the weights are random, their scores all alike
    budget.write_text(yaml.safe_dump(loose.to_dict()), encoding="utf-8")
    filled = arguments.format(photos=shlex.quote(str(photos)), budget=shlex.quote(str(budget)))
    words = ["export", *shlex.split(filled), "--model", CLIP, "--out", str(bundle)]
    assert run(words) == 0
    manifest, before = read_bundle(bundle).manifest, hashes(bundle)
    engine = manifest.engines[-1]
    again = _words(rebuild(manifest, engine, bundle))
    assert _plain(again) == _plain(words)
    assert run(again) == 0
    found = read_bundle(bundle).manifest
    assert found.engines == manifest.engines
    # TensorRT's report and log tell the seconds that a build took, and no two plans are the same bytes.
    changed = {name for name, value in hashes(bundle).items() if before[name] != value}
    assert changed <= {"manifest.json", *(engine.files if engine.kind == "tensorrt" else ())}


def test_random_weights_are_asked_for_with_their_hyperparameters(bundle: Path) -> None:
    manifest = dataclasses.replace(
        read_bundle(bundle).manifest, untrained={"layer": -1, "post_layernorm": True, "pool": "a b", "kept": None}
    )
    words = _words(rebuild(manifest, manifest.engines[0], bundle))
    options = build_parser().parse_args(words)
    assert engine_options(options)["untrained"] == manifest.untrained


def test_options_may_be_changed_in_the_command(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    engine: Engine = dataclasses.replace(
        manifest.engines[1], kind="tensorrt", options=given(text_bank="refit", capability=("SM80",), image=(1, 2, 3))
    )
    command = rebuild(manifest, engine, bundle, text_bank="input", capability=("SM89", "SM90"))
    options = build_parser().parse_args(_words(command))
    assert (options.text_bank, options.capability, options.image) == ("input", ["SM89", "SM90"], (1, 2, 3))


def test_what_was_not_given_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = given(batch=None, strip_weights=False, capability=(), timing_cache=Path("kernels"), image=(8, 8, 8))
    assert found == {"timing-cache": "kernels", "image": "8:8:8"}
    assert given(strip_weights=True) == {"strip-weights": True}


def _refusal(bundle: Path) -> str:
    with pytest.raises(TamperedFileError) as caught:
        read_bundle(bundle)
    return str(caught.value)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_lost_engine_is_made_again_by_the_command_of_the_refusal(bundle: Path, damage: str) -> None:
    before, manifest = hashes(bundle), read_bundle(bundle).manifest
    (bundle / "onnx-int8.onnx").unlink()
    if damage == "changed":
        (bundle / "onnx-int8.onnx").write_bytes(b"other")
    message = _refusal(bundle)
    assert "onnx-int8.onnx" in message
    assert run(_words(message.rpartition("export again: ")[2])) == 0
    assert read_bundle(bundle).manifest == manifest
    assert hashes(bundle) == before


def test_a_lost_file_that_all_engines_share_needs_them_all_again(bundle: Path) -> None:
    before, manifest = hashes(bundle), read_bundle(bundle).manifest
    (bundle / "card.json").write_bytes(b"{}")
    (bundle / "onnx-int8.onnx").unlink()
    commands = _refusal(bundle).rpartition("export again: ")[2].split(" && ")
    assert [_plain(_words(command))["precision"] for command in commands] == ["fp32", "int8"]
    for command in commands:
        assert run(_words(command)) == 0
    assert read_bundle(bundle).manifest == manifest
    assert hashes(bundle) == before


def test_only_the_engine_that_is_replaced_may_be_lost(bundle: Path) -> None:
    (bundle / "onnx-fp32.onnx").write_bytes(b"other")
    with pytest.raises(TamperedFileError, match=r"onnx-fp32\.onnx: sha256 is"):
        export_onnx(CLIP, bundle, precision="int8", replace=True)


def test_replacing_what_is_not_there_adds_it(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    export_onnx(CLIP, folder, precision="int8", replace=True)
    assert [engine.name for engine in read_bundle(folder).manifest.engines] == ["onnx-int8"]


def test_replace_and_overwrite_exclude_each_other(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["export", "onnx", "--model", CLIP, "--out", str(two), "--replace", "--overwrite"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_the_engine_of_any_machine_is_float32_onnx(bundle: Path) -> None:
    manifest: Manifest = read_bundle(bundle).manifest
    found = _plain(_words(runs_anywhere(manifest, bundle)))
    assert (found["precision"], found["model"], found["out"]) == ("fp32", CLIP, bundle)
    assert rebuild_all(manifest, bundle).count("--overwrite") == 1
    with pytest.raises(BadInputError, match="`replace` builds it again and keeps the others"):
        export_onnx(CLIP, bundle)
