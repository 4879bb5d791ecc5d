"""`zoo export triton`: a bundle's engine as a model of a Triton Inference Server's model repository.

MODEL_REPOSITORY/NAME/config.pbtxt, labels.txt and 1/model.onnx (or model.plan), with card, policy, tokenizer and
manifest beside the model, so that a client can prepare inputs and judge scores as the runtime does.

The text bank of a zero-shot model is an input with a default. Triton's onnxruntime back end knows such inputs as
optional ones and allows them only where `max_batch_size` is 0 (`ModelInstanceState::ValidateInputs` in its source). So
with batching the bank is the default in the graph, replaced for another policy; without batching, each request may
bring one. A plan of TensorRT must have the phrases built in (`zoo export tensorrt --text-bank constant`): its back end
knows no optional inputs, and where it batches every input is cut into a batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import onnx
from onnx import numpy_helper

from export.bundle.manifest import Device, Engine, TensorSpec
from export.bundle.rebuild import runs_anywhere
from export.bundle.store import Bundle, read_bundle
from export.runtime import text_bank
from export.runtime.tensorrt import read_report
from zoo.contract.card import TextInput
from zoo.contract.policy import AnyPolicy
from zoo.errors import BadArgumentError, IncompatibleBundleError
from zoo.files.writing import CARD, MANIFEST, POLICY, TOKENIZER, new_directory, write_file
from zoo.judging.judge import AnyJudge, bind

#: Fields by name, in order. A string that starts with "@" is the name of an enumeration's value.
Message: TypeAlias = dict[str, Any]


def pbtxt(message: Message, indent: str = "") -> str:
    """The text of a message: one line for each plain field, a block for each message, lists of messages repeated."""
    lines = []
    for name, value in message.items():
        several = isinstance(value, list) and value and isinstance(value[0], dict)
        for one in value if several else [value]:
            if isinstance(one, dict):
                lines.append(f"{indent}{name} {{\n{pbtxt(one, indent + '  ')}{indent}}}\n")
            else:
                plain = one[1:] if str(one).startswith("@") else json.dumps(one, ensure_ascii=False)
                lines.append(f"{indent}{name}: {plain}\n")
    return "".join(lines)


CONFIG, LABELS = "config.pbtxt", "labels.txt"
BACKENDS = {"onnx": ("onnxruntime", "model.onnx"), "tensorrt": ("tensorrt", "model.plan")}
#: What a version holds; the weights of an ONNX file may have a file of their own.
_VERSION = tuple(
    f"[0-9]*/{name}" for name in (*(f for _, f in BACKENDS.values()), "*.onnx.data", CARD, POLICY, TOKENIZER, MANIFEST)
)
_TYPES = {"uint8": "@TYPE_UINT8", "int64": "@TYPE_INT64", "bool": "@TYPE_BOOL", "float32": "@TYPE_FP32"}


def export_triton(
    folder: Path,
    repository: Path,
    *,
    engine: str | None = None,
    policy: AnyPolicy | None = None,
    name: str | None = None,
    version: int = 1,
    device: Device | None = None,
    instances: int = 1,
    max_batch: int | None = None,
    delay_us: int = 2000,
    queue: int = 1024,
    overwrite: bool = False,
) -> Path:
    """Write a bundle's engine into a model repository and return the model's directory.

    `engine` is one of the bundle's (its first of onnxruntime when None), `policy` another than the bundle's own.
    `instances` run at once on `device`. Requests are gathered to `max_batch` (the engine's largest when None) for at
    most `delay_us` microseconds, and refused when `queue` of them wait; with `max_batch` 0 nothing is gathered. A
    second `version` joins the first when inputs, outputs and settings are the same.

    Raises what `read_bundle` raises; BadArgumentError for an unknown engine, numbers out of range, a name that cannot
    be a directory's, and a model that exists already; IncompatibleBundleError for an engine that Triton cannot run.
    """
    bundle = read_bundle(folder)
    chosen = _engine(bundle, engine)
    name = name or bundle.card.name
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise BadArgumentError(
            f'"{name}" cannot name a model: use letters, digits, ".", "_" and "-", and do not begin with a dot'
        )
    largest = chosen.batch[2] if max_batch is None else max_batch
    _check(chosen, largest, instances, delay_us, queue, version)
    place = device or chosen.runs_on[0]
    if place not in chosen.runs_on:
        raise IncompatibleBundleError(f'engine "{chosen.name}" runs on {" or ".join(chosen.runs_on)}, not on {place}')
    config = _Config(bundle, chosen, policy, largest)
    text = config.text(name, place, instances, delay_us, queue)
    model = repository / name
    if model.is_dir() and not overwrite:
        _same_settings(model, text, config.labels)
        with new_directory(model / str(version)) as one:
            config.write_version(one)
        return model
    with new_directory(model, overwrite=overwrite, ours=(CONFIG, LABELS, *_VERSION)) as whole:
        write_file(whole / CONFIG, text)
        write_file(whole / LABELS, config.labels)
        (whole / str(version)).mkdir()
        config.write_version(whole / str(version))
    return model


class _Config:
    """The configuration of one engine and policy for Triton."""

    def __init__(self, bundle: Bundle, engine: Engine, policy: AnyPolicy | None, max_batch: int) -> None:
        self.bundle, self.engine, self.max_batch = bundle, engine, max_batch
        self.judge = bundle.judge if policy is None else bind(bundle.card, policy)
        self.labels = "".join(" ".join(output.split()) + "\n" for output in self.judge.outputs)
        # Triton allows optional inputs, which text banks are, in ONNX without batching alone.
        self.inputs = [spec for spec in bundle.manifest.inputs if not spec.optional]
        brought = engine.kind == "onnx" and not max_batch
        self.banks = [spec for spec in bundle.manifest.inputs if spec.optional and brought]

    def text(self, name: str, device: Device, instances: int, delay_us: int, queue: int) -> str:
        """The text of config.pbtxt."""
        backend, file = BACKENDS[self.engine.kind]
        message: Message = {
            "name": name,
            "backend": backend,
            "default_model_filename": file,
            "max_batch_size": self.max_batch,
            "input": [self._input(spec) for spec in (*self.inputs, *self.banks)],
            "output": [self._output("logits"), self._output("scores")],
        }
        if self.max_batch:
            waiting = {"max_queue_size": queue}
            message["dynamic_batching"] = {"max_queue_delay_microseconds": delay_us, "default_queue_policy": waiting}
        message["instance_group"] = {"count": instances, "kind": {"cpu": "@KIND_CPU", "cuda": "@KIND_GPU"}[device]}
        message["model_warmup"] = [self._warm_up(size) for size in sorted({1, max(1, self.max_batch)})]
        return _contract(self) + pbtxt(message)

    def write_version(self, folder: Path) -> None:
        """Write the model, and what a client needs to prepare its inputs and to judge its scores."""
        _, file = BACKENDS[self.engine.kind]
        if self.engine.kind == "onnx":
            for other in self.engine.files[1:]:  # external data, found by its name
                self.bundle.files.copy(other, folder / other)
        if self.judge.policy_id == self.engine.embedded or not self.bundle.card.bank_names:
            self.bundle.files.copy(self.engine.files[0], folder / file)
        else:
            _write_with_banks(self.bundle, self.engine, self.judge, folder / file)
        write_file(folder / MANIFEST, (self.bundle.folder / MANIFEST).read_bytes())
        for extra in (CARD, TOKENIZER):
            if self.bundle.files.has(extra):
                self.bundle.files.copy(extra, folder / extra)
        write_file(folder / POLICY, self.judge.policy.to_yaml())

    def sides(self) -> str:
        """The image sizes that the engine takes, in words."""
        if self.engine.kind != "tensorrt" or self.bundle.card.image is None:
            return "any H and W"
        least, _, largest = read_report(self.bundle.folder / self.engine.files[0], self.bundle.files).profiles["image"]
        return f"H and W from {least[1]} to {largest[1]}"

    def _dims(self, shape: Sequence[int | str], **sides: int) -> list[int]:
        """A shape, -1 where a side may vary; Triton leaves the batch out where it batches."""
        dims = [sides.get(side, -1) if isinstance(side, str) else side for side in shape]
        return dims[1:] if self.max_batch else dims

    def _input(self, spec: TensorSpec) -> Message:
        dims = self._dims(spec.shape)
        message: Message = {"name": spec.name, "data_type": _TYPES[spec.dtype], "dims": dims or [1]}
        if not dims:  # Triton has no scalars: one value for each item travels as [B, 1]
            message["reshape"] = {"shape": []}
        return message | ({"optional": True} if spec.optional else {})

    def _output(self, name: str) -> Message:
        dims = self._dims(["batch", len(self.judge.outputs)])
        return {"name": name, "data_type": "@TYPE_FP32", "dims": dims, "label_filename": LABELS}

    def _warm_up(self, batch: int) -> Message:
        side = self.bundle.card.image.size if self.bundle.card.image else 1
        inputs: list[Message] = []
        for spec in self.inputs:
            dims = self._dims(spec.shape, batch=1, height=side, width=side, tokens=1) or [1]
            value = {"data_type": _TYPES[spec.dtype], "dims": dims, "zero_data": True}
            inputs.append({"key": spec.name, "value": value})
        return {"name": f"batch of {batch}", "batch_size": batch, "inputs": inputs}


def _engine(bundle: Bundle, name: str | None) -> Engine:
    engines = bundle.manifest.engines
    chosen = bundle.manifest.engine(name) if name else next((e for e in engines if e.kind == "onnx"), engines[0])
    if chosen.kind not in BACKENDS:
        raise IncompatibleBundleError(
            f'engine "{chosen.name}" is of {chosen.kind}, and Triton is configured for {" and ".join(BACKENDS)} only: '
            f"{runs_anywhere(bundle.manifest, bundle.folder)}"
        )
    if any("rtx" in package for package in chosen.versions):
        raise IncompatibleBundleError(
            f'engine "{chosen.name}" was built by TensorRT for RTX, whose plans Triton does not read: '
            "pip install 'safety-zoo[tensorrt]' and build it with NVIDIA's tensorrt, in the version of your Triton"
        )
    if chosen.kind == "tensorrt":
        report = read_report(bundle.folder / chosen.files[0], bundle.files)
        as_input = sorted(report.profiles.keys() & set(bundle.card.bank_names))
        if as_input or report.stripped:
            phrases = f"takes its phrases as an input ({', '.join(as_input)})"
            what = phrases if as_input else "has no weights in its plan"
            raise IncompatibleBundleError(
                f'engine "{chosen.name}" {what}, which Triton cannot give it: build it with `zoo export tensorrt '
                "--text-bank constant`, and without stripping its weights"
            )
    return chosen


def _check(engine: Engine, max_batch: int, instances: int, delay_us: int, queue: int, version: int) -> None:
    if min(instances, queue, version) < 1 or min(max_batch, delay_us) < 0:
        raise BadArgumentError(
            "instances, queue and version must be at least 1, max_batch and delay_us at least 0, "
            f"got {instances}, {queue}, {version}, {max_batch} and {delay_us}"
        )
    if engine.kind == "tensorrt" and not engine.batch[0] <= max(1, max_batch) <= engine.batch[2]:
        least, _, largest = engine.batch
        raise BadArgumentError(f'engine "{engine.name}" takes batches of {least} to {largest}, not of {max_batch}')


def _same_settings(model: Path, config: str, labels: str) -> None:
    """Raise BadInputError unless another version may join those of a model."""
    for file, wanted in ((CONFIG, config), (LABELS, labels)):
        path = model / file
        if not path.is_file() or path.read_text(encoding="utf-8") != wanted:
            raise BadArgumentError(
                f"{path} differs, and all versions of a model share one: "
                "give `name`, or `overwrite` to replace the model with all its versions"
            )


def _write_with_banks(bundle: Bundle, engine: Engine, judge: AnyJudge, path: Path) -> None:
    """Write an ONNX graph whose default text banks are those of a policy."""
    if engine.kind != "onnx":
        raise IncompatibleBundleError(
            f'engine "{engine.name}" has the phrases of {engine.embedded} built in, and {judge.policy_id} was asked '
            "for: export a bundle of a release with that policy, and build the engine in it"
        )
    named = zip(bundle.card.bank_names, judge.zero_shot_policies, strict=True)
    banks = {name: numpy_helper.from_array(text_bank(bundle, one), name) for name, one in named}
    graph = onnx.load_from_string(bundle.files.read(engine.files[0]))
    for tensor in [one for one in graph.graph.initializer if one.name in banks]:
        graph.graph.initializer.remove(tensor)
    graph.graph.initializer.extend(banks.values())
    onnx.save(graph, path)


def _texts(text: TextInput) -> list[str]:
    """What clients send of texts."""
    length = "T" if text.variable_length else str(text.context_length)
    shared = [f"  Only requests of one T share a batch; fill up to one of a few, at most {text.context_length}."]
    if text.features == "tfidf":
        return [
            f"input_ids, term_weights: int64 and float32 [B, {length}], by `zoo.inputs.terms.codec_of` with",
            f"  VERSION/{TOKENIZER}. Zeros for no text, and behind the terms.",
            *shared,
        ]
    return [
        f"input_ids, attention_mask: int64 [B, {length}], by VERSION/{TOKENIZER} after",
        "  `zoo.inputs.text.clean`; control tokens that a user typed are ordinary characters. Zeros for no text.",
        *(shared if text.variable_length else []),
    ]


def _contract(config: _Config) -> str:
    """The inputs and outputs as comments for clients: Triton's inputs do not tell colour, order or cleaning."""
    card = config.bundle.card
    lines = [f"{card.name}, written by `zoo export triton`. What a client sends (see `Scorer.prepare`):"]
    if card.image is not None:
        size, how = card.image.size, card.image.resize.replace("_", " ")
        lines += [
            f"image: uint8 [B, H, W, 3], RGB, upright (EXIF applied), transparency on white; {config.sides()}.",
            f"  The graph resizes ({how}, {card.image.interpolation}) and normalises. Only requests of one H and W",
            f"  share a batch, so send [{size}, {size}] (`zoo.inputs.image.load`) where you can.",
        ]
    if card.reads_text and card.text is not None:
        lines += _texts(card.text)
    if "image_present" in card.input_names:
        lines.append(
            f"image_present: bool [B{', 1' if config.max_batch else ''}]; false, with a blank image, for no image."
        )
    lines += [
        f"A client gets logits and scores, float32 [B, N], columns as in {LABELS}. The decision is not in the graph:",
        f"  `bind(card, policy).verdicts(scores)` of zoo.judging.judge, with VERSION/{CARD} and VERSION/{POLICY}.",
    ]
    if card.bank_names:
        how = "an optional input of each request" if config.banks else "in the model"
        lines.append(f"The embedded phrases ({', '.join(card.bank_names)}) are {how}.")
    return "".join(f"# {line}\n" for line in lines) + "\n"
