"""What the machine offers CUDA, and which device is chosen: with a driver made up for the test."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
from taco_llm import EngineArgs, cuda, doctor, engine
from taco_llm.cuda import CudaUnavailableError, Device, Driver
from taco_llm.engine import device as devices
from taco_llm.engine_args import NotBuiltError

H100 = Device(0, "H100", (9, 0), 80 << 30, 132)
OLD = Device(0, "V100", (7, 0), 16 << 30)


class FakeDriver:
    """Enough of libcuda for `cuda.driver`: devices are (name, major, minor, bytes)."""

    def __init__(
        self, devices: list[tuple[str, int, int, int]], version: int = 13000, status: int = 0
    ) -> None:
        self.devices, self.version, self.status = devices, version, status

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = len(self.devices)
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = index + 100  # a handle is no index
        return 0

    def cuDeviceGetName(self, buffer: Any, size: int, handle: Any) -> int:
        buffer.value = self.devices[handle.value - 100][0].encode()
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, handle: Any) -> int:
        out._obj.value = self.devices[handle.value - 100][3]
        return 0

    def cuDeviceGetAttribute(self, out: Any, which: int, handle: Any) -> int:
        _, major, minor, _ = self.devices[handle.value - 100]
        out._obj.value = {75: major, 76: minor, 16: 132}[which]
        return 0

    def cuGetErrorName(self, status: int, out: Any) -> int:
        out._obj.value = b"CUDA_ERROR_SYSTEM_NOT_READY"
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """machine(driver, plugin=True): what `cuda` finds from here on."""

    def be(driver: Driver | FakeDriver, plugin: bool = True) -> None:
        monkeypatch.setattr(cuda, "plugin_path", lambda: tmp_path / cuda.PLUGIN if plugin else None)
        if isinstance(driver, Driver):
            monkeypatch.setattr(cuda, "driver", lambda: driver)
        else:
            monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
            monkeypatch.setattr(cuda, "driver", getattr(cuda.driver, "__wrapped__", cuda.driver))

    return be


def test_devices_of_a_driver(machine: Any) -> None:
    machine(FakeDriver([("Old", 7, 5, 8 << 30), ("New", 9, 0, 80 << 30)]))
    found = cuda.driver()
    assert found.version_text == "13.0" and found.problem == ""
    old, new = found.devices
    assert (old.name, old.capability, old.memory, old.usable) == ("Old", (7, 5), 8 << 30, False)
    assert (new.index, new.capability, new.usable, new.multiprocessors) == (1, (9, 0), True, 132)
    assert str(new) == "cuda:1 New, compute capability 9.0, 80.0 GiB"
    assert cuda.choose("auto") == ("cuda:1", "")  # the first that can be used
    assert cuda.choose("cuda:1") == ("cuda:1", "")
    with pytest.raises(CudaUnavailableError, match=r"8\.0 or newer.*Old.*7\.5"):
        cuda.choose("cuda:0")
    with pytest.raises(CudaUnavailableError, match="no device 2: the driver shows 2"):
        cuda.choose("cuda:2")


def test_drivers_that_do_not_work(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(FakeDriver([], status=802))
    assert "CUDA_ERROR_SYSTEM_NOT_READY" in cuda.driver().problem
    machine(FakeDriver([], status=100))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES=''" in cuda.driver().problem

    def none(name: str) -> None:
        raise OSError("cannot open")

    monkeypatch.setattr(ctypes, "CDLL", none)
    assert cuda.driver().version is None and "no NVIDIA driver" in cuda.driver().problem


def test_auto_falls_back_to_the_cpu_and_says_why(machine: Any) -> None:
    machine(Driver(13000, (H100,)), plugin=False)
    device, reason = cuda.choose("auto")
    assert device == "cpu" and "libtaco_cuda.so" in reason
    machine(Driver(None, problem="there is no NVIDIA driver"))
    assert cuda.choose("auto") == ("cpu", "there is no NVIDIA driver")
    machine(Driver(13000, (OLD,)))
    device, reason = cuda.choose("auto")
    assert device == "cpu" and "V100" in reason
    machine(Driver(13000, (H100,)))
    assert cuda.choose("auto") == ("cuda:0", "")
    assert cuda.choose("cpu") == ("cpu", "")


def test_cuda_that_was_asked_for_is_not_replaced(machine: Any) -> None:
    machine(Driver(13000, (H100,)), plugin=False)
    with pytest.raises(CudaUnavailableError, match=r"--device cuda: .*doctor.*--device cpu"):
        engine.build(EngineArgs(device="cuda"))


def test_a_device_that_does_not_start_leaves_auto_the_cpu(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(Driver(12040, (H100,)))

    def start(args: EngineArgs, device: str) -> str:
        if device != "cpu":
            raise RuntimeError("CUDA driver version is insufficient")
        return "the CPU's"

    monkeypatch.setattr(devices, "make_backend", start)
    assert devices.open_device(EngineArgs()) == ("cpu", "the CPU's")
    with pytest.raises(RuntimeError, match="insufficient"):
        devices.open_device(EngineArgs(device="cuda"))
    with pytest.raises(NotBuiltError, match="needs a GPU"):
        devices.open_device(EngineArgs(quantization="fp8"))


def test_where_cublaslt_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text("7f0 r-xp 0 0:0 1 /usr/lib/libc.so.6\n7f1 r-xp 0 0:0 2 /opt/x/libcublasLt.so.13.1.0\n")
    assert cuda.loaded_cublaslt(maps) == "/opt/x/libcublasLt.so.13.1.0"
    maps.write_text("7f1 r-xp 0 0:0 2 /opt/x/libcublasLt.so.12\n")  # of another CUDA
    assert cuda.loaded_cublaslt(maps) is None
    assert cuda.loaded_cublaslt(tmp_path / "none") is None

    monkeypatch.setattr(cuda, "loaded_cublaslt", lambda: None)
    monkeypatch.setattr(cuda, "_library_folders", lambda: [tmp_path / "a", tmp_path / "b"])
    assert cuda.cublaslt_path() == ""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / cuda.CUBLASLT).touch()
    assert cuda.cublaslt_path() == str(tmp_path / "b" / cuda.CUBLASLT)
    monkeypatch.setattr(cuda, "loaded_cublaslt", lambda: "/loaded")
    assert cuda.cublaslt_path() == "/loaded"  # never two copies in a process


def test_package_folders_come_before_the_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", "/opt/toolkit")
    folders = [str(folder) for folder in cuda._library_folders()]
    package, older = str(tmp_path / "nvidia/cu13/lib"), str(tmp_path / "nvidia/cublas/lib")
    assert folders.index(package) < folders.index(older) < folders.index("/opt/toolkit/lib64")


def findings(what: str) -> list[doctor.Finding]:
    return [finding for finding in doctor._cuda() if finding.what == what]


def test_doctor_without_a_gpu(machine: Any) -> None:
    machine(Driver(None, problem="there is no NVIDIA driver here"), plugin=False)
    (only,) = doctor._cuda()
    assert only.state == "ok" and "no NVIDIA driver" in only.detail and "run on the CPU" in only.detail
    machine(Driver(None, problem="there is no NVIDIA driver here"))
    (driver,) = findings("CUDA driver")
    assert driver.state == "note" and "580" in driver.advice
    assert findings("CUDA backend")[0].detail.endswith(cuda.PLUGIN)


def test_doctor_with_a_gpu(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(Driver(13000, (H100,)), plugin=False)
    (only,) = doctor._cuda()
    assert only.state == "note" and "H100" in only.detail and "toolkit" in only.advice

    machine(Driver(13010, (H100, OLD)))
    monkeypatch.setattr(cuda, "cublaslt_path", lambda: "/x/libcublasLt.so.13")
    monkeypatch.setattr(cuda, "cublaslt_version", lambda path: "13.1.0")
    assert findings("CUDA driver")[0].detail == "for CUDA 13.1"
    assert [finding.state for finding in findings("GPU")] == ["ok", "note"]
    assert findings("cuBLASLt")[0].detail == "13.1.0 at /x/libcublasLt.so.13"

    machine(Driver(12040, (H100,)))
    assert (
        findings("CUDA driver")[0].state == "note" and "13.0 is needed" in findings("CUDA driver")[0].detail
    )

    def missing(path: str) -> str:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(cuda, "cublaslt_path", lambda: "")
    monkeypatch.setattr(cuda, "cublaslt_version", missing)
    (lt,) = findings("cuBLASLt")
    assert lt.state == "note" and "pip install" in lt.advice and "nvidia-cublas" in lt.advice
