"""What the TensorRT runtime needs of the GPU: its name and architecture, and buffers that are pinned on the host.

CUDA through `cuda-bindings`, NVIDIA's own; no torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import IncompatibleBundleError, MissingDependencyError


@dataclass(frozen=True)
class LocalGpu:
    """A GPU of this machine: its name, and its architecture as TensorRT names it, `SM86` for CUDA's 8.6."""

    name: str
    capability: str


def cudart() -> Any:
    """CUDA's runtime functions. Raises MissingDependencyError without `cuda-bindings`."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise MissingDependencyError("cuda-bindings is not installed: pip install 'safety-zoo[cuda]'") from None
    return runtime


def local_gpu() -> LocalGpu:
    """The first GPU. Raises IncompatibleBundleError, with CUDA's own message, if there is none."""
    cuda = cudart()
    if not call(cuda.cudaGetDeviceCount)[0]:
        raise IncompatibleBundleError("CUDA sees no GPU")
    kinds = cuda.cudaDeviceAttr
    wanted = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
    major, minor = (call(cuda.cudaDeviceGetAttribute, attribute, 0)[0] for attribute in wanted)
    name = call(cuda.cudaGetDeviceProperties, 0)[0].name
    return LocalGpu(name.decode() if isinstance(name, bytes) else str(name), f"SM{major}{minor}")


def gpu_here() -> LocalGpu | None:
    """The first GPU; None without one, or without the library that finds it."""
    try:
        return local_gpu()
    except (IncompatibleBundleError, MissingDependencyError):
        return None


def cuda_versions() -> dict[str, str]:
    """The versions, such as 13.4, of CUDA's runtime and the newest that the GPU's driver knows. Empty without CUDA."""
    try:
        cuda = cudart()
    except MissingDependencyError:
        return {}
    versions = {"cuda": call(cuda.cudaRuntimeGetVersion)[0], "cuda-driver": call(cuda.cudaDriverGetVersion)[0]}
    return {name: f"{number // 1000}.{number % 1000 // 10}" for name, number in versions.items() if number}


def call(function: Any, *arguments: Any) -> tuple[Any, ...]:
    """The results of a CUDA function without its status. Raises IncompatibleBundleError if that is an error."""
    status, *results = function(*arguments)
    if int(status) != 0:
        raise IncompatibleBundleError(f"CUDA: {function.__name__} answered {status.name}; has this machine a GPU?")
    return tuple(results)


class Buffer:
    """Memory for one tensor on the GPU and its pinned twin on the host; grows, never shrinks."""

    def __init__(self) -> None:
        self.cuda = cudart()
        self.device, self._host, self._room = 0, 0, 0

    def upload(self, array: NDArray[Any], stream: int) -> None:
        """Start copying an array to the GPU. The array may be changed afterwards."""
        array = np.ascontiguousarray(array)
        self.reserve(array.nbytes)
        self._pinned(array.shape, array.dtype)[...] = array
        to_device = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self.cuda.cudaMemcpyAsync, self.device, self._host, array.nbytes, to_device, stream)

    def download(self, shape: Sequence[int], dtype: np.dtype[Any], stream: int) -> NDArray[Any]:
        """Start copying a tensor to the host: filled when the stream is done, overwritten by the next copy."""
        array = self._pinned(shape, dtype)
        to_host = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self.cuda.cudaMemcpyAsync, self._host, self.device, array.nbytes, to_host, stream)
        return array

    def reserve(self, size: int) -> None:
        """Make room for `size` bytes; the content of the buffer is lost when it grows."""
        if size > self._room:
            self.close()
            (self.device,) = call(self.cuda.cudaMalloc, size)
            (self._host,) = call(self.cuda.cudaHostAlloc, size, 0)
            self._room = size

    def close(self) -> None:
        """Give the memory back."""
        if self.device:
            call(self.cuda.cudaFree, self.device)
        if self._host:
            call(self.cuda.cudaFreeHost, self._host)
        self.device, self._host, self._room = 0, 0, 0

    def _pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = (ctypes.c_uint8 * size).from_address(self._host)
        return np.ndarray(tuple(shape), dtype, buffer=memoryview(memory))
