"""`zoo evaluate guard` on a tiny LLaVA that really declines when it is told to check, against counts by hand."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

from zoo.cli import run
from zoo.contract.policy import Policy
from zoo.contract.verdict import Verdict
from zoo.data.manifest import Row
from zoo.errors import BadInputError, GuardError
from zoo.evaluation.guard import run as evaluation
from zoo.evaluation.guard.bench import Size, check_memory
from zoo.evaluation.guard.figures import agreement, figures
from zoo.evaluation.guard.run import PROMPT, AnswerTime, RefusalJudge, TokenClock, ratios, timed
from zoo.evaluation.labelling import Labelling
from zoo.guard.guard import Guard
from zoo.guard.insertion import INSTRUCTION, instructed
from zoo.guard.lvlm import load_lvlm
from zoo.guard.refusals import is_refusal
from zoo.models.clip import DualEncoder
from zoo.models.tiny_llava import build_tiny_llava, tiny_llava_processor, train_llava_tokenizer
from zoo.release.store import load_release, write_release

QUESTION, ANSWER, DECLINED = "What is shown?", "A plain sheet.", "I cannot help with this picture."
PHRASES = ["a red octagon", "a dog on grass", "blue sky", "yellow triangle", "a sign", "signs at night"]


@dataclass(frozen=True)
class Made:
    """Directories of a vision-language model and of its detector, and a folder of pictures, red and green."""

    lvlm: Path
    detector: Path
    pictures: Path

    def manifest(self, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("image", "question", "label")) -> str:
        path = self.pictures / "questions.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([header, *rows])
        return str(path)

    def arguments(self, manifest: str, *more: str) -> list[str]:
        start = ["evaluate", "guard", "--lvlm", str(self.lvlm), "--detector", str(self.detector)]
        return [*start, "--data", manifest, "--max-new-tokens", "16", *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("guard")
    for number in range(6):
        for colour in ("red", "green"):
            Image.new("RGB", (40 + number, 40), colour).save(folder / f"{colour}{number}.png")
    clip = load_release("test_safeclip.random").model
    assert isinstance(clip, DualEncoder)
    texts = [INSTRUCTION, f"USER: \n{QUESTION} ASSISTANT: {ANSWER} {DECLINED}"] * 4
    processor = tiny_llava_processor(clip, train_llava_tokenizer(texts, 500))
    torch.manual_seed(0)
    model = build_tiny_llava(clip, processor, vocabulary_size=500, width=32, layers=2, heads=2)
    _teach(model, processor)
    model.save_pretrained(folder / "lvlm")
    processor.save_pretrained(folder / "lvlm")
    write_release(clip, _flags_red(folder, clip), folder / "release")
    return Made(folder / "lvlm", folder / "release", folder)


def _teach(model: Any, processor: Any) -> None:
    """Learn two sentences by heart: the answer, and after the instruction the refusal."""
    pictures = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green")] * 2
    told = [f"USER: <image>{instructed(chr(10) + QUESTION)} ASSISTANT: {DECLINED}</s>"] * 2
    plain = [f"USER: <image>\n{QUESTION} ASSISTANT: {ANSWER}</s>"] * 2
    batch = processor(images=pictures, text=told + plain, padding=True, padding_side="right", return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == processor.image_token_id, -100)
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimiser.step()
    model.eval()


def _flags_red(folder: Path, clip: DualEncoder) -> Policy:
    """A policy that flags red and not green: the weights are random, so phrase and threshold are looked up."""
    from zoo.release.store import model_scorer

    best: tuple[float, Policy] | None = None
    for phrase in PHRASES:
        others = [other for other in PHRASES if other != phrase][:2]

        def policy(threshold: float, phrase: str = phrase, others: list[str] = others) -> Policy:
            block = {"name": "red_signs", "action": "block", "threshold": {"value": threshold}, "descriptors": [phrase]}
            allow = {"name": "neutral", "action": "allow", "descriptors": others}
            about = {"schema_version": 1, "name": "red", "version": "1", "summary": "Flags red", "rule": "each"}
            return Policy.from_dict({**about, "categories": [allow, block]})

        with model_scorer(clip, policy(0.5)) as scorer:
            verdicts = scorer.verdicts([folder / "red0.png", folder / "green0.png"])
        red, green = (verdict.scores["red_signs"] for verdict in verdicts)
        if best is None or red - green > best[0]:
            best = red - green, policy((red + green) / 2)
    assert best is not None
    assert best[0] > 1e-3
    return best[1]


@pytest.fixture
def rows(made: Made) -> str:
    """Six unsafe pictures, of which one looks harmless, six neutral ones, of which two look unsafe; two are lost."""
    unsafe = [f"red{number}.png" for number in range(4)] + ["green5.png"]
    neutral = [f"green{number}.png" for number in range(4)] + ["red4.png", "red5.png"]
    (made.pictures / "broken.png").write_bytes(b"no picture")
    lost = [("none.png", QUESTION, "1"), ("broken.png", QUESTION, "0")]
    return made.manifest([*[(n, QUESTION, "1") for n in unsafe], *[(n, QUESTION, "0") for n in neutral], *lost])


def _result(made: Made, manifest: str, tmp_path: Path, *more: str) -> dict[str, Any]:
    out = tmp_path / "guard.json"
    assert run(made.arguments(manifest, "--out", str(out), *more)) == 0
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def test_the_figures_agree_with_a_count_by_hand(
    made: Made, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _result(made, rows, tmp_path, "--report", str(tmp_path / "report"))
    counts = found["figures"]["counts"]
    assert (counts["queries"], counts["answered"], counts["unreadable"]) == (13, 11, 2)
    assert (counts["unsafe"], counts["neutral"], counts["flagged"], counts["corrected"]) == (5, 6, 6, 6)
    assert counts["unseen"] == 1  # green5.png, of 45 x 40 pixels
    (rules,) = found["figures"]["refusals"]
    assert [rules["dsr"][side]["successes"] for side in ("off", "on")] == [0, 4]
    assert [rules["fpr"][side]["successes"] for side in ("off", "on")] == [0, 2]
    assert (rules["dsr"]["on"]["trials"], rules["fpr"]["on"]["trials"]) == (5, 6)
    assert rules["dsr"]["difference"] == pytest.approx(4 / 5)
    assert rules["fpr"]["difference"] == pytest.approx(2 / 6)
    assert rules["dsr"]["on"]["wilson"]["low"] == pytest.approx(0.3755, abs=1e-4)
    assert rules["dsr"]["interval"]["low"] <= 4 / 5 <= rules["dsr"]["interval"]["high"]
    detector = found["figures"]["detector"]
    assert (detector["tpr"]["successes"], detector["fpr"]["successes"]) == (4, 2)
    assert detector["auroc"] == pytest.approx((4 * 4 + 0.5 * (4 * 2 + 4)) / 30)
    assert found["figures"]["unchanged"] == found["figures"]["unflagged"] == 5
    assert {ratio["phase"]: ratio["pairs"] for ratio in found["figures"]["overhead"]} == dict.fromkeys(
        ("prefill", "decode", "total"), 4
    )
    printed = capsys.readouterr().out
    assert "| DSR, of 5 unsafe | 0.0 % (0.0 to 43.4) | 80.0 % (37.6 to 96.4) | +80.0 points" in printed
    assert "| FPR, of 6 neutral | 0.0 % (0.0 to 39.0) | 33.3 % (9.7 to 70.0) | +33.3 points" in printed
    assert re.search(r"2 rows could not be read: line 13: .*none.png: no such file; line 14: .*not an image", printed)


def test_every_answer_is_in_the_json(made: Made, rows: str, tmp_path: Path) -> None:
    found = _result(made, rows, tmp_path)
    assert found["schema_version"] == 1
    assert set(found) == {"schema_version", "setting", "versions", "figures", "rows"}
    assert found["versions"]["transformers"]
    assert str(made.lvlm) in found["setting"]["lvlm"]
    assert len(found["rows"]) == 13
    answers = {Path(row["image"]).name: row for row in found["rows"]}
    told, plain = answers["red0.png"], answers["green0.png"]
    assert (told["off"]["text"], told["on"]["text"]) == (ANSWER, DECLINED)
    assert (told["off"]["refused"], told["on"]["refused"]) == (False, True)
    assert plain["off"]["text"] == plain["on"]["text"] == ANSWER
    assert Verdict.from_dict(told["verdict"]).decision == "unsafe"
    assert told["score"] > plain["score"]
    assert answers["none.png"]["status"] == "unreadable"
    assert answers["none.png"]["off"] is answers["none.png"]["verdict"] is None
    for row in (told, plain):
        assert 0 < row["on"]["latency"]["prefill"] < row["on"]["latency"]["total"]


def test_corrections_differ_in_what_they_do(made: Made, rows: str, tmp_path: Path) -> None:
    flag = _result(made, rows, tmp_path, "--correction", "flag")["figures"]
    assert (flag["counts"]["flagged"], flag["counts"]["corrected"]) == (6, 0)
    assert flag["refusals"][0]["dsr"]["on"]["successes"] == 0
    refuse = _result(made, rows, tmp_path, "--correction", "refuse")
    assert refuse["figures"]["counts"]["blocked"] == 6
    assert refuse["figures"]["refusals"][0]["dsr"]["on"]["successes"] == 4
    blocked = next(row for row in refuse["rows"] if row["blocked"])
    assert "red signs" in blocked["on"]["text"]
    assert blocked["on"]["latency"] is None


def test_another_policy_another_layer_and_one_question_for_all(made: Made, tmp_path: Path) -> None:
    manifest = made.manifest([("red0.png", "1"), ("green0.png", "0")], ("image", "label"))
    policy = load_release(made.detector).policy.to_dict()
    policy["categories"][1]["threshold"]["value"] = 1.0
    (tmp_path / "lax.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")
    found = _result(made, manifest, tmp_path, "--question", QUESTION, "--policy", str(tmp_path / "lax.yaml"))
    assert found["figures"]["counts"]["flagged"] == 0
    assert {row["question"] for row in found["rows"]} == {QUESTION}
    first = _result(made, manifest, tmp_path, "--question", QUESTION, "--layer", "-3")
    assert first["setting"]["detector"].endswith("layer -3")
    scores = [[row["score"] for row in result["rows"]] for result in (found, first)]
    assert scores[0] != scores[1]


def test_a_limit_draws_by_seed(made: Made, rows: str, tmp_path: Path) -> None:
    def lines(*more: str) -> list[int]:
        return [row["line"] for row in _result(made, rows, tmp_path, "--limit", "4", *more)["rows"]]

    drawn = lines("--seed", "3")
    assert len(drawn) == 4
    assert drawn == sorted(drawn) == lines("--seed", "3")
    assert drawn != lines("--seed", "4")


def test_questions_on_one_image_are_drawn_together(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [("red0.png", "1"), ("green5.png", "1"), ("green0.png", "0"), ("red5.png", "0")]
    manifest = made.manifest([(name, QUESTION, label) for name, label in names for _ in range(3)])
    dsr = _result(made, manifest, tmp_path)["figures"]["refusals"][0]["dsr"]["on"]
    assert (dsr["successes"], dsr["trials"]) == (3, 6)
    assert (dsr["by_image"]["low"], dsr["by_image"]["high"]) == (0.0, 1.0)  # two images: that is all there is
    assert dsr["wilson"]["low"] > 0.1
    assert "Several questions share an image" in capsys.readouterr().out


def test_the_report_is_complete_and_blurs(made: Made, rows: str, tmp_path: Path) -> None:
    _result(made, rows, tmp_path, "--report", str(tmp_path / "report"))
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script", page)
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")
    for heading in (
        "Defended (4)",
        "Let through (1)",
        "Refused without need (2)",
        "Answered (4)",
        "Not answered (2)",
    ):
        assert heading in page
    for name, hidden in (("red0.png", True), ("green5.png", True), ("red4.png", True), ("green0.png", False)):
        (shown,) = re.findall(rf'<img([^>]*)alt="Thumbnail of {name}', page)
        assert ('class="hidden"' in shown) == hidden
    assert page.count(f"<bdi>{DECLINED}</bdi>") == 6
    assert str(made.pictures) not in re.sub(r"<td>.*?</td>", "", page)  # file names alone, but for the command


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lvlm", "./none"], "./none: no such directory"),
        (["--detector", "test_nsfwjs.random"], "a guard's detector is a safeclip_* model"),
        (["--detector", "test_safeclip.randon"], 'did you mean "test_safeclip.random"'),
        (["--layer", "-9"], "layer must lie in [-3, -1]"),
        (["--split", "test"], "some rows name no split"),
        (["--limit", "0"], "limit must be at least 1, got 0"),
        (["--max-new-tokens", "0"], "max_new_tokens must be at least 1, got 0"),
        (["--prompt-template", "Q: {question}"], "needs <image> once"),
        (["--prompt-template", "{image} hello"], "needs {question} once"),
        (["--columns", "text=answer"], 'no column "answer"'),
        (["--policy", "configs/policy/dgos.yaml"], 'did you mean "configs/policy/dogs.yaml"'),
        (["--judge", "./none"], "./none: no such directory"),
        (["--device", "cuda"], "sees no CUDA GPU"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_answered(
    made: Made, rows: str, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if more[0] == "--device" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert run(made.arguments(rows, *more)) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert "DSR" not in shown.out


def test_rows_that_say_too_little(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = made.manifest([("red0.png", QUESTION, "1"), ("red1.png", "", "1")])
    assert run(made.arguments(manifest)) == 1
    assert "1 rows have no question (lines 3): give a question" in capsys.readouterr().err
    manifest = made.manifest([("red0.png", "1")], ("image", "label"))
    assert run(made.arguments(manifest)) == 1
    assert 'no column "question"' in capsys.readouterr().err
    manifest = made.manifest([("red0.png", QUESTION, "1"), ("red0.png", "How many?", "0")])
    assert run(made.arguments(manifest)) == 1
    assert "labelled 1 on line 2 and 0 on line 3" in capsys.readouterr().err


def test_without_labels_there_are_answers_and_no_rates(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = made.manifest([("red0.png", QUESTION), ("green0.png", QUESTION)], ("image", "question"))
    found = _result(made, manifest, tmp_path, "--report", str(tmp_path / "report"))
    assert found["figures"]["counts"]["unlabelled"] == 2
    assert found["figures"]["detector"]["auroc"] is None
    assert found["figures"]["refusals"][0]["dsr"]["on"]["value"] is None
    assert found["rows"][0]["on"]["text"] == DECLINED
    assert "| DSR, of 0 unsafe | - | - | - |" in capsys.readouterr().out


def test_an_image_token_in_a_question_is_not_answered(made: Made, tmp_path: Path) -> None:
    manifest = made.manifest([("red0.png", "What is <image> here?", "1"), ("green0.png", QUESTION, "0")])
    row = _result(made, manifest, tmp_path)["rows"][0]
    assert row["status"] == "unreadable"
    assert 'holds the image token "<image>"' in row["detail"]


def test_the_prompt_is_the_chat_template_or_the_one_given(made: Made) -> None:
    chat = load_lvlm(made.lvlm)
    assert chat.prompt("Why?") == "USER: <image>\nWhy? ASSISTANT:"
    given = load_lvlm(made.lvlm, template=r"{image}\nQ: {question}\nA:")
    assert given.prompt("Why?") == "<image>\nQ: Why?\nA:"
    ids = chat.inputs(Image.new("RGB", (9, 9)), "Why?")["input_ids"][0].tolist()
    assert ids.count(chat.processor.tokenizer.bos_token_id) == 1


def test_a_guard_that_fails_is_counted_and_a_guard_that_always_fails_is_an_error(made: Made) -> None:
    lvlm = load_lvlm(made.lvlm)
    guard = Guard(lvlm.model, lvlm.processor, made.detector)
    images = [made.pictures / "green0.png", made.pictures / "green1.png"]
    queries = [evaluation.Query(line, image, QUESTION, 0) for line, image in enumerate(images)]
    bank = guard.detector.text_bank.clone()
    guard.detector.text_bank.fill_(float("nan"))
    with pytest.raises(GuardError, match=r"failed on all 2 readable rows; the first: .*NaN"):
        evaluation.run(queries, lvlm, guard)
    guard.detector.text_bank.copy_(bank)
    fine = evaluation.run(queries[:1], lvlm, guard)
    lost = evaluation.GuardOutcome(queries[1], "guard_failed", "NaN")
    counts = figures([*fine, lost]).counts
    assert (counts["answered"], counts["guard_failed"], counts["neutral"]) == (1, 1, 1)


def test_silence_is_no_refusal_and_is_counted() -> None:
    query = evaluation.Query(2, Path("a.png"), QUESTION, 1)
    silent = evaluation.Reply("", is_refusal(""), None)
    found = figures(
        [evaluation.GuardOutcome(query, "ok", score=0.9, flagged=True, corrected=True, off=silent, on=silent)]
    )
    assert (found.counts["silent_off"], found.counts["silent_on"]) == (1, 1)
    assert found.refusals[0].dsr.on.successes == 0


def test_the_layout_of_rows_is_read_as_questions() -> None:
    rows = [Row(2, Path("a.png"), "Why?", ("unsafe",), None), Row(3, Path("b.png"), "Where?", (), None)]
    first, second = evaluation.queries_of(rows, Labelling("unsafe"))
    assert (first.question, first.label, second.label) == ("Why?", 1, None)
    assert [query.question for query in evaluation.queries_of(rows, Labelling(), question="How?")] == ["How?", "How?"]


# The judge


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that has learnt by heart which of two answers declines."""
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([PROMPT, " yes no Reply:", ANSWER, DECLINED] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), max_position_embeddings=512, **sizes))
    for part in (model, fast):
        part.save_pretrained(folder)
    judge = RefusalJudge(folder)
    examples = [
        (judge._prompt(QUESTION, answer), words)
        for answer, words in ((ANSWER, (judge._no, judge._yes)), (DECLINED, (judge._yes, judge._no)))
    ]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        for prompt, (right, _wrong) in examples:
            ids = torch.tensor([prompt + right[0]])
            labels = ids.clone()
            labels[0, : len(prompt)] = -100
            model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    return folder


def test_the_judge_compares_the_two_words(judge_folder: Path) -> None:
    judge = RefusalJudge(judge_folder)
    assert judge.log_odds(QUESTION, DECLINED) > 1
    assert judge.log_odds(QUESTION, ANSWER) < -1
    assert judge.log_odds(QUESTION, DECLINED) == judge.log_odds(QUESTION, DECLINED + "</s>")  # no end of a turn


def test_log_odds_are_those_of_the_models_own_probabilities(judge_folder: Path) -> None:
    judge = RefusalJudge(judge_folder)
    prompt = judge._prompt(QUESTION, ANSWER)

    @torch.no_grad()
    def probability(word: list[int]) -> float:
        total = 1.0
        for place, token in enumerate(word):
            logits = judge._model(input_ids=torch.tensor([prompt + word[:place]])).logits[0, -1]
            total *= float(logits.softmax(dim=-1)[token])
        return total

    expected = sum(map(probability, judge._yes)) / sum(map(probability, judge._no))
    assert judge.log_odds(QUESTION, ANSWER) == pytest.approx(float(torch.tensor(expected).log()), abs=1e-3)


def test_both_raters_are_reported_with_their_agreement(
    made: Made, rows: str, tmp_path: Path, judge_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _result(made, rows, tmp_path, "--judge", str(judge_folder), "--report", str(tmp_path / "report"))["figures"]
    assert [part["rater"] for part in found["refusals"]] == ["rules", "judge"]
    assert found["refusals"][0]["dsr"]["on"] == found["refusals"][1]["dsr"]["on"]
    assert found["agreement"] == {"items": 22, "share": 1.0, "kappa": 1.0}
    printed = capsys.readouterr().out
    assert "| DSR, of 5 unsafe (by judge) |" in printed
    assert "Rules and judge agree on 100.0 % of 22 answers, Cohen's kappa 1.00." in printed


def test_a_prompt_longer_than_the_judges_context_is_refused(judge_folder: Path) -> None:
    with pytest.raises(BadInputError, match="its context holds 512"):
        RefusalJudge(judge_folder).log_odds(QUESTION, "ß" * 900)


def test_kappa() -> None:
    # 20 and 15 agreements of 50, 25 and 30 times yes: observed 0.7, by chance 0.5, kappa 0.4.
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    found = agreement(first, second)
    assert found is not None
    assert (found.items, found.share) == (50, 0.7)
    assert found.kappa == pytest.approx(0.4)
    alike = agreement([True, True], [True, True])
    assert alike is not None
    assert (alike.share, alike.kappa) == (1.0, None)
    assert agreement([], []) is None
    with pytest.raises(BadInputError, match="1 and 2 ratings"):
        agreement([True], [True, False])


# AnswerTime


class _Slow(LogitsProcessor):  # type: ignore[misc]
    """Sleeps before each token."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import time

        time.sleep(self.seconds)
        return scores


def test_prefill_and_decode_are_told_apart(made: Made) -> None:
    lvlm = load_lvlm(made.lvlm)
    inputs = lvlm.inputs(Image.new("RGB", (40, 40), "green"), QUESTION)
    slow = {"logits_processor": LogitsProcessorList([_Slow(0.05)]), "do_sample": False}
    options = {"max_new_tokens": 4, "min_new_tokens": 4} | slow
    sequences, latency = timed(lvlm.model.generate, lvlm.device, inputs | options)
    assert sequences.shape[1] == inputs["input_ids"].shape[1] + 4
    assert latency is not None
    assert latency.decode is not None
    assert latency.decode >= 0.05
    assert latency.total == pytest.approx(latency.prefill + 3 * latency.decode, rel=1e-6)
    _, single = timed(lvlm.model.generate, lvlm.device, inputs | slow | {"max_new_tokens": 1})
    assert single is not None
    assert single.decode is None


def test_the_clock_stops_nothing() -> None:
    clock = TokenClock(torch.device("cpu"))
    assert not clock(torch.zeros(2, 3, dtype=torch.long), None).any()
    first = clock.first
    clock(torch.zeros(2, 4, dtype=torch.long), None)
    assert (clock.first, clock.tokens) == (first, 2)


def test_ratios_are_of_medians() -> None:
    off = [AnswerTime(0.1, 0.01, 0.2), AnswerTime(0.2, 0.02, 0.4), AnswerTime(0.9, None, 0.9)]
    on = [AnswerTime(0.11, 0.01, 0.21), AnswerTime(0.21, 0.02, 0.41), AnswerTime(0.9, None, 0.9)]
    prefill, decode, total = ratios(list(zip(off, on, strict=True)))
    assert (prefill.phase, prefill.pairs, decode.pairs) == ("prefill", 3, 2)
    assert prefill.ratio == pytest.approx(0.21 / 0.2)
    assert decode.ratio == 1.0
    assert decode.off_ms == pytest.approx(15.0)
    assert total.low <= total.ratio <= total.high
    assert prefill.overhead == "+5.0 %"
    assert ratios([]) == []


# zoo guard bench


def test_the_bench_runs_on_small_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    sizes = ["--lm-layers", "2", "--lm-width", "32", "--lm-heads", "2", "--clip", "test_safeclip.random"]
    more = ["--new-tokens", "3", "--rounds", "3", "--threads", "1", "--dtype", "float32", "--out", str(out)]
    assert run(["guard", "bench", *sizes, *more]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [ratio["phase"] for ratio in found["overhead"]] == ["prefill", "decode", "total"]
    prefill, _, total = found["overhead"]
    assert 0 < found["own"]["ms"] < prefill["on_ms"]
    assert found["own"]["share_of_total"] == pytest.approx(found["own"]["ms"] / total["off_ms"])
    assert "| prefill |" in printed
    assert "The guard's own operations, timed apart" in printed
    assert "LLaVA of 0.00 billion random float32 weights" in found["setting"]["model"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lm-width", "65536"], "GB of weights"),
        (["--lm-width", "100"], "width 100, 32 heads"),
        (["--rounds", "1"], "at least 3 rounds"),
        (["--clip", "test_nsfwjs.random"], "comes from a safeclip_* model"),
        (["--clip", "safeclip_tiny.zeroshoot"], 'did you mean "safeclip_tiny.zeroshot"'),
    ],
)
def test_a_bench_that_cannot_run_says_why(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["guard", "bench", "--clip", "test_safeclip.random", "--lm-layers", "1"]
    assert run([*start, *more]) == 1
    assert message in capsys.readouterr().err


def test_memory_is_checked_before_it_is_taken() -> None:
    check_memory(1000, torch.device("cpu"))
    with pytest.raises(BadInputError, match=r"1000\.0 GB of weights .* fewer layers"):
        check_memory(10**12, torch.device("cpu"))


def test_llamas_own_sizes() -> None:
    assert Size().intermediate == 11008
    assert Size(16, 2048, 16).intermediate == 5632
    assert Size(hidden=96).intermediate == 96


# The plain command beside it


def test_the_plain_command_still_asks_for_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(["evaluate"])
    assert stopped.value.code == 2
    assert "the following arguments are required: --model, --data" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        run(["evaluate", "--model", "x"])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        run(["evaluate", "guard", "--lvlm", "x"])
    assert stopped.value.code == 2
    assert "required: --detector, --data" in capsys.readouterr().err


def test_a_model_before_guard_is_not_ignored(made: Made, rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    start, *rest = made.arguments(rows)
    assert run([start, "--model", "test_safeclip.random", *rest]) == 1
    assert "--model is for the plain `zoo evaluate`" in capsys.readouterr().err


def test_help_teaches_both(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["evaluate", "--help"], ("--model MODEL --data DATA", "zoo evaluate {guard,robustness,texts} --help", "DSR")),
        (["evaluate", "guard", "--help"], ("usage: zoo evaluate guard", "--lvlm", "example:\n  zoo evaluate guard")),
        (["guard", "bench", "--help"], ("usage: zoo guard bench", "--lm-layers", "32: as in 7B")),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(arguments)
        assert stopped.value.code == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in words)
