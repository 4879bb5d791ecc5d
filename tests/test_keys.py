"""With a public key configured nothing unsigned is judged: every command and entry point that ends in a verdict."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import yaml
from PIL import Image

import zoo
from export import runtime
from export.bundle.store import read_bundle
from export.onnx.export import export_onnx
from export.verify.compare import verify
from export.verify.report import Check
from tests.benchmarks.losses import names
from zoo.cli import run
from zoo.contract.policy import read_policy
from zoo.errors import BadArgumentError, TamperedFileError
from zoo.evaluation.labelling import read_rows
from zoo.evaluation.robustness.examples import ABOUT, StoredExamples
from zoo.evaluation.robustness.victim import Victim
from zoo.evaluation.run import retrieval
from zoo.evaluation.text.rankers import ReleaseRanker
from zoo.guard.detector import Detector, load_detector
from zoo.judging.banks import policy_bank
from zoo.keys import PUBLIC_KEY
from zoo.models.clip import DualEncoder
from zoo.release.store import model_scorer, write_release
from zoo.training import Contrastive, ManifestData

pytestmark = pytest.mark.usefixtures("traced_once")

CLIP, BERT = "test_safeclip.random", "test_prompt_bert.random"
PHOTOS = ("photo.png", "other.png")

#: Commands that end in a verdict or a figure of a model, with arguments that name what is not signed.
JUDGE = {
    "score": "--model release photo.png",
    "evaluate": "--model release --data data.csv",
    "evaluate robustness": "--model release --data data.csv --threat linf4 --limit 1 --out out",
    "evaluate texts": f"--model {BERT} --data texts.csv --latency 0 --draws 10 --out out",
    "evaluate guard": "--lvlm none --detector release --data data.csv --columns text=text",
    "validate": "--config recipe.yaml",
    "test": "--config recipe.yaml",
    "predict": "--config recipe.yaml --model.init_args.init_from release",
    "verify": "bundle",
    "bench": "bundle --rounds 5 --batch-sizes 1",
    "bundle info": "bundle",
    "export triton": "--model bundle --out out",
    "policy embed": "dogs --model bundle",
    "pull": "opennsfw.yahoo",
}
#: The same commands on other sources.
MORE = (
    f"score --model {CLIP} photo.png",
    "score --model hf-hub:some/release photo.png",
    "score --model bundle photo.png",
    "score photo.png",
    "evaluate --model bundle --data data.csv",
    "evaluate --model hf-hub:some/release --data data.csv",
    f"evaluate robustness --model {CLIP} --data data.csv --threat linf4 --out out",
    f"evaluate guard --lvlm none --detector {CLIP} --data data.csv --columns text=text",
)
#: Commands that make what is signed later, or look at no model. `leaderboard` sorts reports that were written before,
#: and `guard bench` times random weights.
OTHERS = {
    *("list", "show", "recipes", "recipes list", "recipes check", "recipes copy", "threats", "threats list", "budgets"),
    *("budgets list", "data", "data list", "data signs", "data questions", "data proxy", "data folder", "data corpora"),
    *("attacks", "attacks list", "leaderboard", "guard", "guard bench", "policy", "policy list", "bundle", "export"),
    *("fit", "release", "import", "panel", "export onnx", "export openvino", "export tensorrt", "bundle sign"),
    "policy use",
}


@pytest.fixture
def place(bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a release, a bundle, data and keys; nothing is signed yet and no key is configured."""
    pytest.importorskip("cryptography", reason="extra `sign` is not installed")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    monkeypatch.chdir(tmp_path)
    release = zoo.load_release(CLIP)
    write_release(release.model, release.policy, Path("release"))
    shutil.copytree(bundles[CLIP], "bundle")
    Image.effect_noise((40, 40), 60).convert("RGB").save("photo.png")
    Image.effect_noise((40, 40), 90).convert("RGB").save("other.png")
    splits = ("train", "val", "test")
    rows = [f"{name},a dog,{label},{split}\n" for split in splits for label, name in enumerate(PHOTOS)]
    Path("data.csv").write_text("image,text,label,split\n" + "".join(rows), encoding="utf-8")
    Path("texts.csv").write_text("text,labels,split\na dog,,test\n", encoding="utf-8")
    recipe = {
        "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
        "model": {"class_path": "zoo.training.Contrastive", "init_args": {"model": CLIP}},
        "data": {"class_path": "zoo.training.ManifestData", "init_args": {"manifest": "data.csv", "batch_size": 2}},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    Path("private.pem").write_bytes(private)
    Path("public.pem").write_bytes(public)
    return tmp_path


def _answer(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The status of a command, and what it printed."""
    try:
        status, said = run(words.split()), ""
    except SystemExit as end:  # the training commands
        status, said = 1, str(end.code)
    shown = capsys.readouterr()
    return status, said + shown.out + shown.err


def test_every_command_is_known_to_judge_or_not_to() -> None:
    assert JUDGE.keys() | OTHERS == names()


@pytest.mark.parametrize("words", [*(f"{name} {rest}" for name, rest in JUDGE.items()), *MORE])
def test_no_command_judges_by_what_is_not_signed(
    words: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _files(place)
    monkeypatch.setenv(PUBLIC_KEY, "public.pem")
    status, said = _answer(words, capsys)
    assert status == 1, said
    assert "not signed, and the key public.pem is required" in said
    assert "Traceback" not in said
    monkeypatch.setenv(PUBLIC_KEY, " ")
    status, said = _answer(words, capsys)
    assert status == 1, said
    assert f"{PUBLIC_KEY} is set, but empty" in said
    assert _files(place) == before  # no verdicts, no figures


def _files(place: Path) -> list[Path]:
    """All files but the configuration that Lightning writes first."""
    return sorted(path for path in place.rglob("*") if path.name != "config.yaml")


def test_stored_examples_are_not_judged_by_what_is_not_signed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("examples").mkdir()
    fields = ("model", "source", "weights_sha256", "policy", "data", "split", "threat", "command")
    about: dict[str, Any] = dict.fromkeys(fields, "")
    StoredExamples(**about, point="policy", threshold=None, target="policy", examples=1, survived=1).write_json(
        Path("examples") / ABOUT
    )
    row = "image,unsafe,survived,attack,source_line\n../photo.png,1,1,pgd,2\n"
    Path("examples/manifest.csv").write_text(row, encoding="utf-8")
    assert _answer("evaluate robustness --model release --replay examples --out out", capsys)[0] == 0
    monkeypatch.setenv(PUBLIC_KEY, "public.pem")
    for model in ("release", "bundle"):
        status, said = _answer(f"evaluate robustness --model {model} --replay examples --out out", capsys)
        assert (status, "not signed, and the key public.pem is required" in said) == (1, True), said


def _entry_points() -> dict[str, Callable[[], object]]:
    """The ways to a verdict or figure from Python, loaded before any key is configured."""
    release, rows = zoo.load_release(CLIP), read_rows(Path("data.csv"), None, {}, "test")
    assert isinstance(release.model, DualEncoder)
    encoder, policy = release.model, release.policy.single()
    module, data = Contrastive(CLIP, init_from="release"), ManifestData("data.csv")
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    return {
        "release in memory": lambda: zoo.load_scorer(release),
        "model in memory": lambda: model_scorer(release.model, release.policy),
        "release": lambda: zoo.load_scorer("release"),
        "bundle": lambda: zoo.load_scorer("bundle"),
        "name": lambda: zoo.load_scorer(CLIP),
        "Hub": lambda: zoo.load_scorer("hf-hub:some/release"),
        "runtime": lambda: runtime.load("bundle", threads=1),
        "service": lambda: runtime.serve("bundle"),
        "detector": lambda: load_detector("release"),
        "detector in memory": lambda: Detector(encoder, policy),
        "attacked": lambda: Victim(release),
        "ranked": lambda: ReleaseRanker(BERT),
        "retrieved": lambda: retrieval("release", rows),
        "verified": lambda: verify("bundle"),
        "validated": lambda: trainer.validate(module, datamodule=data),
        "tested": lambda: trainer.test(module, datamodule=data),
        "predicted": lambda: trainer.predict(module, datamodule=data),
    }


def test_no_entry_point_judges_by_what_is_not_signed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, judge in _entry_points().items():
        monkeypatch.setenv(PUBLIC_KEY, "public.pem")
        with pytest.raises(TamperedFileError, match=r"not signed, and the key public.pem is required"):
            print(name, judge())
        monkeypatch.setenv(PUBLIC_KEY, "")
        with pytest.raises(BadArgumentError, match=f"{PUBLIC_KEY} is set, but empty"):
            print(name, judge())


@pytest.mark.parametrize("empty", ["", " ", Path("")])
def test_an_empty_key_is_refused_where_it_is_given(empty: str | Path, place: Path) -> None:
    for read in (read_bundle, runtime.load):
        with pytest.raises(BadArgumentError, match="`public_key` is set, but empty"):
            read("bundle", public_key=empty)


def test_a_bundle_is_made_and_signed_with_a_key_configured(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PUBLIC_KEY, "public.pem")
    export_onnx("release", Path("made"))
    export_onnx("release", Path("made"), precision="int8", check=Check())  # into a bundle that is not signed yet
    assert run(["policy", "use", "dogs", "--model", "made"]) == 0
    assert run(["score", "--model", "made", "photo.png"]) == 1
    assert run(["bundle", "sign", "made", "--key", "private.pem"]) == 0, capsys.readouterr().err
    assert run(["score", "--model", "made", "photo.png"]) in (0, 3)
    assert run(["verify", "made", "--model", "release", "--engine", "onnx-fp32"]) == 0, capsys.readouterr().err
    assert run(["score", "--model", "made", "photo.png"]) == 1  # verified, so the manifest is another
    assert run(["bundle", "sign", "made", "--key", "private.pem"]) == 0
    assert run(["bundle", "info", "made"]) == 0
    assert "signature: valid" in capsys.readouterr().out
    monkeypatch.setenv(PUBLIC_KEY, "")
    assert run(["bundle", "sign", "made", "--key", "private.pem"]) == 1
    assert "is set, but empty" in capsys.readouterr().err


def test_training_goes_on_with_a_key_configured(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PUBLIC_KEY, "public.pem")
    trainer = lightning.Trainer(accelerator="cpu", logger=False, fast_dev_run=True, enable_progress_bar=False)
    trainer.fit(Contrastive(CLIP, init_from="release"), datamodule=ManifestData("data.csv", batch_size=2))
    assert trainer.state.finished


def test_kept_text_banks_are_not_read_with_a_key_configured(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = read_policy("dogs").single()
    right, planted = (np.full((len(policy.phrases), 4), value, dtype=np.float32) for value in (0.5, 0.1))
    monkeypatch.setenv("SAFETY_ZOO_CACHE", str(tmp_path / "cache"))
    policy_bank(policy, lambda _: planted, "encoder")
    assert np.array_equal(policy_bank(policy, lambda _: right, "encoder"), planted / policy.temperature)
    monkeypatch.setenv(PUBLIC_KEY, "public.pem")
    assert np.array_equal(policy_bank(policy, lambda _: right, "encoder"), right / policy.temperature)
