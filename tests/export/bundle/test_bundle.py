"""A bundle is what its manifest says, byte for byte, or it is refused with the reason."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from export.bundle.store import Bundle, read_bundle, use_policy
from zoo.assets import find_asset
from zoo.cli import run
from zoo.contract.policy import Policy
from zoo.errors import BadCardError, BadInputError, BadPolicyError, IncompatibleBundleError, TamperedFileError, ZooError
from zoo.files.held import hashes, sha256

CLIP, FUSION = "test_safeclip.random", "test_multimodal_nsfw.fusion"
FP32 = "onnx-fp32.onnx"
FILES = ["card.json", FP32, "policy.yaml", "text_encoder.onnx", "tokenizer.json"]


@pytest.fixture
def bundle(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(bundles[CLIP], tmp_path / "bundle"))


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def _files(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    return found


def test_a_bundle_reads_back(bundle: Path) -> None:
    found = read_bundle(str(bundle))
    assert isinstance(found, Bundle)
    assert (found.card.name, found.policy.name) == (CLIP, "safeclip")
    assert sorted(found.manifest.files) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, -1], ids=["first byte", "last byte"])
def test_one_changed_byte_is_found(bundle: Path, name: str, place: int) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[place] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(TamperedFileError, match=rf"{name}: sha256 is .*, expected .*; it was changed"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(TamperedFileError, match=rf"{name}: missing"):
        read_bundle(bundle)


def test_a_newer_schema_asks_for_an_upgrade(bundle: Path) -> None:
    _edit(bundle, schema_version=3)
    with pytest.raises(BadCardError, match=r"schema_version 3 is newer than 2.*pip install --upgrade safety-zoo"):
        read_bundle(bundle)


@pytest.mark.parametrize("older", [None, 1])
def test_an_older_schema_names_the_command_that_rebuilds(bundle: Path, older: int | None) -> None:
    _edit(bundle, schema_version=older)
    with pytest.raises(IncompatibleBundleError, match=rf"zoo export onnx --model {CLIP} --out .* --overwrite"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp8"}, 'field "engines.0.precision"'),
        ({"opsett": 20}, 'unknown field "engines.0.opsett"; did you mean "opset"'),
        ({"batch": [4, 2, 8]}, r"batch is least:usual:largest, from 1 upwards, got \[4, 2, 8\]"),
        ({"files": []}, 'engine "onnx-fp32" has no file'),
        ({"files": ["other.onnx"]}, r'field "files" names no other\.onnx'),
        ({"files": ["../other.onnx"]}, 'field "files" names no'),
    ],
)
def test_a_wrong_field_of_an_engine_is_named(bundle: Path, changes: dict[str, Any], message: str) -> None:
    engine = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["engines"][0]
    _edit(bundle, engines=[{**engine, **changes}])
    with pytest.raises(ZooError, match=message):
        read_bundle(bundle)


def test_two_engines_of_one_name_are_refused(bundle: Path) -> None:
    engine = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["engines"][0]
    _edit(bundle, engines=[engine, engine])
    with pytest.raises(BadCardError, match=r"each with a name of its own, got \['onnx-fp32'\]"):
        read_bundle(bundle)


def test_a_changed_file_names_the_command_that_rebuilds(bundle: Path) -> None:
    (bundle / FP32).write_bytes(b"other")
    with pytest.raises(TamperedFileError, match=rf"export again: zoo export onnx --model {CLIP} --precision fp32"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enginess": []}, 'unknown field "enginess"; did you mean "engines"'),
        ({"engines": []}, "a bundle has at least one engine"),
        ({"weights": 7}, 'field "weights"'),
        ({"schema_version": 0}, "schema_version 0, expected 2"),
    ],
)
def test_a_wrong_field_is_named(bundle: Path, changes: dict[str, Any], message: str) -> None:
    _edit(bundle, **changes)
    with pytest.raises(BadCardError, match=message):
        read_bundle(bundle)


@pytest.mark.parametrize("name", [FP32, "card.json", "policy.yaml"])
def test_a_manifest_that_vouches_for_less_is_refused(bundle: Path, name: str) -> None:
    files = _files(bundle)
    del files[name]
    _edit(bundle, files=files)
    with pytest.raises(BadCardError, match=f'field "files" names no {name}'):
        read_bundle(bundle)


def test_a_model_that_reads_text_needs_its_tokenizer(bundles: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundles[FUSION], tmp_path / "bundle"))
    files = _files(folder)
    del files["tokenizer.json"]
    (folder / "tokenizer.json").unlink()
    _edit(folder, files=files)
    with pytest.raises(IncompatibleBundleError, match=r"reads text, but the bundle has no tokenizer\.json"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "deeper/file", ".."])
def test_a_hash_names_no_file_elsewhere(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").write_text("x", encoding="utf-8")
    _edit(bundle, files={**_files(bundle), name: sha256(bundle.parent / "secret")})
    with pytest.raises(TamperedFileError):
        read_bundle(bundle)


def test_a_policy_that_does_not_fit_the_model_is_refused(bundle: Path, bundles: dict[str, Path]) -> None:
    shutil.copy(bundles[FUSION] / "policy.yaml", bundle / "policy.yaml")
    _edit(bundle, files={**_files(bundle), "policy.yaml": sha256(bundle / "policy.yaml")})
    assert Policy.read(bundle / "policy.yaml").name == "unsafe"
    with pytest.raises(BadPolicyError, match='category "unsafe" has no descriptors'):
        read_bundle(bundle)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError, match=r"holds no manifest\.json, so it is not a bundle \(made by `zoo export onnx`\)$"
    ):
        read_bundle(tmp_path)
    (tmp_path / "card.json").touch()
    with pytest.raises(BadInputError, match=r"export this release: zoo export onnx --model .* --out DIR"):
        read_bundle(tmp_path)
    with pytest.raises(BadInputError, match=r"card\.json: is a file, and a bundle is a directory"):
        read_bundle(tmp_path / "card.json")
    (tmp_path / "signs").mkdir()
    with pytest.raises(BadInputError, match=r"sings: no such directory; did you mean \"signs\"\?"):
        read_bundle(tmp_path / "sings")
    with pytest.raises(BadInputError, match="hf-hub:a/b: no such directory; a bundle is one on this machine"):
        read_bundle(Path("hf-hub:a/b"))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"{}"])
def test_a_broken_manifest_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    with pytest.raises(ZooError, match=r"manifest\.json: "):
        read_bundle(bundle)


def test_another_policy_takes_the_place_of_the_bundles_own(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = hashes(bundle)
    assert run(["policy", "use", "configs/policy/quickstart.yaml", "--model", str(bundle)]) == 0
    assert "judges by quickstart@1#" in capsys.readouterr().out
    found = read_bundle(bundle)
    assert found.policy == Policy.read(find_asset("configs/policy/quickstart.yaml"))
    changed = {name for name, value in hashes(bundle).items() if before[name] != value}
    assert changed == {"policy.yaml", "manifest.json"}


def test_an_edited_policy_is_refused_until_it_is_taken_on_purpose(bundle: Path) -> None:
    path = bundle / "policy.yaml"
    edited = yaml.safe_load(path.read_text(encoding="utf-8")) | {"version": "7"}
    path.write_text(yaml.safe_dump(edited), encoding="utf-8")
    with pytest.raises(TamperedFileError, match=r"policy\.yaml: .*changed on purpose: zoo policy use") as found:
        read_bundle(bundle)
    assert run(shlex.split(str(found.value).rpartition("on purpose: zoo ")[2])) == 0
    assert read_bundle(bundle).policy.version == "7"
    (bundle / "card.json").write_bytes(b"{}")
    with pytest.raises(TamperedFileError, match=r"card\.json"):
        use_policy(bundle, Policy.read(find_asset("configs/policy/quickstart.yaml")))


def test_a_policy_that_does_not_fit_leaves_the_bundle_as_it_was(bundle: Path) -> None:
    before = hashes(bundle)
    with pytest.raises(BadPolicyError, match="has no descriptors"):
        use_policy(bundle, Policy.read(find_asset("configs/policy/unsafe.yaml")))
    assert hashes(bundle) == before
