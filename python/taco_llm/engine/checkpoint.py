"""Which model: its name and its checkpoint, before any weight is read."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
from pathlib import Path
from typing import TYPE_CHECKING

from taco_llm import default_model, refusal_reasons
from taco_llm.archs.fp8 import fp8_checkpoint
from taco_llm.engine_args import EngineArgs, NotBuiltError
from taco_llm.logging import get_logger

if TYPE_CHECKING:
    from taco_llm.loading import Checkpoint

logger = get_logger(__name__)


def model_and_names(args: EngineArgs) -> tuple[str, list[str]]:
    """The model to load, and the names to serve it under."""
    model, name = args.model, args.model
    if model is None:
        model, name = str(default_model.path()), default_model.NAME
        logger.info("No model was named: serving the embedded default, %s", default_model.NAME)
    served = args.served_model_name
    names = [served] if isinstance(served, str) else list(served or [])
    return model, names or [name or model]


def resolve_model(args: EngineArgs, model: str, load_format: str) -> Checkpoint:
    """The checkpoint of a model that model_and_names named, fetched where it is the hub's.

    An error of the hub's client or of the network names the model and says what to do."""
    from taco_llm.loading import resolve

    try:
        return resolve(
            model,
            revision=args.revision,
            download_dir=args.download_dir,
            load_format=load_format,
            ignore_patterns=args.ignore_patterns,
        )
    except (ValueError, FileNotFoundError, MemoryError, NotImplementedError):
        raise
    except Exception as error:
        if Path(model).expanduser().exists():
            raise
        raise FileNotFoundError(
            f"no model at {model!r}: it is no file or folder of this machine, and the hub could not be asked "
            f"for it ({error}); give a path, or check the name and the network"
        ) from error


def check_quantized(checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint that is quantised in a format without kernels, before it is read. FP8 has some."""
    config = checkpoint.hf_config.get("quantization_config")
    if isinstance(config, dict) and fp8_checkpoint(checkpoint.hf_config) is None:
        method = str(config.get("quant_method", "unknown"))
        raise NotBuiltError(
            f"the checkpoint is quantised as {method}, which {refusal_reasons.quantization(method)}"
        )


def products_in_fp8(args: EngineArgs, checkpoint: Checkpoint) -> bool:
    """Whether a GPU keeps the matrices in FP8."""
    return args.quantization == "fp8" or fp8_checkpoint(checkpoint.hf_config) is not None


def without_file_contents(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without what only loading needs: a GGUF's vocabulary and tensor list.

    The memory goes back to the system."""
    kept = checkpoint.gguf_metadata
    if kept is not None:
        kept = {key: value for key, value in kept.items() if not isinstance(value, list) or len(value) < 256}
    checkpoint = dataclasses.replace(checkpoint, gguf_metadata=kept, gguf=None)
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
    if trim is not None:
        trim(0)
    return checkpoint
