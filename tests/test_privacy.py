"""A prompt or caption stands in no message, log, report, card or manifest of a bundle, whatever is wrong with it.

Outputs that are asked to hold texts aside: data manifests, stored examples, answers and galleries.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import zoo
from export import runtime
from zoo.cli import run
from zoo.contract import schema
from zoo.contract.policy import Policy, read_policy
from zoo.errors import ServiceError, ZooError
from zoo.guard.collator import GuardedCollator
from zoo.guard.guard import Guard
from zoo.guard.insertion import INSTRUCTION
from zoo.guard.refusals import refusal_for
from zoo.inputs.text import TextCodec
from zoo.models.clip import DualEncoder
from zoo.models.tiny_llava import build_tiny_llava, tiny_llava_processor, train_llava_tokenizer
from zoo.release.store import load_release, write_release

CLIP, BERT, FUSION = "test_safeclip.random", "test_prompt_bert.random", "test_multimodal_nsfw.fusion"
SECRET = "seven-quiet-zebras"
#: Ordinary, of one word, with what tokenizers stumble over, and far too long.
TEXT = f"my {SECRET} walk over the bridge at night, 100 % alone"
PLAIN = TEXT.replace(",", ";")
TEXTS = (TEXT, SECRET, f"<|endoftext|>\ud800 {TEXT} &#0; \u0301\u200b \U0001f993", f"{TEXT} " * 3000)
REPOSITORY = Path(__file__).resolve().parents[1]
#: Folders and files whose purpose is to hold texts.
HELD = ("data", "examples", "answers.json", "gallery", "lvlm")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with releases, pictures and data in which the secret stands in every text."""
    monkeypatch.chdir(tmp_path)
    for name, folder in ((CLIP, "clip"), (BERT, "bert"), (FUSION, "fusion")):
        release = load_release(name)
        write_release(release.model, release.policy, Path(folder))
    Path("data").mkdir()
    for number in range(4):
        Image.effect_noise((40, 40), 40 + 20 * number).convert("RGB").save(f"data/{number}.png")
    _write("captions", "image,text,split", *(f"{n}.png,{TEXT[:50]},{s}" for n, s in enumerate(_SPLITS)))
    _write("pairs", "image,text,label,split", *(f"{n}.png,{TEXT[:50]} {n},{n % 2},{s}" for n, s in enumerate(_SPLITS)))
    label = load_release(BERT).card.labels[0]
    rows = (f"{TEXT[:50]} {n},{label if n % 2 else ''},{('test', 'val', 'train')[n % 3]}" for n in range(12))
    _write("texts", "text,labels,split", *rows)
    _write("one", "text,label", *(f"{TEXT[:50]} {n},{n % 2}" for n in range(6)))
    Path("data/lines.txt").write_text(f"{TEXT}\n{SECRET}\n", encoding="utf-8")
    marks = [{"name": "rude", "column": "labels", "values": [label]}]
    _yaml("corpora", {"schema_version": 1, "sources": [{"file": "texts.csv", "categories": marks}]})
    return tmp_path


_SPLITS = ("train", "val", "test", "train")


def _write(name: str, *lines: str) -> None:
    Path(f"data/{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _yaml(name: str, content: object) -> None:
    Path(f"data/{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def _recipe(model: str, manifest: str) -> str:
    trainer = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": "logs", "enable_progress_bar": False}
    path = Path("data/recipe.yaml")
    content = {
        "trainer": trainer | {"enable_model_summary": False},
        "model": {"class_path": "zoo.training.Classification", "init_args": {"model": model, "init_from": "bert"}},
        "data": {"class_path": "zoo.training.ManifestData", "init_args": {"manifest": manifest, "batch_size": 2}},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


class Watch:
    """Looks for the secret in what was printed and logged, and in files that were written."""

    def __init__(self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        self.capfd, self.caplog = capfd, caplog

    def run(self, *words: str, status: int | None = None) -> None:
        try:
            ended: Any = run(list(words))
        except SystemExit as end:  # wrong usage, and the training commands
            ended, said = (end.code, "") if isinstance(end.code, int) else (1, str(end.code))
            print(said)
        shown = self.capfd.readouterr()
        told = "\n".join((shown.out, shown.err, self.caplog.text))
        self.caplog.clear()
        assert "Traceback" not in told, told
        assert status is None or ended == status, told
        assert SECRET not in told, f"{words}: {told}"
        _look()


def _look() -> None:
    """Nothing below the current folder holds the secret but what is there to hold texts; nor the folder's own place."""
    for path in Path().rglob("*"):
        if path.is_file() and path.parts[0] not in HELD:
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            if path.suffix in (".json", ".yaml", ".html", ".csv", ".md", ".log", ".pbtxt", ".xml", ".onnx", ".plan"):
                assert str(Path.cwd()).encode() not in content, path
                assert str(REPOSITORY).encode() not in content, path


@pytest.fixture
def watch(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Watch:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler keeps the stderr of an earlier test
    return Watch(capfd, caplog)


def test_judging_tells_no_text(place: Path, watch: Watch) -> None:
    for text in TEXTS:
        for words in ((), ("--json",), ("--verbose",)):
            watch.run("score", "--model", "bert", "--text", text, *words)
        watch.run("score", "--model", "fusion", "data/0.png", "data/1.png", "--text", text)
        watch.run("score", "--model", "clip", "data/0.png", "--text", text, status=1)
        watch.run("score", "--model", "bert", "--txt", text, status=2)
        watch.run("score", "--model", "bert", "--text", "a", "--policy", "dogs", text, text, text, text, status=1)
    for text in TEXTS[:1] + TEXTS[2:]:  # a single word passes for the name of a command
        watch.run("list", "*", text, status=2)
        watch.run("list", "*", *text.split(), status=2)
        watch.run(text, status=2)


@pytest.mark.usefixtures("traced_once")
def test_bundles_tell_no_text(place: Path, watch: Watch) -> None:
    calibrate = ("--precision", "int8_qdq", "--calibrate", "data/lines.txt", "--count", "256")
    watch.run("export", "onnx", "--model", "bert", "--out", "bundle", status=0)
    watch.run("export", "onnx", "--model", "bert", "--out", "bundle", "--texts", "data/lines.txt", *calibrate)
    # Verdicts flip by the hundred where an engine has other weights, and are named in report and manifest.
    shutil.copytree("bundle", "other")
    budget = {"max_logit_difference": 1e-9, "max_flips": 0.0, "max_auroc_loss": 0.0, "at_threshold": True}
    _yaml("budget", {"schema_version": 1, "name": "none", "summary": "None", **budget})
    for data in (("--data", "data/one.csv"), ("--texts", "data/lines.txt"), ("--adversarial", "data/one.csv")):
        watch.run("verify", "bundle", "--model", "bert", "--count", "256", "--budget", "data/budget.yaml", *data)
    watch.run("bundle", "info", "bundle", "--json", status=0)
    watch.run("export", "triton", "--model", "bundle", "--out", "repository", status=0)


def test_a_flipped_text_is_named_by_its_line(place: Path) -> None:
    from export.verify.inputs import Inputs
    from export.verify.report import Check

    release = load_release(BERT)
    inputs = Inputs(release.card, release.model.codec(), Check(data=Path("data/one.csv")))
    assert [name for batch in inputs for name in batch.names][256:] == [f"one.csv, line {n}" for n in range(2, 8)]


def test_evaluations_tell_no_text(place: Path, watch: Watch) -> None:
    pairs, texts = ("--data", "data/pairs.csv"), ("--data", "data/texts.csv")
    watch.run("evaluate", "--model", "fusion", *pairs, "--update-card", status=0)
    watch.run("evaluate", "--model", "fusion", *pairs, "--report", "gallery", status=0)
    watch.run("evaluate", "texts", "--model", "bert", *texts, "--draws", "10", "--latency", "2", "--search", "1",
              "--queries", "8", "--out", "figures", "--update-card")  # fmt: skip
    watch.run("evaluate", "robustness", "--model", "fusion", *pairs, "--threat", "text", "--limit", "2", "--points",
              "policy", "--out", "figures", "--save", "examples")  # fmt: skip
    watch.run("leaderboard", "figures", "--out", "board.md")
    watch.run("evaluate", "--model", "bert", "--data", "data/one.csv", "--columns", "label=text", status=1)


def test_training_tells_no_text(place: Path, watch: Watch) -> None:
    _write("mixed", "text,label,split", *(f"{TEXT[:50]} {n},1,{s}" for n, s in enumerate(4 * ("train", "val"))),
           f"{TEXTS[3]},1,train", *(f"{TEXT} {n},0,test".replace(", ", " ") for n in range(3)))  # fmt: skip
    recipe = _recipe(BERT, "data/mixed.csv")
    watch.run("fit", "--config", recipe)
    watch.run("predict", "--config", recipe)
    watch.run("test", "--config", recipe)
    Path(recipe).write_text(f"trainer:\n  max_epochs: 1\n bad {TEXT}: [\n", encoding="utf-8")
    watch.run("fit", "--config", recipe)


def test_data_commands_tell_no_text(place: Path, watch: Watch) -> None:
    words = ("--positive-words", "bridge", "--out", "data/proxy.csv")
    watch.run("data", "proxy", "--captions", "data/captions.csv", *words)
    watch.run("data", "corpora", "data/corpora.yaml", "--root", "data", "--out", "data/corpora.csv", status=0)
    label = load_release(BERT).card.labels[0]
    marks = [{"name": "rude", "column": "text", "values": [label]}]
    _yaml("wrong", {"schema_version": 1, "sources": [{"file": "texts.csv", "categories": marks}]})
    watch.run("data", "corpora", "data/wrong.yaml", "--root", "data", "--out", "data/none.csv", status=1)


#: Files that cannot be read as what they are given as, each with the secret where it would be quoted.
BROKEN = {
    "comma.csv": f"image,text,label,split\n0.png,{TEXT}, more,1,test\n",
    "quote.csv": f'image,text,label,split\n0.png,"{TEXT},1,test\n1.png,{SECRET} {SECRET},0,test\n',
    "header.csv": f"{PLAIN},1,test\n{PLAIN} again,0,test\n",
    "alone.csv": f"{SECRET}\nanother {SECRET}\n",
    "split.csv": f"image,text,label,split\n0.png,a,1,{PLAIN}\n",
    "label.csv": f"image,text,label,split\n0.png,a,{PLAIN},test\n1.png,a,with {SECRET} after dark at last,test\n",
    "judged.csv": f"text,labels,judged,split\na,{PLAIN},b,test\n",
    "twice.csv": f"text,{PLAIN},{PLAIN}\na,b,c\n",
    "latin.csv": f"image,text,label,split\n0.png,{PLAIN} \udce9,1,test\n",
    "rows.jsonl": f'{{"text": "{TEXT}", "label": 1}}\n{{"text": "{TEXT}" "label": 0}}\n',
    "keys.jsonl": f'{{"text": "a", "{TEXT}": 1, "{TEXT}": 2}}\n',
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_manifests_are_refused_without_their_texts(name: str, place: Path, watch: Watch) -> None:
    data = f"data/{name}"
    Path(data).write_bytes(BROKEN[name].encode("utf-8", "surrogateescape"))
    for model in ("bert", "fusion"):
        watch.run("evaluate", "--model", model, "--data", data, status=1)
    watch.run("evaluate", "texts", "--model", "bert", "--data", data, "--out", "figures", status=1)
    watch.run("evaluate", "robustness", "--model", "fusion", "--data", data, "--threat", "text", status=1)
    watch.run("data", "proxy", "--captions", data, "--positive-words", "bridge", "--out", "data/none.csv")
    watch.run("fit", "--config", _recipe(BERT, data), status=1)


@pytest.mark.parametrize(
    "content",
    [
        f'summary: "{TEXT}\n',
        f"{TEXT}: [1\n",
        f"text: !!int {TEXT}\n",
        f"text: !{SECRET}-and-more {TEXT}\n",
        f"? [{TEXT}]\n: {{{TEXT}: }}\n",
        f"{TEXT.replace(',', '')}: 1\n{TEXT.replace(',', '')}: 2\n",
        f"schema_version: {TEXT.replace(',', '')}\nname: a\n",
        f"schema_version: 2\nname: [{TEXT.replace(',', '')}]\n{TEXT.replace(',', '')}: 1\n",
        f"schema_version: 2\nname: a\nversion: '1'\nsummary: ''\ncategories: {TEXT.replace(',', '')}\n",
    ],
)
def test_broken_settings_are_refused_without_their_lines(content: str, place: Path, watch: Watch) -> None:
    path = "data/settings.yaml"
    Path(path).write_text(content, encoding="utf-8")
    watch.run("score", "--model", "bert", "--text", "a", "--policy", path, status=1)
    watch.run("evaluate", "robustness", "--model", "bert", "--data", "data/one.csv", "--threat", path, status=1)
    watch.run("verify", "bert", "--budget", path, status=1)
    watch.run("data", "corpora", path, "--root", "data", "--out", "data/none.csv", status=1)
    watch.run("fit", "--config", path)
    for read in (schema.read_json, lambda path: zoo.ModelCard.read(path)):
        with pytest.raises(ZooError) as caught:
            read(Path(path))
        assert SECRET not in str(caught.value)


def _guard() -> Guard:
    clip = load_release(CLIP).model
    assert isinstance(clip, DualEncoder)
    processor = tiny_llava_processor(clip, train_llava_tokenizer([INSTRUCTION, "USER: ASSISTANT:"], 400))
    return Guard(build_tiny_llava(clip, processor, vocabulary_size=400, width=32, layers=1, heads=2), processor, CLIP)


def test_the_guard_tells_no_text(place: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = _guard()
    guard.model.save_pretrained("lvlm")  # type: ignore[operator]
    guard.processor.save_pretrained("lvlm")
    start = ("evaluate", "guard", "--lvlm", "lvlm", "--detector", "clip", "--max-new-tokens", "2")
    pairs = ("--data", "data/pairs.csv", "--columns", "text=text")
    watch.run(*start, *pairs, "--out", "answers.json", "--report", "gallery", status=0)
    watch.run(*start, *pairs, "--question", f"<image> {TEXT}", status=1)
    watch.run(*start, *pairs, "--prompt-template", TEXT, status=1)
    processor = guard.processor
    picture = Image.open("data/0.png")
    wrong: list[Callable[[], object]] = [
        lambda: guard.answer([picture], [f"<image><image> {TEXT}"]),
        lambda: guard.answer([picture, picture], [TEXT]),
        lambda: Guard(guard.model, processor, CLIP, instruction=f"</s> {TEXT}"),
        lambda: Guard(guard.model, processor, CLIP, refusal=f"{TEXT} {{animals}}"),
        lambda: refusal_for([], f"{TEXT} {{0}}"),
        lambda: GuardedCollator(processor).instruct(f"<image> {TEXT}", [True, True]),
        lambda: tiny_llava_processor(load_release(CLIP).model, train_llava_tokenizer([], 300), known=[f"</s>{TEXT}"]),  # type: ignore[arg-type]
    ]
    for call in wrong:
        with pytest.raises(ZooError) as caught:
            call()
        assert SECRET not in str(caught.value)
    monkeypatch.setattr(processor, "chat_template", None)
    with pytest.raises(ZooError, match="no chat template") as caught:
        guard.answer([picture], [TEXT])
    assert SECRET not in str(caught.value)


class _Odd(str):
    """A text that fails in a way that nobody expects."""

    def __len__(self) -> int:
        return str(self).encode("ascii", "strict").__len__()


def test_verdicts_and_the_service_tell_no_text(place: Path, bundles: dict[str, Path]) -> None:
    with zoo.load_scorer("bert") as scorer:
        for verdict in scorer.verdicts(texts=list(TEXTS)):
            assert SECRET not in json.dumps(verdict.to_dict())
    with runtime.serve(bundles[BERT], decoders=1) as service:
        for text in TEXTS:
            assert SECRET not in json.dumps(service.verdict(text=text).to_dict())
        with pytest.raises(ServiceError) as caught:
            service.verdict(text=_Odd(f"{TEXT} \xe9"))
        assert SECRET not in str(caught.value)
        assert SECRET not in str(service.health())


def test_a_tokenizer_that_fails_on_a_text_does_not_quote_it() -> None:
    """Rust's errors quote what they could not cut."""
    release = load_release(BERT)
    codec = TextCodec(release.model.tokenizer_json or "", release.card.text)  # type: ignore[arg-type]

    class Panics:
        def encode_batch(self, texts: list[str]) -> None:
            raise BaseException(f"byte index 1 is not a char boundary; it is inside 'e' (bytes 0..2) of `{texts[0]}`")

    codec._tokenizer = Panics()  # type: ignore[assignment]
    with pytest.raises(ZooError, match="byte index 1 is not a char boundary") as caught:
        codec.encode([TEXT])
    assert SECRET not in str(caught.value)


def test_errors_name_what_was_given_and_not_where_it_lies(place: Path, watch: Watch) -> None:
    card = json.loads(Path("clip/card.json").read_bytes())
    card["files"]["model.safetensors"] = "0" * 64
    Path("clip/card.json").write_text(json.dumps(card), encoding="utf-8")
    here = str(Path.cwd())
    for words in (
        "score --model clip data/0.png",
        "export onnx --model clip --out bundle",
        "export onnx --model none --out bundle",
        "data folder data --out folder.csv",
        "evaluate --model bert --data data/none.csv",
    ):
        assert run(words.split()) == 1
        assert here not in watch.capfd.readouterr().err


def test_a_manifest_of_a_folder_names_its_images_by_their_way_from_it(place: Path) -> None:
    for label in ("good", "bad"):
        Path("photos", label).mkdir(parents=True)
        shutil.copy("data/0.png", Path("photos", label, "0.png"))
    assert run(["data", "folder", "photos", "--out", "lists/photos.csv"]) == 0
    written = Path("lists/photos.csv").read_text(encoding="utf-8")
    assert "../photos/bad/0.png" in written
    assert str(place) not in written


def test_policies_are_still_named_by_what_is_wrong_in_them() -> None:
    data = read_policy("dogs").to_dict()
    assert Policy.from_dict(data).name == "dogs"
    data["categories"][0]["action"] = "blok"
    with pytest.raises(ZooError, match="'blok'"):
        Policy.from_dict(data)
