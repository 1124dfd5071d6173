"""How long a sequence may be, and how much one step computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taco_llm import speculation
from taco_llm.engine_args import EngineArgs

if TYPE_CHECKING:
    from taco_llm.loading import Checkpoint

DEFAULT_BATCHED_TOKENS = 2048
DEFAULT_BATCHED_TOKENS_CUDA = 8192
MAX_DRAFT_ROWS = 512  # whose logits have a place in memory; beyond, a step is long enough without drafts


def wanted_length(args: EngineArgs, checkpoint: Checkpoint) -> int | None:
    """The longest sequence that was asked for; None: the model's own."""
    wanted = args.max_model_len
    if args.disable_sliding_window and (window := checkpoint.hf_config.get("sliding_window")):
        wanted = min(wanted or window, window)
    return wanted


def check_length(wanted: int | None, limit: int) -> None:
    """ValueError for a length that the model cannot have."""
    if wanted is not None and wanted > limit:
        raise ValueError(
            f"max_model_len={wanted} is more than the {limit} tokens that the model was made for; "
            "lower it, or stretch the context with --rope-scaling"
        )


def batched_tokens(args: EngineArgs, max_model_len: int, device: str = "cpu") -> int:
    """Most tokens that a step computes."""
    chunked = args.enable_chunked_prefill is not False
    if args.max_num_batched_tokens is None:
        usual = DEFAULT_BATCHED_TOKENS if device == "cpu" else DEFAULT_BATCHED_TOKENS_CUDA
        usual = max(usual, args.max_num_seqs)
        return usual if chunked else max(usual, max_model_len)
    if not chunked and args.max_num_batched_tokens < max_model_len:
        raise ValueError(
            f"without chunked prefill a prompt is computed in one step: max_num_batched_tokens="
            f"{args.max_num_batched_tokens} must be at least max_model_len={max_model_len}; "
            "raise it, or turn chunked prefill on"
        )
    return args.max_num_batched_tokens


def draft_rows(args: EngineArgs, batched: int) -> int:
    """Rows that the drafts of a step may have in all; 0: nothing is drafted."""
    return 0 if speculation.method(args) == "none" else min(batched, MAX_DRAFT_ROWS)
