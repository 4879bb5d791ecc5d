"""The guard on tiny models of the real classes: what it sees, what it changes, and that it changes nothing else."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import TextIteratorStreamer

import zoo
from zoo.contract.policy import Policy
from zoo.errors import BadInputError, GuardError
from zoo.guard.detector import Detector
from zoo.guard.guard import Guard
from zoo.guard.insertion import INSTRUCTION, instructed
from zoo.release.store import model_scorer

if TYPE_CHECKING:
    from tests.guard.conftest import Setup

PROMPT = "USER: <image>\nWhat is shown in this image? ASSISTANT:"
CORRECTED = "USER: <image>" + instructed("\nWhat is shown in this image? ASSISTANT:")
SHORT = "USER: <image>\nWhat? ASSISTANT:"
TEXT = "USER: How many dogs are there? ASSISTANT:"


class Calls:
    """Counts how often modules of a model run."""

    def __init__(self, model: Any) -> None:
        self.tower = self.language = 0
        model.base_model.vision_tower.register_forward_hook(self._tower)
        model.base_model.language_model.register_forward_hook(self._language)

    def _tower(self, *_: Any) -> None:
        self.tower += 1

    def _language(self, *_: Any) -> None:
        self.language += 1


def _same(one: Any, other: Any) -> bool:
    return bool(one.keys() == other.keys()) and all(torch.equal(one[key], other[key]) for key in one)


# --- What it sees


def test_verdicts_by_row_and_image(setup: Setup) -> None:
    inputs = setup.inputs(
        [setup.green, setup.red, setup.blue, setup.red], ["<image><image>\nWhich?", TEXT, "<image>\na <image>"]
    )
    screening = setup.guard().screen(**inputs)
    decisions = [[verdict.decision for verdict in row] for row in screening.verdicts]
    assert decisions == [["safe", "unsafe"], [], ["safe", "unsafe"]]
    assert screening.flagged == [True, False, True]
    assert screening.verdicts[0][1].category == "red_signs"


@pytest.mark.parametrize("changes", [{}, {"temperature": 2.5}, {"pooling": "logsumexp"}, {"rule": "argmax"}])
def test_scores_are_those_of_the_released_model(tiny: Setup, changes: dict[str, Any]) -> None:
    """The same picture through `zoo.load_scorer`'s road: uint8 pixels, our resize, the released tower."""
    tiny.policy = Policy.from_dict(tiny.policy.to_dict() | changes)
    pictures = [tiny.red, tiny.green, tiny.noise(0, (32, 32))]
    inputs = tiny.inputs(pictures, [SHORT] * 3)
    ours = [row[0].scores["red_signs"] for row in tiny.guard().screen(**inputs).verdicts]
    scorer = model_scorer(tiny.release, tiny.policy)
    theirs = [verdict.scores["red_signs"] for verdict in scorer.verdicts([np.array(picture) for picture in pictures])]
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("layer", [-3, -2, -1])
@pytest.mark.parametrize("post_layernorm", [False, True])
def test_layer_and_layernorm_are_those_asked_for(tiny: Setup, layer: int, post_layernorm: bool) -> None:
    detector = Detector(tiny.release, tiny.policy, layer=layer, post_layernorm=post_layernorm)
    inputs = tiny.inputs([tiny.red], [SHORT])
    found = Guard(tiny.model, tiny.processor, detector).screen(**inputs).verdicts[0][0].scores["red_signs"]
    tower: Any = tiny.model.base_model.vision_tower
    ours: Any = tiny.release.image_tower
    cls = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[layer][:, 0]
    if post_layernorm:
        cls = ours.vision_model.post_layernorm(cls)
    embedding = torch.nn.functional.normalize(ours.visual_projection(cls), dim=-1)
    bank = tiny.release.embed_phrases(tiny.policy.phrases)
    wanted = (tiny.release.scale() * embedding @ bank.T).softmax(dim=-1)[0, -1].item()
    assert found == pytest.approx(wanted, abs=1e-6)


def test_every_tile_is_judged(tall: Setup) -> None:
    """One tile of five is red; the base view shows a red corner."""
    picture = tall.green.copy()
    picture.paste(tall.red.crop((0, 0, 32, 32)), (32, 32))
    inputs = tall.inputs([picture], [SHORT])

    def score(tiles: Any) -> float:
        detector = Detector(tall.release, tall.policy, tiles=tiles)
        return Guard(tall.model, tall.processor, detector).screen(**inputs).verdicts[0][0].scores["red_signs"]

    solid = tall.guard().screen(**tall.inputs([tall.red], [SHORT])).verdicts[0][0].scores["red_signs"]
    assert score("max") == pytest.approx(solid, abs=1e-6)
    pixels = inputs["pixel_values"]
    assert pixels.shape[1] == 5
    cls = tall.model.base_model.vision_tower(pixels[0], output_hidden_states=True).hidden_states[-2][:, 0]
    scores = Detector(tall.release, tall.policy)(cls)[:, -1]
    assert score("base") == pytest.approx(float(scores[0]), abs=1e-6)
    assert score("mean") == pytest.approx(float(scores.mean()), abs=1e-6)
    assert score("max") == pytest.approx(float(scores.max()), abs=1e-6)


def test_tiles_of_pictures_of_different_shapes(tall: Setup) -> None:
    """3, 4 and 5 tiles are padded to 5 in one batch; whose are whose decides the verdicts."""
    wide, high = tall.plain("red", (64, 32)), tall.plain("green", (32, 96))
    inputs = tall.inputs([wide, high, tall.green], [SHORT, "<image><image>\nBoth? ASSISTANT:"])
    screening = tall.guard().screen(**inputs)
    assert screening.features is not None
    assert screening.features.tiles == [3, 4, 5]
    assert [[verdict.decision for verdict in row] for row in screening.verdicts] == [["unsafe"], ["safe", "safe"]]


def test_a_flagged_tile_outranks_a_higher_score_that_is_not_flagged(tiny: Setup) -> None:
    content = tiny.policy.to_dict()
    neutral, red = content["categories"]
    other = red | {"name": "dogs", "descriptors": ["a dog in a park"], "threshold": {"value": 0.5}}
    content["categories"] = [neutral, red | {"threshold": {"value": 0.2}}, other]
    detector = Detector(tiny.release, Policy.from_dict(content))
    table = torch.tensor([[0.35, 0.35, 0.25, 0.05], [0.30, 0.29, 0.01, 0.40]])
    verdict = detector.verdicts(table, [2])[0]
    assert (verdict.decision, verdict.category) == ("unsafe", "red_signs")


@pytest.mark.parametrize("table", [[[0.2, 0.2, 0.6], [0.2, 0.2, float("nan")]], [[0.2, 0.2, 1.6]]])
def test_scores_that_are_no_probabilities_judge_nothing(tiny: Setup, table: list[list[float]]) -> None:
    """Also where only the base view, the first tile, would decide."""
    detector = Detector(tiny.release, tiny.policy, tiles="base")
    with pytest.raises(GuardError, match="NaN"):
        detector.verdicts(torch.tensor(table), [len(table)])


# --- One vision pass


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
@pytest.mark.parametrize("correction", ["instruct", "refuse", "flag"])
def test_one_vision_pass_to_generate(setup: Setup, correction: Any, options: dict[str, Any]) -> None:
    guard, calls = setup.guard(correction=correction), Calls(setup.model)
    inputs = setup.inputs([setup.red, setup.green], [PROMPT, SHORT])
    guard.generate(**inputs, max_new_tokens=3, **options)
    assert calls.tower == 1


def test_generation_keeps_no_graph(tiny: Setup) -> None:
    kept = []
    tiny.model.base_model.vision_tower.register_forward_hook(lambda *given: kept.append(given[2].last_hidden_state))
    tiny.guard().generate(**tiny.inputs([tiny.red], [PROMPT]), max_new_tokens=2)
    assert [states.requires_grad for states in kept] == [False]


def test_one_vision_pass_to_forward(setup: Setup) -> None:
    guard, calls = setup.guard(), Calls(setup.model)
    corrected = guard.correct(setup.inputs([setup.red, setup.green], [PROMPT, SHORT]))
    setup.model(**corrected.inputs)
    assert (calls.tower, calls.language) == (1, 1)


def test_a_screening_is_not_repeated(setup: Setup) -> None:
    guard, calls = setup.guard(), Calls(setup.model)
    inputs = setup.inputs([setup.red], [PROMPT])
    guard.correct(inputs, guard.screen(**inputs))
    assert calls.tower == 1


def test_phrases_are_embedded_at_construction_alone(setup: Setup) -> None:
    guard = setup.guard()
    setup.release.text_tower.register_forward_hook(_never)
    try:
        guard.generate(**setup.inputs([setup.red], [PROMPT]), max_new_tokens=2)
    finally:
        setup.release.text_tower._forward_hooks.clear()


def _never(*_: Any) -> None:
    raise AssertionError("the text tower ran")


# --- Without an unsafe image nothing changes


GENERATION: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "temperature": 1.5},
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 3},
    {"use_cache": False},
    {"cache_implementation": "static"},
    {"prefill_chunk_size": 7},
]


@pytest.mark.parametrize("options", GENERATION)
@pytest.mark.parametrize("correction", ["instruct", "refuse"])
def test_safe_pictures_are_answered_bit_for_bit(setup: Setup, correction: Any, options: dict[str, Any]) -> None:
    inputs = setup.inputs([setup.green, setup.blue, setup.green], [PROMPT, TEXT, "<image>, <image>\nBoth?"])
    options = options | {"max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True}
    torch.manual_seed(3)
    plain = setup.model.generate(**inputs, **options)
    torch.manual_seed(3)
    guarded = setup.guard(correction=correction).generate(**inputs, **options)
    assert torch.equal(guarded.sequences, plain.sequences)
    assert all(torch.equal(*pair) for pair in zip(guarded.output.scores, plain.scores, strict=True))
    assert guarded.flagged == guarded.corrected == [False] * 3


def test_safe_pictures_give_the_same_logits_and_gradients(setup: Setup) -> None:
    inputs = setup.inputs([setup.green, setup.blue], [PROMPT, SHORT])
    inputs["labels"] = inputs["input_ids"].clone()
    corrected = setup.guard().correct(inputs).inputs

    def run(given: Any) -> tuple[torch.Tensor, ...]:
        setup.model.zero_grad()
        output = setup.model(**given)
        output.loss.backward()
        weight = setup.model.base_model.multi_modal_projector.linear_1.weight
        return output.loss.detach(), output.logits.detach(), weight.grad.clone()

    plain, guarded = run(inputs), run(corrected)
    assert all(torch.equal(*pair) for pair in zip(plain, guarded, strict=True))
    assert float(plain[2].abs().max()) > 0


def test_text_alone_is_untouched(setup: Setup) -> None:
    guard, calls = setup.guard(), Calls(setup.model)
    inputs = setup.inputs(None, [TEXT, "USER: Hi ASSISTANT:"])
    assert _same(guard.correct(inputs).inputs, dict(inputs))
    plain = setup.model.generate(**inputs, max_new_tokens=5)
    output = guard.generate(**inputs, max_new_tokens=5)
    assert torch.equal(output.sequences, plain)
    assert (output.verdicts, output.flagged, calls.tower) == ([[], []], [False, False], 0)


def test_flag_reports_and_changes_nothing(setup: Setup) -> None:
    inputs = setup.inputs([setup.red, setup.green], [PROMPT, SHORT])
    plain = setup.model.generate(**inputs, max_new_tokens=5)
    output = setup.guard(correction="flag").generate(**inputs, max_new_tokens=5)
    assert torch.equal(output.sequences, plain)
    assert (output.flagged, output.corrected) == ([True, False], [False, False])


# --- Instruct


def test_a_corrected_prompt_is_the_one_tokenised_from_scratch(setup: Setup) -> None:
    pictures = [setup.red, setup.green, setup.green, setup.red, setup.red]
    tail = "\nWhich is larger? ASSISTANT:"
    inputs = setup.inputs(pictures, [PROMPT, SHORT, TEXT, f"<image><image><image>{tail}"])
    corrected = setup.guard().correct(inputs)
    fresh = setup.inputs(pictures, [CORRECTED, SHORT, TEXT, f"<image><image><image>{instructed(tail)}"])
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(corrected.inputs[name], fresh[name])
    assert "pixel_values" not in corrected.inputs
    assert corrected.corrected == [True, False, False, True]
    plain = setup.model.generate(**fresh, max_new_tokens=6)
    assert torch.equal(setup.guard().generate(**inputs, max_new_tokens=6).sequences, plain)


@pytest.mark.parametrize(
    ("colours", "corrected"),
    [
        ("rg", "<image>{}\nfirst, then <image>\nsecond"),
        ("gr", "<image>\nfirst, then <image>{}\nsecond"),
        ("rr", "<image>\nfirst, then <image>{}\nsecond"),
    ],
)
def test_one_instruction_a_row_after_the_last_flagged_image(setup: Setup, colours: str, corrected: str) -> None:
    pictures = [{"r": setup.red, "g": setup.green}[colour] for colour in colours]
    inputs = setup.inputs(pictures, ["<image>\nfirst, then <image>\nsecond"])
    fresh = setup.inputs(pictures, [corrected.format("\n" + INSTRUCTION)])
    assert torch.equal(setup.guard().correct(inputs).inputs["input_ids"], fresh["input_ids"])


@pytest.mark.parametrize("options", GENERATION)
def test_generation_options_work_on_mixed_batches(setup: Setup, options: dict[str, Any]) -> None:
    inputs = setup.inputs([setup.green, setup.red], [SHORT, TEXT, PROMPT])
    fresh = setup.inputs([setup.green, setup.red], [SHORT, TEXT, CORRECTED])
    torch.manual_seed(4)
    plain = setup.model.generate(**fresh, max_new_tokens=5, **options)
    torch.manual_seed(4)
    output = setup.guard().generate(**inputs, max_new_tokens=5, **options)
    assert torch.equal(output.sequences, plain)
    copies = options.get("num_return_sequences", 1)
    assert len(output.text) == 3 * copies
    decoded = setup.processor.tokenizer.decode(output.new_tokens(2 * copies), skip_special_tokens=True)
    assert output.text[2 * copies] == decoded


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_is_that_of_the_corrected_text(setup: Setup, side: str) -> None:
    answers = [" A red octagon.</s>", " The second dog, on a pole.</s>"]

    def batch(prompts: list[str]) -> Any:
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        inputs = setup.inputs([setup.red, setup.green], texts, padding_side=side)
        inputs["labels"] = torch.full_like(inputs["input_ids"], -100)
        for row, answer in enumerate(answers):
            length = len(setup.processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
            stop = int(inputs["attention_mask"][row].nonzero()[-1]) + 1
            inputs["labels"][row, stop - length : stop] = inputs["input_ids"][row, stop - length : stop]
        mask = inputs["attention_mask"]
        inputs["position_ids"] = (mask.cumsum(1) - 1) * mask
        return inputs

    corrected, fresh = setup.guard().correct(batch([PROMPT, SHORT])).inputs, batch([CORRECTED, SHORT])
    for name in ("input_ids", "attention_mask", "labels", "position_ids"):
        assert torch.equal(corrected[name], fresh[name]), name
    assert torch.equal(setup.model(**corrected).loss, setup.model(**fresh).loss)


def test_a_review_is_corrected_like_a_block(tiny: Setup) -> None:
    content = tiny.policy.to_dict()
    content["categories"][1]["action"] = "review"
    guard = Guard(tiny.model, tiny.processor, Detector(tiny.release, Policy.from_dict(content)))
    corrected = guard.correct(tiny.inputs([tiny.red], [PROMPT]))
    assert corrected.screening.verdicts[0][0].decision == "review"
    assert torch.equal(corrected.inputs["input_ids"], tiny.inputs([tiny.red], [CORRECTED])["input_ids"])


def test_chat_templates(setup: Setup) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "First?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Second?"}]},
    ]
    prompt = setup.processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = setup.inputs([setup.green, setup.red], [prompt])
    before, _, after = prompt.rpartition("<image>")
    fresh = setup.inputs([setup.green, setup.red], [f"{before}<image>{instructed(after)}"])
    assert torch.equal(setup.guard().correct(inputs).inputs["input_ids"], fresh["input_ids"])


def test_own_instruction(tiny: Setup) -> None:
    corrected = tiny.guard(instruction="Look closely.").correct(tiny.inputs([tiny.red], [PROMPT]))
    fresh = tiny.inputs([tiny.red], [PROMPT.replace("<image>", "<image>\nLook closely.")])
    assert torch.equal(corrected.inputs["input_ids"], fresh["input_ids"])


# --- Refuse


def test_refused_rows_do_not_reach_the_language_model(setup: Setup) -> None:
    guard, calls = setup.guard(correction="refuse"), Calls(setup.model)
    output = guard.generate(**setup.inputs([setup.red, setup.red], [PROMPT, SHORT]), max_new_tokens=3)
    assert output.text == ["I'm sorry, but I can't help with this image, because it appears to show red signs."] * 2
    assert (calls.tower, calls.language, output.output) == (1, 0, None)
    assert int(output.new_tokens(0)[-1]) == 2


@pytest.mark.parametrize("copies", [1, 2])
def test_the_other_rows_are_answered_and_order_is_kept(setup: Setup, copies: int) -> None:
    pictures = [setup.green, setup.red, setup.blue, setup.red, setup.green]
    prompts = [PROMPT, SHORT, TEXT, "<image><image>\nBoth?", SHORT]
    inputs = setup.inputs(pictures, prompts)
    options: dict[str, Any] = {"max_new_tokens": 30, "num_beams": 2, "num_return_sequences": copies}
    output = setup.guard(correction="refuse").generate(**inputs, **options)
    plain = setup.model.generate(**setup.inputs(pictures, prompts), **options)
    width = inputs["input_ids"].shape[1]
    assert output.flagged == output.corrected == [False, True, False, True, False]
    assert torch.equal(output.sequences[:, :width].reshape(5, copies, -1)[:, 0], inputs["input_ids"])
    texts = setup.processor.tokenizer.batch_decode(plain[:, width:], skip_special_tokens=True)
    for row, flagged in enumerate(output.flagged):
        for copy in range(row * copies, (row + 1) * copies):
            assert output.text[copy] == texts[copy] if not flagged else output.text[copy].startswith("I'm sorry")


def test_refusals_have_no_inputs_for_forward(setup: Setup) -> None:
    with pytest.raises(GuardError, match=r"rows \[0\] are refused"):
        setup.guard(correction="refuse").correct(setup.inputs([setup.red, setup.green], [PROMPT, SHORT]))


def test_own_refusal(tiny: Setup) -> None:
    guard = tiny.guard(correction="refuse", refusal="No ({categories}).")
    assert guard.generate(**tiny.inputs([tiny.red], [PROMPT])).text == ["No (red signs)."]


# --- Streaming, compiled models, half precision, later turns


@pytest.mark.parametrize("correction", ["instruct", "refuse", "flag"])
@pytest.mark.parametrize("colour", ["red", "green"])
def test_a_streamer_gets_what_is_answered(setup: Setup, correction: Any, colour: str) -> None:
    streamer = TextIteratorStreamer(setup.processor.tokenizer, skip_prompt=True, timeout=20, skip_special_tokens=True)
    inputs, outputs = setup.inputs([setup.plain(colour)], [PROMPT]), []
    guard = setup.guard(correction=correction)

    def answer() -> None:
        outputs.append(guard.generate(**inputs, max_new_tokens=8, streamer=streamer))

    thread = threading.Thread(target=answer)
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    assert streamed == outputs[0].text[0]
    assert streamed


def test_a_streamer_ends_when_the_guard_fails(tiny: Setup) -> None:
    streamer = TextIteratorStreamer(tiny.processor.tokenizer, skip_prompt=True, timeout=20)
    inputs = tiny.inputs([tiny.red], [PROMPT])
    inputs["pixel_values"][:] = float("nan")
    with pytest.raises(GuardError):
        tiny.guard().generate(**inputs, streamer=streamer)
    assert "".join(streamer) == ""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_judged_in_float32(setup: Setup, dtype: torch.dtype) -> None:
    inputs = setup.inputs([setup.red, setup.green], [PROMPT, SHORT])
    wide = setup.guard().screen(**inputs)
    setup.model.to(dtype)
    guard = setup.guard()
    output = guard.generate(**inputs, max_new_tokens=3)
    assert guard.tower_matches
    assert output.flagged == [True, False]
    for rows in zip(output.verdicts, wide.verdicts, strict=True):
        half, full = (verdict.scores["red_signs"] for row in rows for verdict in row)
        assert half == pytest.approx(full, abs=5e-3)
    features = guard.screen(**inputs).features
    assert features is not None
    assert features.cls.dtype == dtype
    scores = guard.detector(features.cls)
    assert scores.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(guard.detector(features.cls), scores)


@pytest.mark.slow
def test_a_compiled_model(setup: Setup) -> None:
    inputs = setup.inputs([setup.red, setup.green], [PROMPT, SHORT])
    eager = setup.guard()
    logits, sequences = setup.model(**eager.correct(inputs).inputs).logits, eager.generate(**inputs, max_new_tokens=2)
    setup.model = torch.compile(setup.model, backend="eager")
    guard = setup.guard()
    assert torch.equal(guard.generate(**inputs, max_new_tokens=2).sequences, sequences.sequences)
    torch.testing.assert_close(setup.model(**guard.correct(inputs).inputs).logits, logits)


@pytest.mark.slow
def test_a_compiled_forward(tiny: Setup) -> None:
    """Unlike a compiled model, whose `generate` runs the plain one, this also generates compiled."""
    inputs = tiny.inputs([tiny.red, tiny.green], [PROMPT, SHORT])
    eager = tiny.guard().generate(**inputs, max_new_tokens=3)
    tiny.model.forward = torch.compile(tiny.model.forward, backend="aot_eager")
    assert torch.equal(tiny.guard().generate(**inputs, max_new_tokens=3).sequences, eager.sequences)


def test_a_later_turn_of_text_goes_on_from_the_cache(setup: Setup) -> None:
    guard = setup.guard()
    first = guard.generate(
        **setup.inputs([setup.red], [PROMPT]), max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True
    )
    more = setup.inputs(None, [" And how many? ASSISTANT:"])["input_ids"]
    ids = torch.cat([first.sequences, more], dim=1)
    cache = first.output.past_key_values
    calls = Calls(setup.model)
    output = guard.generate(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=5)
    assert torch.equal(output.sequences[:, : ids.shape[1]], ids)
    assert (output.flagged, calls.tower) == ([False], 0)
    fresh = setup.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_encoder_outputs=guard.screen(**setup.inputs([setup.red], [PROMPT])).features.encoder_outputs(),  # type: ignore[union-attr]
        max_new_tokens=5,
    )
    assert torch.equal(output.sequences, fresh)


@pytest.mark.parametrize("new_only", [False, True])
def test_a_later_turn_with_an_image_is_corrected(setup: Setup, new_only: bool) -> None:
    guard = setup.guard()
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4}
    first = guard.generate(**setup.inputs([setup.green], [PROMPT]), **options, return_dict_in_generate=True)

    def turn(rest: str) -> torch.Tensor:
        later = setup.inputs([setup.red], [f" USER: <image>{rest}"])
        return torch.cat([first.sequences, later["input_ids"]], dim=1)

    ids, fresh = turn("\nAnd now? ASSISTANT:"), turn(instructed("\nAnd now? ASSISTANT:"))
    later = setup.inputs([setup.red], [SHORT])
    pictures = {name: later[name] for name in ("pixel_values", "image_sizes") if name in later}
    cached = first.output.past_key_values.get_seq_length()
    corrected = guard.correct(
        {
            "input_ids": ids[:, cached:] if new_only else ids,
            "attention_mask": torch.ones_like(ids),
            "past_key_values": first.output.past_key_values,
            **pictures,
        }
    )
    assert torch.equal(corrected.inputs["input_ids"], fresh[:, cached:] if new_only else fresh)
    assert torch.equal(corrected.inputs["attention_mask"], torch.ones_like(fresh))
    answer = setup.model.generate(**corrected.inputs, max_new_tokens=3)
    both = setup.inputs([setup.green, setup.red], [SHORT + SHORT])
    whole = {name: both[name] for name in ("pixel_values", "image_sizes") if name in both}
    again = setup.model.generate(input_ids=fresh, attention_mask=torch.ones_like(fresh), **whole, max_new_tokens=3)
    assert torch.equal(answer[:, -3:], again[:, -3:])


# --- It fails closed


def test_what_cannot_be_judged_is_not_answered(setup: Setup) -> None:
    guard, calls = setup.guard(), Calls(setup.model)
    inputs = setup.inputs([setup.green, setup.green], [PROMPT, SHORT])
    inputs["pixel_values"][1] = float("nan")
    with pytest.raises(GuardError, match="NaN"):
        guard.generate(**inputs)
    assert calls.language == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pixel_values": None}, BadInputError, "image tokens in input_ids, but no pixel_values"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 4, 32)}, BadInputError, "takes no inputs_embeds"),
        ({"input_ids": None}, BadInputError, r"input_ids must be a tensor \[B, T\], got NoneType"),
        ({"input_ids": [[1, 2]]}, BadInputError, "got list"),
        ({"input_ids": None, "inputs": torch.ones(1, 4)}, BadInputError, "takes no inputs: give the ids as input_ids"),
        ({"mm_encoder_outputs": {"image": 1}}, BadInputError, "takes no mm_encoder_outputs"),
        (
            {"pixel_values_videos": torch.zeros(1)},
            BadInputError,
            "takes no pixel_values_videos: only images are judged",
        ),
        ({"input_ids": torch.tensor([[5, 6]])}, GuardError, "0 image tokens for"),
        ({"input_ids": torch.tensor([[5, 3, 6]])}, GuardError, "the processor left one token an image"),
        ({"input_ids": torch.tensor([[5, 3, 3, 6]])}, GuardError, "2 image tokens for"),
    ],
)
def test_inputs_that_hide_images_are_refused(
    setup: Setup, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    inputs = dict(setup.inputs([setup.green], [PROMPT])) | change
    calls = Calls(setup.model)
    with pytest.raises(error, match=message):
        setup.guard().generate(**inputs, max_new_tokens=2)
    assert calls.language == 0


def test_no_hidden_state_no_answer(tiny: Setup) -> None:
    guard, calls = tiny.guard(), Calls(tiny.model)
    guard.detector.index = 7
    with pytest.raises(GuardError, match="no hidden state 7"):
        guard.generate(**tiny.inputs([tiny.green], [PROMPT]))
    assert calls.language == 0


def test_a_processor_that_does_not_expand_image_tokens(tiny: Setup) -> None:
    """As processors did before transformers 4.45: one `<image>` for all features of an image."""
    inputs = tiny.inputs([tiny.red, tiny.green], [PROMPT, SHORT])
    legacy = tiny.processor.tokenizer([PROMPT, SHORT], padding=True, return_tensors="pt")
    with pytest.raises(GuardError, match="2 image tokens for 32 features of 2 images: the processor left one token"):
        tiny.guard().generate(**legacy, pixel_values=inputs["pixel_values"])


@pytest.mark.parametrize("name", ["past_key_values", "prefix_allowed_tokens_fn", "negative_prompt_ids", "streamer"])
def test_a_batch_that_cannot_be_refused_in_part(tiny: Setup, name: str) -> None:
    calls = Calls(tiny.model)
    whole: dict[str, Any] = {name: _Whatever()}
    with pytest.raises(GuardError, match=f"rows \\[0\\] are refused, but a batch with {name}"):
        tiny.guard(correction="refuse").generate(**tiny.inputs([tiny.red, tiny.green], [PROMPT, SHORT]), **whole)
    assert calls.language == 0


class _Whatever:
    """Stands for a cache (empty), a function or a streamer."""

    def get_seq_length(self) -> int:
        return 0

    def end(self) -> None:
        pass


# --- Which models it takes


def test_it_is_public() -> None:
    assert zoo.Guard is Guard


def test_a_tower_without_cls_token_is_refused(tiny: Setup) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**sizes, image_size=32, patch_size=8),
        text_config=tiny.model.config.text_config,
    )
    with pytest.raises(BadInputError, match=r"SiglipVisionModel, not a CLIP; .*do not have"):
        Guard(LlavaForConditionalGeneration(config), tiny.processor, "test_safeclip.random")


@pytest.mark.parametrize("kind", ["text", "module"])
def test_a_model_without_a_tower_is_refused(tiny: Setup, kind: str) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(tiny.model.config.text_config) if kind == "text" else torch.nn.Linear(1, 1)
    with pytest.raises(BadInputError, match="vision tower" if kind == "text" else "got Linear"):
        Guard(model, tiny.processor, "test_safeclip.random")


def test_a_detector_of_another_width_is_refused(tiny: Setup) -> None:
    other = zoo.create_model("safeclip_tiny.zeroshot")
    with pytest.raises(BadInputError, match=r"width 128, but the vision tower .* is 32 wide"):
        Guard(tiny.model, tiny.processor, Detector(other, tiny.policy))


def test_a_layer_that_the_tower_lacks_is_refused(tiny: Setup) -> None:
    deeper = zoo.create_model("test_safeclip.random", vision_layers=5)
    with pytest.raises(BadInputError, match=r"hidden state 4 \(layer -2 .*ends at 2"):
        Guard(tiny.model, tiny.processor, Detector(deeper, tiny.policy))
    with pytest.raises(BadInputError, match=r"layer must lie in \[-3, -1\]"):
        Detector(tiny.release, tiny.policy, layer=-4)


def test_a_tower_cut_off_behind_the_layer_is_read_there(cut: Setup, tiny: Setup) -> None:
    """The same CLIP with one layer less: hidden state -1 of the cut tower is -2 of the whole one."""
    scores = []
    for setup in (cut, tiny):
        guard = setup.guard()
        assert guard.tower_matches
        scores.append(guard.screen(**setup.inputs([setup.red], [PROMPT])).verdicts[0][0].scores["red_signs"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_another_tower_is_named_loudly(tiny: Setup, caplog: pytest.LogCaptureFixture) -> None:
    assert tiny.guard().tower_matches
    assert not caplog.records
    tower = tiny.model.base_model.vision_tower
    tower.encoder.layers[1].mlp.fc1.weight.data += 1  # behind the layer that is read: no matter
    assert tiny.guard().tower_matches
    tower.encoder.layers[0].mlp.fc1.weight.data *= 1.1
    assert not tiny.guard().tower_matches
    assert "another vision tower than that of LlavaForConditionalGeneration" in caplog.text


def test_a_release_directory_or_name_and_a_policy_file(tiny: Setup, tmp_path: Any) -> None:
    from zoo.release.store import write_release

    write_release(tiny.release, tiny.policy, tmp_path / "release")
    (tmp_path / "policy.yaml").write_text(tiny.policy.to_yaml())
    inputs = tiny.inputs([tiny.red, tiny.green], [PROMPT, SHORT])
    for detector, policy in (
        (tmp_path / "release", None),
        ("test_safeclip.random", tiny.policy),
        ("test_safeclip.random", tmp_path / "policy.yaml"),
    ):
        guard = Guard(tiny.model, tiny.processor, detector, policy=policy)
        assert guard.screen(**inputs).flagged == [True, False]
    with pytest.raises(BadInputError, match="has its policy already"):
        Guard(tiny.model, tiny.processor, Detector(tiny.release, tiny.policy), policy=tiny.policy)


@pytest.mark.parametrize("name", ["test_nsfwjs.random", "test_clip_resnet.random"])
def test_models_without_a_clip_tower_are_no_detectors(tiny: Setup, name: str) -> None:
    with pytest.raises(BadInputError, match="cannot be a guard's detector"):
        Guard(tiny.model, tiny.processor, name)


def test_bad_arguments(tiny: Setup) -> None:
    with pytest.raises(BadInputError, match="correction must be one of instruct, refuse, flag, got 'warn'"):
        tiny.guard(correction="warn")
    with pytest.raises(BadInputError, match="tiles must be one of max, mean, base"):
        Detector(tiny.release, tiny.policy, tiles="min")  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="refusal"):
        tiny.guard(refusal="No {reason}")
    with pytest.raises(BadInputError, match="needs the processor"):
        Guard(tiny.model, tiny.processor.tokenizer, "test_safeclip.random")
    tiny.processor.image_token_id = 9
    with pytest.raises(BadInputError, match="image token is 9, the model's is 3"):
        tiny.guard()


# --- Answers in one line


def test_answer(setup: Setup, tmp_path: Any) -> None:
    guard = setup.guard(correction="refuse")
    pixels, path = np.array(setup.red), tmp_path / "green.png"
    setup.green.save(path)
    answers = guard.answer(
        [setup.green, pixels, None, [path.read_bytes(), setup.red], path],
        [PROMPT, "What is this?", "How many?", "Both?", SHORT],
        max_new_tokens=4,
    )
    assert [answer.flagged for answer in answers] == [False, True, False, True, False]
    assert [len(answer.verdicts) for answer in answers] == [1, 1, 0, 2, 1]
    assert answers[1].corrected
    assert answers[1].text.endswith("red signs.")
    plain = setup.guard().generate(**setup.inputs([setup.green], [PROMPT]), max_new_tokens=4)
    assert answers[0].text == plain.text[0].strip()


def test_bad_questions(tiny: Setup) -> None:
    guard = tiny.guard()
    with pytest.raises(BadInputError, match=r"1 images .* for 2 prompts"):
        guard.answer([tiny.red], [PROMPT, PROMPT])
    with pytest.raises(BadInputError, match='characters with 2 "<image>" for 1 images'):
        guard.answer([tiny.red], ["<image><image>"])
    with pytest.raises(BadInputError, match="not an image"):
        guard.answer([b"nothing"], [PROMPT])
    with pytest.raises(BadInputError, match="num_return_sequences"):
        guard.answer([tiny.red], [PROMPT], num_return_sequences=2)
    tiny.processor.chat_template = None
    with pytest.raises(BadInputError, match="no chat template"):
        guard.answer([tiny.red], ["What?"])
