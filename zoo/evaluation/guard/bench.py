"""The cost of the guard at real size: LLaVA-1.5's classes and sizes with random weights, guarded against unguarded.

Time does not depend on the values of the weights, so none are downloaded. The correction is `flag`: both sides do the
same work for every verdict of the random detector, and the difference is the cost of the guard. It is far below the
noise of whole answers. So the guard's own operations are also timed apart, as a share of the unguarded latency (the
paper reports 7.2 % for its whole method on LLaVA, arXiv 2503.00037).
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from zoo.assets import find_asset
from zoo.contract import schema
from zoo.contract.policy import Policy
from zoo.errors import BadArgumentError
from zoo.evaluation.guard.report import overhead_table
from zoo.evaluation.guard.run import AnswerTime, Overhead, ratios, synchronise, timed, unguarded
from zoo.guard.detector import Detector
from zoo.guard.guard import Guard
from zoo.guard.insertion import INSTRUCTION
from zoo.guard.refusals import REFUSAL
from zoo.models.clip import DualEncoder, clip_config
from zoo.models.tiny_llava import tiny_llava_processor, train_llava_tokenizer
from zoo.registry import create_model, model_entry

#: LLaVA-1.5's vision tower, and its projector's input: the last layer but one.
CLIP, FEATURE_LAYER = "safeclip_vit_l14_336.zeroshot", -2
VOCABULARY = 32064
QUESTION = "USER: <image>\nWhat is shown in this image, and where might it have been taken? ASSISTANT:"
#: Room for activations, cache and the rest of the process beside the weights, in bytes.
MARGIN = 2 * 1024**3


@dataclass(frozen=True)
class Size:
    """Sizes of the Llama, by default those of 7 billion parameters; `clip` is the registered model around the tower."""

    layers: int = 32
    width: int = 4096
    heads: int = 32
    hidden: int | None = None
    clip: str = CLIP

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads) < 1 or self.width % (2 * self.heads):
            raise BadArgumentError(
                f"need at least 1 layer, and a width that is an even multiple of the heads, got {self.layers} layers, "
                f"width {self.width}, {self.heads} heads"
            )

    @property
    def intermediate(self) -> int:
        """Width inside the gated MLP: Llama's 8/3 of the width, rounded up to a multiple of 256, unless given."""
        return self.hidden or -(-8 * self.width // 3 // 256) * 256


def build(size: Size, device: torch.device, dtype: torch.dtype) -> tuple[Any, Guard, int]:
    """The model with random weights, directly in its type, its guard, and how many parameters it has."""
    from transformers import AutoModelForImageTextToText, LlamaConfig, LlavaConfig
    from transformers.initialization import no_init_weights

    clip = create_model(size.clip)
    if not isinstance(clip, DualEncoder):
        raise BadArgumentError(f"clip {size.clip}: the tower of a LLaVA comes from a safeclip_* model")
    processor = tiny_llava_processor(clip, train_llava_tokenizer([INSTRUCTION, REFUSAL, QUESTION], 600))
    vision = clip_config(clip.card).vision_config
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.width,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=4096,
            pad_token_id=processor.tokenizer.pad_token_id,
        ),
        image_token_index=processor.image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
    )
    with torch.device("meta"), no_init_weights():
        parameters = AutoModelForImageTextToText.from_config(config).num_parameters()
    check_memory(parameters * dtype.itemsize, device)
    with device, no_init_weights():  # drawing seven billion numbers would take minutes
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    fill(model)
    # The detector's own tower, as in real use. The release lacks the layer that is not read.
    tower: Any = clip.image_tower
    model.model.vision_tower.load_state_dict(tower.vision_model.state_dict(), strict=False)
    policy = Policy.read(find_asset(model_entry(size.clip).policy))
    return model, Guard(model, processor, Detector(clip, policy), correction="flag"), parameters


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Give every weight a small value: one block of normal numbers over and over, norms 1, biases 0."""
    first = next(model.parameters())
    # A prime number of them, so that no two rows of a matrix are equal.
    numbers = 0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    block = numbers.to(first.device, first.dtype)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
        elif weight.ndim == 1 and "norm" in name:
            weight.fill_(1.0)
        else:
            for part in torch.split(weight.view(-1), len(block)):
                part.copy_(block[: len(part)])


def check_memory(needed: int, device: torch.device) -> None:
    """Raise BadArgumentError if `needed` bytes of weights, with some room, are not free: the system would kill us."""
    free, where = _free_memory(device)
    if free is not None and needed + MARGIN > free:
        raise BadArgumentError(
            f"{needed / 1e9:.1f} GB of weights and {MARGIN / 1e9:.1f} GB beside them do not fit into the "
            f"{free / 1e9:.1f} GB that are free ({where}): take fewer layers, a smaller width, or bfloat16"
        )


def _free_memory(device: torch.device) -> tuple[int | None, str]:
    """The free bytes and where the number comes from; None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], str(device)
    table = Path("/proc/meminfo")
    if not table.is_file():
        return None, ""
    lines = dict(line.split(":", 1) for line in table.read_text(encoding="ascii").splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0]), "MemAvailable of /proc/meminfo"


@dataclass(frozen=True)
class OwnTime:
    """The guard's own operations on one answer: median, 10th and 90th percentile in milliseconds, and their shares."""

    ms: float
    low: float
    high: float
    share_of_prefill: float
    share_of_total: float


@dataclass(frozen=True)
class GuardBench(schema.PlainData):
    """The measured times, and the setting."""

    setting: dict[str, str]
    overhead: list[Overhead]
    own: OwnTime

    def text(self) -> str:
        """Markdown, for people and for a README."""
        own = self.own
        shares = f"{100 * own.share_of_prefill:.3f} % of the prefill, {100 * own.share_of_total:.3f} % of the answer"
        setting = [f"{key}: {value}" for key, value in self.setting.items()]
        alone = f"{own.ms:.3f} ms ({own.low:.3f} to {own.high:.3f}), {shares}."
        alone = f"Decode is of one token. The guard's own operations, timed apart inside the guarded answers: {alone}"
        return "\n".join([*setting, "", *overhead_table(self.overhead), "", alone])


def bench_guard(
    size: Size,
    *,
    rounds: int = 10,
    new_tokens: int = 32,
    threads: int = 2,
    device: str = "cpu",
    dtype: str = "bfloat16",
) -> GuardBench:
    """Time single answers of `new_tokens` tokens, both sides in turn, and the guard's own operations alone.

    Raises BadArgumentError for sizes that cannot form a model, and when the memory for the weights is not free.
    """
    if rounds < 3 or new_tokens < 2 or threads < 1:
        raise BadArgumentError(f"need at least 3 rounds, 2 tokens, 1 thread; got {rounds}, {new_tokens}, {threads}")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise BadArgumentError(f"device {device}: torch {torch.__version__} sees no CUDA GPU here")
    torch.set_num_threads(threads)
    model, guard, parameters = build(size, place, getattr(torch, dtype))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    inputs = dict(guard.processor(images=[image], text=[QUESTION], return_tensors="pt").to(place))
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    pairs: list[tuple[AnswerTime, AnswerTime]] = []
    own: list[float] = []
    for number in track(range(rounds + 1), "Timing", transient=True):  # the first round warms up
        if number % 2 == 0:
            _, off = unguarded(model, guard.processor, inputs | options)
        on, extra = guarded(model, guard, inputs | options)
        if number % 2 == 1:
            _, off = unguarded(model, guard.processor, inputs | options)
        if number:
            assert off is not None  # min_new_tokens
            pairs.append((off, on))
            own.append(extra)
    overhead = ratios(pairs)
    low, middle, high = (1000 * float(value) for value in np.percentile(own, [10, 50, 90]))
    base = {ratio.phase: ratio.off_ms for ratio in overhead}
    setting = {
        "model": f"LLaVA of {parameters / 1e9:.2f} billion random {dtype} weights: {_tower_name(size)}, Llama of "
        f"{size.layers} layers, {size.width} wide, {size.intermediate} inside, {size.heads} heads",
        "task": f"one image and {inputs['input_ids'].shape[1]} tokens in, {new_tokens} tokens out, batch 1, greedy",
        "guard": f"{size.clip}, policy {guard.detector.judge.policy_id}, correction flag",
        "software": f"torch {torch.__version__}, transformers {version('transformers')}, eager",
        "machine": _machine(place, threads),
        "rounds": f"{rounds}, both sides in turn",
    }
    return GuardBench(setting, overhead, OwnTime(middle, low, high, middle / base["prefill"], middle / base["total"]))


@contextmanager
def watched(owner: Any, name: str, device: torch.device) -> Iterator[list[tuple[float, float]]]:
    """Time a method of one object while the context lasts: when each call began and ended, in seconds."""
    method: Callable[..., Any] = getattr(owner, name)
    calls: list[tuple[float, float]] = []

    @functools.wraps(method)
    def timed_method(*args: Any, **options: Any) -> Any:
        synchronise(device)
        start = time.perf_counter()
        result = method(*args, **options)
        synchronise(device)
        calls.append((start, time.perf_counter()))
        return result

    setattr(owner, name, timed_method)
    try:
        yield calls
    finally:
        delattr(owner, name)  # uncovers the method of the class


def guarded(model: Any, guard: Guard, inputs: dict[str, Any]) -> tuple[AnswerTime, float]:
    """The latency of a guarded answer, and the seconds of it that the guard spent by itself.

    Those are the seconds until the model's own `generate` begins, less the vision pass, which the unguarded model
    makes as well.
    """
    inner = model.base_model
    with (
        watched(inner, "get_image_features", model.device) as vision,
        watched(model, "generate", model.device) as language,
    ):
        start = time.perf_counter()
        _, latency = timed(guard.generate, model.device, inputs)
    assert latency is not None  # min_new_tokens
    return latency, language[0][0] - start - sum(end - begin for begin, end in vision)


def _tower_name(size: Size) -> str:
    card = model_entry(size.clip).card
    h, side = card.hparams, card.image.size if card.image else 0
    return f"CLIP of {h['vision_layers']} layers, {h['vision_width']} wide, {side} px in patches of {h['patch_size']}"


def _machine(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return f"{threads} threads on {os.cpu_count()} cores ({platform.machine()}), load average {load:.1f}"
