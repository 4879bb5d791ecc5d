"""The models inside npm's nsfwjs: JavaScript files that hold a TensorFlow.js model, read without JavaScript. No torch.

`model.min.js` exports an object literal, each `group1-shardKofN.min.js` a string of base64.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.archives.archive import Weights
from zoo.archives.inception import COUNT
from zoo.archives.keras import conv_table, dense_table, renamed
from zoo.archives.tfjs import layers_model
from zoo.contract.card import ModelCard
from zoo.errors import BadDataError

#: The folder of the archive that holds each architecture.
FOLDERS = {"nsfwjs_mobilenet_v2": "mobilenet_v2", "nsfwjs_inception_v3": "inception_v3"}
_MODELS = "package/dist/models"


def convert(card: ModelCard, members: Mapping[str, bytes]) -> Weights:
    """The weights of a card's model. Raises BadDataError for members that are not what is described above."""
    folder = f"{_MODELS}/{FOLDERS[card.architecture]}"
    table = mobilenet_table() if card.architecture == "nsfwjs_mobilenet_v2" else inception_table()
    return Weights(renamed(read_package(members, folder), table))


def read_package(members: Mapping[str, bytes], folder: str) -> dict[str, NDArray[np.float32]]:
    """The Keras weights of the model in a folder of the archive. Raises BadDataError naming the member at fault."""

    def script(name: str) -> tuple[str, str]:
        path = f"{folder}/{name}.min.js"
        if path not in members:
            raise BadDataError(f"{path} is missing; {', '.join(sorted(members))} are there")
        return members[path].decode("utf-8", "replace"), path

    def shard(name: str) -> bytes:
        return exported_bytes(*script(name))

    text, path = script("model")
    return layers_model(exported_object(text, path), shard, path)


#: Strings as JSON has them, numbers, the words and punctuation of a minified object literal.
_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\\n]|\\["\\/bfnrtu])*")"""
    r"""|(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"""
    r"""|(?P<truth>![01])|(?P<null>null)|(?P<key>[A-Za-z_$][\w$]*(?=:))|(?P<mark>[][{},:])"""
)
_OBJECT = re.compile(r"\.exports=(?=\{)")
_STRING = re.compile(r'\.exports="([A-Za-z0-9+/=]*)"')


def exported_object(text: str, where: str) -> Any:
    """The one object literal that a script exports, as JSON would give it. Raises BadDataError if there is none.

    >>> exported_object('n.exports={a:!0,"b":[.5,null]}},{}]', "model.min.js")
    {'a': True, 'b': [0.5, None]}
    """
    begins = [match.end() for match in _OBJECT.finditer(text)]
    if len(begins) != 1:
        raise BadDataError(f"{where} exports {len(begins)} object literals, expected one")
    place, depth, parts = begins[0], 0, list[str]()
    while not parts or depth:
        token = _TOKEN.match(text, place)
        if token is None:
            raise BadDataError(
                f"{where} is no object literal of plain values at character {place}: {text[place:][:20]!r}"
            )
        parts.append(_as_json(token))
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
        place = token.end()
    try:
        return json.loads("".join(parts))
    except ValueError as problem:
        raise BadDataError(f"{where} is no object literal of plain values: {problem}") from None


def _as_json(token: re.Match[str]) -> str:
    if token.lastgroup == "number":
        return repr(float(token[0])) if re.search("[.eE]", token[0]) else token[0]
    if token.lastgroup == "key":
        return f'"{token[0]}"'
    return {"!0": "true", "!1": "false"}.get(token[0], token[0])


def exported_bytes(text: str, where: str) -> bytes:
    """The bytes of the one base64 string that a script exports. Raises BadDataError if there is none."""
    found = _STRING.findall(text)
    if len(found) != 1:
        raise BadDataError(f"{where} exports {len(found)} strings of base64, expected one")
    try:
        return base64.b64decode(found[0], validate=True)
    except binascii.Error as problem:
        raise BadDataError(f"{where} is no base64: {problem}") from None


def mobilenet_table() -> dict[str, str]:
    """Keras' names of the MobileNetV2's weights, by the names in `zoo.models.mobilenet.Nsfwjs`."""
    table = conv_table("backbone.conv_stem.first_conv", "Conv1", "bn_Conv1")
    table |= _block_table("backbone.conv_stem", "expanded_conv")
    for block in range(1, 17):
        prefix, name = f"backbone.layer.{block - 1}", f"block_{block}"
        table |= conv_table(f"{prefix}.expand_1x1", f"{name}_expand", f"{name}_expand_BN")
        table |= _block_table(prefix, name)
    return table | conv_table("backbone.conv_1x1", "Conv_1", "Conv_1_bn") | _head_table()


def _block_table(prefix: str, name: str) -> dict[str, str]:
    """Names of the depthwise and projecting convolutions that every V2 block ends with."""
    depthwise, project = f"{name}_depthwise", f"{name}_project"
    table = conv_table(f"{prefix}.conv_3x3", depthwise, f"{depthwise}_BN", depthwise=True)
    return table | conv_table(f"{prefix}.reduce_1x1", project, f"{project}_BN")


def inception_table() -> dict[str, str]:
    """Keras' names of the InceptionV3's weights, by the names in `zoo.models.inception.NsfwjsInception`."""
    table: dict[str, str] = {}
    for number in range(COUNT):
        names = f"conv2d_{number + 1}", f"batch_normalization_{number + 1}"
        table |= conv_table(f"convolutions.{number}", *names, gamma=False)
    return table | _head_table()


def _head_table() -> dict[str, str]:
    places = ("head.0", "dense_1"), ("head.3", "dense_2"), ("head.6", "dense_3")
    return {ours: theirs for place, layer in places for ours, theirs in dense_table(place, layer).items()}
