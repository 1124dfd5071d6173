"""What this machine offers the CUDA backend: its plugin, devices, cuBLASLt; and the choice of a device.

Nothing here imports torch, and nothing is loaded that is not asked for: the driver is only opened where there
is a plugin to use it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PLUGIN = "libtaco_cuda.so"
CUBLASLT = "libcublasLt.so.13"
OLDEST = (8, 0)  # compute capability
CUBLASLT_INSTALL = 'pip install "nvidia-cublas>=13,<14"'

_MAJOR, _MINOR, _MULTIPROCESSORS = 75, 76, 16  # of CUdevice_attribute


class CudaUnavailableError(RuntimeError):
    """CUDA was asked for and cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Device:
    """One GPU as the driver shows it. capability: (9, 0) is 9.0; memory: bytes in all."""

    index: int
    name: str
    capability: tuple[int, int]
    memory: int
    multiprocessors: int = 0

    @property
    def usable(self) -> bool:
        return self.capability >= OLDEST

    def __str__(self) -> str:
        capability = ".".join(map(str, self.capability))
        gib = self.memory / 2**30
        return f"cuda:{self.index} {self.name}, compute capability {capability}, {gib:.1f} GiB"


@dataclass(frozen=True)
class Driver:
    """version: of CUDA, as 13000 for 13.0, None without a driver. problem: why there are no devices."""

    version: int | None
    devices: tuple[Device, ...] = ()
    problem: str = ""

    @property
    def version_text(self) -> str:
        number = self.version or 0
        return f"{number // 1000}.{number % 1000 // 10}"


def plugin_path() -> Path | None:
    """libtaco_cuda.so beside the native core, or None in a build without the CUDA backend."""
    from taco_llm import _core

    path = Path(_core.__file__).with_name(PLUGIN)
    return path if path.is_file() else None


@lru_cache(maxsize=1)
def driver() -> Driver:
    """Asks the driver for its devices: takes a moment the first time. CUDA_VISIBLE_DEVICES counts."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver(None, problem="there is no NVIDIA driver (libcuda.so.1) here")
    number = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(number))
    version = number.value
    status = library.cuInit(0)
    if status == 0:
        status = library.cuDeviceGetCount(ctypes.byref(number))
    if status == 100 or (status == 0 and number.value == 0):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        because = f" (CUDA_VISIBLE_DEVICES={hidden!r})" if hidden is not None else ""
        return Driver(version, problem=f"the NVIDIA driver shows no device{because}")
    if status != 0:
        return Driver(version, problem=f"the NVIDIA driver does not start ({_error_name(library, status)})")
    return Driver(version, tuple(_device(library, index) for index in range(number.value)))


def _device(library: ctypes.CDLL, index: int) -> Device:
    handle, number = ctypes.c_int(0), ctypes.c_int(0)
    library.cuDeviceGet(ctypes.byref(handle), index)
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGetName(name, len(name), handle)
    memory = ctypes.c_size_t(0)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)

    def attribute(which: int) -> int:
        library.cuDeviceGetAttribute(ctypes.byref(number), which, handle)
        return number.value

    return Device(
        index,
        name.value.decode("utf-8", "replace"),
        (attribute(_MAJOR), attribute(_MINOR)),
        memory.value,
        attribute(_MULTIPROCESSORS),
    )


def _error_name(library: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    if library.cuGetErrorName(status, ctypes.byref(text)) == 0 and text.value:
        return text.value.decode()
    return f"error {status}"


# --- cuBLASLt


def cublaslt_path() -> str:
    """The path of libcublasLt.so.13; "" leaves it to the loader's search (by soname).

    A copy that the process has already loaded comes first, so that there are never two; then the nvidia
    packages' folders on sys.path, then the toolkit's.
    """
    loaded = loaded_cublaslt()
    if loaded is not None:
        return loaded
    for folder in _library_folders():
        if (folder / CUBLASLT).is_file():
            return str(folder / CUBLASLT)
    return ""


def loaded_cublaslt(maps: Path = Path("/proc/self/maps")) -> str | None:
    """Where a libcublasLt.so.13 of this process was loaded from."""
    try:
        text = maps.read_text()
    except OSError:
        return None
    match = re.search(rf"(/\S.*/{re.escape(CUBLASLT)}[.\d]*)$", text, re.MULTILINE)
    return match.group(1) if match else None


def _library_folders() -> list[Path]:
    folders: list[Path] = []
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        spec = None
    roots = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    roots += [Path(place) / "nvidia" for place in sys.path if place]
    for inner in ("cu13/lib", "cublas/lib"):
        folders += [root / inner for root in roots]
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            folders.append(Path(os.environ[name]) / "lib64")
    folders.append(Path("/usr/local/cuda/lib64"))
    return folders


def cublaslt_version(path: str) -> str:
    """The version of a cuBLASLt ("" finds it by soname), such as "13.1.0". OSError: it cannot be loaded."""
    library = ctypes.CDLL(path or CUBLASLT)
    library.cublasLtGetVersion.restype = ctypes.c_size_t
    number = int(library.cublasLtGetVersion())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


# --- the choice


def choose(asked: str) -> tuple[str, str]:
    """(device, why): "cpu" or "cuda:N" for what --device asked, and a sentence's end when auto means the CPU.

    CudaUnavailableError when CUDA was asked for by name and is not there.
    """
    if asked == "cpu":
        return "cpu", ""
    problem, device = _usable(asked)
    if device is not None:
        return f"cuda:{device.index}", ""
    if asked == "auto":
        return "cpu", problem
    raise CudaUnavailableError(
        f"--device {asked}: {problem}; `taco_llm doctor` says more, and --device cpu runs without a GPU"
    )


def _usable(asked: str) -> tuple[str, Device | None]:
    if plugin_path() is None:
        return f"this build of taco_llm has no CUDA backend ({PLUGIN})", None
    found = driver()
    if found.problem:
        return found.problem, None
    wanted = int(asked.partition(":")[2] or -1) if asked.startswith("cuda") else -1
    if wanted >= len(found.devices):
        return f"there is no device {wanted}: the driver shows {len(found.devices)}", None
    candidates = found.devices if wanted < 0 else found.devices[wanted : wanted + 1]
    for device in candidates:
        if device.usable:
            return "", device
    names = "; ".join(map(str, candidates))
    return f"compute capability {OLDEST[0]}.{OLDEST[1]} or newer is needed, and there is {names}", None
