"""Where the model runs: the device of the settings, and its backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taco_llm import cuda
from taco_llm.engine_args import EngineArgs
from taco_llm.logging import get_logger
from taco_llm.memory import GIB, available_bytes

if TYPE_CHECKING:
    from taco_llm import _core

logger = get_logger(__name__)


def open_device(args: EngineArgs) -> tuple[str, _core.Backend]:
    """("cpu" or "cuda:N", its backend) for the settings; what they mean there is checked and logged."""
    device, reason = cuda.choose(args.device)
    args.check(device)
    if device != "cpu" and args.cpu_offload_gb * GIB > available_bytes():
        raise MemoryError(
            f"cpu_offload_gb={args.cpu_offload_gb:g} is more than the {available_bytes() / GIB:.1f} GiB of "
            "host memory that are free; lower it"
        )
    try:
        backend = make_backend(args, device)
    except RuntimeError as error:  # a driver older than the plugin, a device that does not answer
        if args.device != "auto" or device == "cpu":
            raise
        device, reason = "cpu", str(error)
        args.check(device)
        backend = make_backend(args, device)
    log_notes(args, device)
    if reason:
        logger.info("Running on the CPU: %s", reason)
    return device, backend


def log_notes(args: EngineArgs, device: str) -> None:
    """A log line for each setting that was given and changes nothing on this device."""
    for note in args.notes(device):
        logger.info("%s", note)


def make_backend(args: EngineArgs, device: str) -> _core.Backend:
    """The backend of a device that cuda.choose returned."""
    from taco_llm import _core

    if device == "cpu":
        return _core.Backend("cpu", args.threads)
    return _core.Backend(
        device,
        args.threads,
        plugin=str(cuda.plugin_path()),
        cublaslt=cuda.cublaslt_path(),
        batch_invariant=args.batch_invariant,
        offload_bytes=int(args.cpu_offload_gb * GIB),
    )


def device_name(backend: _core.Backend) -> str:
    """The device's own name, for messages: "NVIDIA H100 80GB HBM3" for one."""
    return backend.description.partition(",")[0]
