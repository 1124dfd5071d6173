"""What `taco_llm doctor` looks at: the machine, the installation, and what would make it better."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from taco_llm import cuda, default_model
from taco_llm.memory import GIB, available_bytes

# package -> (what it is for, required)
PACKAGES = {
    "numpy": ("arrays", True),
    "tokenizers": ("tokenizer.json", True),
    "sentencepiece": ("tokenizer.model", True),
    "safetensors": ("safetensors checkpoints", True),
    "jinja2": ("chat templates", True),
    "huggingface_hub": ("models by hub id", True),
    "aiohttp": ("the server", True),
    "prometheus_client": ("the server's metrics", True),
    "tqdm": ("progress bars", True),
    "yaml": ("--config files", True),
    "torch": (".bin and .pt checkpoints", False),
    "uvloop": ("--uvloop", False),
}


@dataclass(frozen=True)
class Finding:
    """state: "ok"; "note": works, could be better; "bad": taco_llm cannot run a model like this."""

    state: str
    what: str
    detail: str
    advice: str = ""


def examine() -> list[Finding]:
    """All findings, in the order to read them."""
    return [_python(), *_core(), _memory(), _huge_pages(), *_packages(), *_cuda(), _default_model()]


def _python() -> Finding:
    return Finding("ok", "Python", f"{platform.python_version()} at {sys.executable}")


def _core() -> list[Finding]:
    try:
        from taco_llm import _core
    except ImportError as error:
        return [
            Finding(
                "bad",
                "native core",
                f"it cannot be imported: {error}",
                "Reinstall with `pip install --force-reinstall .` in the source folder (needs a "
                "C++ compiler).",
            )
        ]
    findings = [Finding("ok", "native core", f"version {_core.__version__}")]
    info = _core.cpu_info()
    chosen, best = info["isa"], info["detected"]
    detail = f"{info['model']}, {info['cores']} usable cores, kernels for {chosen}"
    if chosen != best:
        findings.append(
            Finding(
                "note", "CPU", f"{detail}, though it has {best}", "Unset the variable TACO_CPU_ISA to use it."
            )
        )
    elif chosen == "generic":
        findings.append(
            Finding("note", "CPU", detail, "It has no AVX2: models run, slowly. Use a newer machine.")
        )
    else:
        findings.append(Finding("ok", "CPU", detail))
    return findings


def _memory() -> Finding:
    available = available_bytes() / GIB
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    detail = f"{available:.1f} GiB available of {total:.1f} GiB"
    if available < 0.75:
        return Finding(
            "bad", "memory", detail, "Stop other programs: the smallest model needs about 0.75 GiB."
        )
    if available < 4:
        return Finding(
            "note", "memory", detail, "Enough for small models only (1 GiB a billion 8-bit weights)."
        )
    return Finding("ok", "memory", detail)


def _huge_pages(folder: Path = Path("/sys/kernel/mm/transparent_hugepage")) -> Finding:
    try:
        text = (folder / "enabled").read_text()
    except OSError:
        return Finding(
            "note", "huge pages", "this kernel has none", "Decoding reads weights a little slower."
        )
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen in ("always", "madvise"):
        return Finding("ok", "huge pages", chosen)
    return Finding(
        "note",
        "huge pages",
        "turned off; decoding reads weights up to a quarter slower",
        f"As root: echo madvise > {folder / 'enabled'}",
    )


def _packages() -> list[Finding]:
    found, findings = [], []
    names = importlib.metadata.packages_distributions()
    for module, (purpose, required) in PACKAGES.items():
        distribution = (names.get(module) or [module])[0]
        if importlib.util.find_spec(module) is None:
            pip = {"yaml": "pyyaml", "prometheus_client": "prometheus-client"}.get(module, module)
            findings.append(
                Finding(
                    "bad" if required else "note",
                    "package",
                    f"{module} is missing ({purpose})",
                    f"pip install {pip}" if required else f"If you need {purpose}: pip install {pip}",
                )
            )
            continue
        try:
            found.append(f"{module} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(module)
    return [Finding("ok", "packages", ", ".join(found)), *findings]


_NO_GPU = "models run on the CPU"


def _cuda() -> list[Finding]:
    """The plugin, the driver and its devices, cuBLASLt: what is there, and what is missing for a GPU."""
    try:
        plugin = cuda.plugin_path()
    except ImportError:
        return []  # the native core is missing, which is said above
    driver = cuda.driver()
    usable = [device for device in driver.devices if device.usable]
    if plugin is None:
        if not usable:
            why = driver.problem or "there is no GPU of compute capability 8.0 or newer"
            return [Finding("ok", "CUDA", f"{why}, and this build has no CUDA backend: {_NO_GPU}")]
        return [
            Finding(
                "note",
                "CUDA",
                f"there is {'; '.join(map(str, usable))}, but this build has no CUDA backend: {_NO_GPU}",
                "Install the CUDA toolkit (nvcc of 12.8 or newer; CUDA_HOME names its folder) and reinstall "
                "taco_llm from its source folder: `pip install --force-reinstall .`",
            )
        ]
    findings = [Finding("ok", "CUDA backend", str(plugin)), *_driver(driver)]
    findings += [_device(device) for device in driver.devices]
    return [*findings, _cublaslt(needed=bool(usable))]


def _driver(driver: cuda.Driver) -> list[Finding]:
    if driver.version is None:
        return [
            Finding(
                "note",
                "CUDA driver",
                f"{driver.problem}: {_NO_GPU}",
                "On a machine with an NVIDIA GPU, install its driver, 580 or newer; in a container, start it "
                "with `--gpus all`.",
            )
        ]
    if driver.problem:
        return [
            Finding(
                "note", "CUDA driver", f"{driver.problem}: {_NO_GPU}", "Run nvidia-smi to see the devices."
            )
        ]
    detail = f"for CUDA {driver.version_text}"
    if driver.version < 13000:
        return [
            Finding(
                "note", "CUDA driver", f"{detail}; 13.0 is needed: {_NO_GPU}", "Install driver 580 or newer."
            )
        ]
    return [Finding("ok", "CUDA driver", detail)]


def _device(device: cuda.Device) -> Finding:
    if device.usable:
        return Finding("ok", "GPU", str(device))
    return Finding("note", "GPU", f"{device}: too old, 8.0 is needed", "Use another GPU, or --device cpu.")


def _cublaslt(needed: bool) -> Finding:
    path = cuda.cublaslt_path()
    try:
        version = cuda.cublaslt_version(path)
    except (OSError, AttributeError) as error:
        what = "not found; large matrix products are slower without it"
        if path:
            what = f"{path} cannot be loaded ({error})"
        return Finding("note" if needed else "ok", "cuBLASLt", what, cuda.CUBLASLT_INSTALL if needed else "")
    return Finding("ok", "cuBLASLt", f"{version} at {path or cuda.CUBLASLT}")


def _default_model() -> Finding:
    found = default_model.find()
    if found is None:
        return Finding(
            "note",
            "default model",
            f"{default_model.NAME} is not installed; models must be named",
            default_model.INSTALL,
        )
    return Finding("ok", "default model", f"{default_model.NAME} ({found.stat().st_size / 1e6:.0f} MB)")
