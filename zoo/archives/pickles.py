"""Pickles of joblib and torch, read without running anything: listed classes become plain data, others are refused."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from zoo.errors import BadDataError, close_match


class Held:
    """An object of a listed class, of which only the name and the attributes are kept."""

    name = ""
    given: tuple[Any, ...] = ()

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise BadDataError(f"a pickled {self.name} should have attributes, and has {type(state).__name__}")
        self.__dict__.update({str(name): value for name, value in state.items()})

    def get(self, attribute: str, kind: type[Any]) -> Any:
        """An attribute of that type. Raises BadDataError."""
        value = self.__dict__.get(attribute)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            found = "none" if attribute not in self.__dict__ else f"one of {type(value).__name__}"
            near = close_match(attribute, self.__dict__)
            raise BadDataError(f"a pickled {self.name} should have {attribute} of {kind.__name__}, has {found}{near}")
        return value


class _Dtype(Held):
    """A numpy.dtype: its letters and, from its state, the order of its bytes."""

    name = "numpy.dtype"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 3 or any(part is not None for part in state[2:5]):
            raise BadDataError("a pickled numpy.dtype has fields, and only numbers are read")
        self.given = (*self.given[:1], str(state[1]))

    def dtype(self) -> np.dtype[Any]:
        letters, order = (*self.given, "<")[:2] if self.given else ("", "")
        if letters not in ("f4", "f8", "i4", "i8", "b1") or order not in ("<", ">", "|", "="):
            raise BadDataError(f"a pickled array of {str(letters)[:20]}, and only numbers are read")
        plain: np.dtype[Any] = np.dtype(letters)
        return plain.newbyteorder(order)


class _Wrapper(Held):
    name = "NumpyArrayWrapper"


def _scalar(dtype: Any, content: Any) -> int | float | bool:
    """A number of numpy's own type."""
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
        raise BadDataError("a pickled number of numpy that has no type")
    value: int | float | bool = np.frombuffer(content, dtype.dtype(), count=1)[0].item()
    return value


#: What numpy and joblib say how numbers lie in the file.
_ARRAYS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar"), _scalar),
    "numpy.dtype": _Dtype,
    "numpy.ndarray": type("ndarray", (Held,), {"name": "numpy.ndarray"}),
    "joblib.numpy_pickle.NumpyArrayWrapper": _Wrapper,
}


def unpickle(content: bytes, classes: Collection[str]) -> Any:
    """What a file of `joblib.dump` holds: numbers, texts, lists, arrays, and `Held` for objects of these classes.

    `classes` are dotted names; nothing of them is imported or called. Arrays are C-contiguous, in the native order of
    bytes. Raises BadDataError, which names the class, for any other, and for what is no such pickle.

    >>> unpickle(content, ["sklearn.svm._classes.LinearSVC"]).get("coef_", np.ndarray).shape
    (1, 20)
    """
    with _refusing("is no pickle of joblib that can be read"):
        return _Reader(io.BytesIO(content), classes).load()


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Make BadDataError of all that a pickle with a wrong opcode comes to."""
    try:
        yield
    except BadDataError:
        raise
    except Exception as problem:
        raise BadDataError(f"{what}: {type(problem).__name__}: {problem}") from None


def _numbers(stream: io.BytesIO, size: int, what: str) -> bytes:
    """The next bytes of a file, which must not end in them."""
    numbers = stream.read(size)
    if len(numbers) != size:
        raise BadDataError(f"ends in {what} of {size:,} bytes, after {len(numbers):,}")
    return numbers


#: Python's own unpickler in Python: the one in C cannot be told of arrays. It is not in the type stubs.
_Python: Any = vars(pickle)["_Unpickler"]


class _Reader(_Python):  # type: ignore[misc]
    dispatch: ClassVar[dict[int, Any]] = dict(_Python.dispatch)

    def __init__(self, stream: io.BytesIO, classes: Collection[str]) -> None:
        super().__init__(stream)
        self._stream = stream
        self._classes = dict(_ARRAYS)
        self._classes |= {name: type("Held", (Held,), {"name": name}) for name in classes}
        # Names of types that are given, such as TfidfVectorizer(dtype=numpy.float64).
        self._classes |= {f"numpy.{kind}": type("Type", (Held,), {"name": kind}) for kind in ("float32", "float64")}

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The holder of a listed class."""
        found = self._classes.get(f"{module}.{name}")
        if found is None:
            raise BadDataError(f"holds an object of {module}.{name}, which is not one of those that are read")
        return found

    def load_build(self) -> None:
        """Set the state of an object; an array's numbers follow in the file where joblib says how they lie."""
        super().load_build()
        if isinstance(self.stack[-1], _Wrapper):
            self.stack.append(self._array(self.stack.pop()))

    dispatch[pickle.BUILD[0]] = load_build

    def _array(self, wrapper: Held) -> np.ndarray[Any, Any]:
        dtype, shape = wrapper.get("dtype", _Dtype).dtype(), wrapper.get("shape", tuple)
        if not all(isinstance(side, int) and side >= 0 for side in shape):
            raise BadDataError(f"a pickled array has the shape {shape}")
        # Since joblib 1.2 a number of bytes comes first, and so many bytes.
        if wrapper.__dict__.get("numpy_array_alignment_bytes") is not None:
            self._stream.read(self._stream.read(1)[0])
        size = dtype.itemsize * int(np.prod(shape, dtype=object))
        numbers = _numbers(self._stream, size, "an array")
        array = np.frombuffer(numbers, dtype).astype(dtype.newbyteorder("="))
        if wrapper.get("order", str) == "F":
            return np.array(array.reshape(shape[::-1]).T, order="C")
        return array.reshape(shape)


#: The number that every file of `torch.save` begins with that is no zip.
_MAGIC = 0x1950A86A20F9469CFC6C

#: The types of numbers by the class of their storage.
_STORAGES = {"torch.FloatStorage": "<f4", "torch.LongStorage": "<i8"}


class _Tensor(Held):
    """A tensor before its storage is read: (storage, first number, shape, strides, ...)."""

    name = "torch.Tensor"


def tensors(content: bytes) -> dict[str, NDArray[Any]]:
    """The tensors of a state dict by their names, from a file of `torch.save` as it was before torch 1.6, no zip.

    Arrays are float32 or int64, and C-contiguous. Raises BadDataError for anything else in it, and naming any class
    that is not one of tensors.
    """
    stream = io.BytesIO(content)
    with _refusing("is no file of torch that can be read"):
        magic, protocol, _, state, keys = (_TorchReader(stream).load() for _ in range(5))
        if (magic, protocol) != (_MAGIC, 1001) or not isinstance(state, OrderedDict):
            raise BadDataError("is no state dict of torch in its form without zip")
        kinds = {one.given[0][2]: _STORAGES[one.given[0][1].name] for one in state.values()}
        storages = {key: _storage(stream, kinds[key]) for key in keys}
        return {str(name): _array(one, storages) for name, one in state.items()}


def _storage(stream: io.BytesIO, kind: str) -> NDArray[Any]:
    """The numbers of the next storage: their count in eight bytes, then they."""
    count, size = int.from_bytes(stream.read(8), "little"), np.dtype(kind).itemsize
    return np.frombuffer(_numbers(stream, size * count, "a tensor"), kind)


def _array(tensor: _Tensor, storages: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """A tensor's numbers, which may lie in another order than its axes. Raises BadDataError outside its storage."""
    (_, _, key, *_), first, shape, strides = tensor.given[:4]
    steps = [(side - 1) * stride for side, stride in zip(shape, strides, strict=True)]
    last = first + sum(steps) if all(shape) else first
    if min(first, *shape, *strides, 0) < 0 or last >= len(storages[key]):
        raise BadDataError(f"holds a tensor {list(shape)} with strides {list(strides)} outside its storage")
    numbers = storages[key][first:]
    size = numbers.itemsize
    return np.array(np.lib.stride_tricks.as_strided(numbers, shape, [size * one for one in strides]), order="C")


class _TorchReader(_Reader):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, _STORAGES)
        self._classes = {name: self._classes[name] for name in _STORAGES}
        self._classes |= {"collections.OrderedDict": OrderedDict, "torch._utils._rebuild_tensor_v2": _Tensor}

    def persistent_load(self, pid: Any) -> Any:
        """What a tensor says of its storage: ("storage", class, key, device, count, None)."""
        return pid
