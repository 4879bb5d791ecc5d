"""InceptionV3 as Keras builds it, as data: the module, the written graph and the renaming of weights walk it alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, TypeVar


@dataclass(frozen=True)
class Conv:
    """A convolution without bias, its batch norm and a ReLU: output channels, rows and columns of the kernel."""

    channels: int
    rows: int
    columns: int
    stride: int = 1
    same: bool = True


@dataclass(frozen=True)
class Fork:
    """Convolutions that all read the same, side by side."""

    arms: tuple[Conv, ...]


#: `average` is 3x3 with stride 1 over what is there of it, `max` 3x3 with stride 2.
Step: TypeAlias = Conv | Fork | Literal["average", "max"]
#: A block: branches that all read the same, and whose channels are put side by side.
Block: TypeAlias = tuple[tuple[Step, ...], ...]


def _square(channels: int, side: int = 1, stride: int = 1, *, same: bool = True) -> Conv:
    return Conv(channels, side, side, stride, same)


def _seven(middle: int) -> Block:
    flat, tall = (1, 7), (7, 1)
    return (
        (_square(192),),
        (_square(middle), Conv(middle, *flat), Conv(192, *tall)),
        (_square(middle), Conv(middle, *tall), Conv(middle, *flat), Conv(middle, *tall), Conv(192, *flat)),
        ("average", _square(192)),
    )


def _five(pooled: int) -> Block:
    return (
        (_square(64),),
        (_square(48), _square(64, 5)),
        (_square(64), _square(96, 3), _square(96, 3)),
        ("average", _square(pooled)),
    )


_WIDE = Fork((Conv(384, 1, 3), Conv(384, 3, 1)))
_LAST: Block = (
    (_square(320),),
    (_square(384), _WIDE),
    (_square(448), _square(384, 3), _WIDE),
    ("average", _square(192)),
)

#: In the order in which Keras numbers the convolutions.
BLOCKS: tuple[Block, ...] = (
    (
        (
            *(_square(32, 3, 2, same=False), _square(32, 3, same=False), _square(64, 3), "max"),
            *(_square(80, same=False), _square(192, 3, same=False), "max"),
        ),
    ),
    *(_five(32), _five(64), _five(64)),
    (
        (_square(384, 3, 2, same=False),),
        (_square(64), _square(96, 3), _square(96, 3, 2, same=False)),
        ("max",),
    ),
    *(_seven(128), _seven(160), _seven(160), _seven(192)),
    (
        (_square(192), _square(320, 3, 2, same=False)),
        (_square(192), Conv(192, 1, 7), Conv(192, 7, 1), _square(192, 3, 2, same=False)),
        ("max",),
    ),
    *(_LAST, _LAST),
)

#: Convolutions of all blocks.
COUNT = 94

Of = TypeVar("Of")


class Builder(Protocol[Of]):
    """What a walk makes of the steps; convolutions are numbered from 0."""

    def conv(self, of: Of, number: int, conv: Conv) -> Of:
        """Convolution, batch norm and ReLU."""

    def average(self, of: Of) -> Of:
        """The average pool of `Step`."""

    def max(self, of: Of) -> Of:
        """The max pool of `Step`."""

    def together(self, parts: Sequence[Of]) -> Of:
        """The channels of all parts side by side."""


def walk(builder: Builder[Of], of: Of) -> Of:
    """Send `of` through all blocks."""
    number = 0

    def step(of: Of, one: Step) -> Of:
        nonlocal number
        if isinstance(one, Fork):
            return builder.together([step(of, arm) for arm in one.arms])
        if isinstance(one, Conv):
            number += 1
            return builder.conv(of, number - 1, one)
        return builder.average(of) if one == "average" else builder.max(of)

    for block in BLOCKS:
        parts = []
        for branch in block:
            part = of
            for one in branch:
                part = step(part, one)
            parts.append(part)
        of = builder.together(parts) if len(parts) > 1 else parts[0]
    return of


def pads(conv: Conv) -> tuple[int, int]:
    """Rows and columns of zeros on each side: kernels have odd sides, and what strides is not padded."""
    return (conv.rows // 2, conv.columns // 2) if conv.same else (0, 0)
