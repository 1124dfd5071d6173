"""What `taco_llm doctor` looks at: the machine, the installation, and what would make it better."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from taco_llm import default_model
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
    return [_python(), *_core(), _memory(), _huge_pages(), *_packages(), _cuda(), _default_model()]


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


def _cuda() -> Finding:
    """The GPU's driver, and the plugin that would use it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding("ok", "CUDA", "no NVIDIA driver here; the CPU backend is used")
    version = ctypes.c_int(0)
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return Finding("note", "CUDA", "the NVIDIA driver does not answer", "Run nvidia-smi to see why.")
    has = f"a driver for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    plugin = Path(__file__).with_name("libtaco_cuda.so")
    if not plugin.exists():
        return Finding("note", "CUDA", f"there is {has}, but this build of taco_llm has no CUDA backend yet")
    return Finding("ok", "CUDA", f"{has}, and the plugin {plugin.name}")


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
