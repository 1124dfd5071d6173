"""The null model: an engine without a model, for tests of what stands around it."""

from __future__ import annotations

import os

from taco_llm import prefix_cache
from taco_llm.engine.checkpoint import model_and_names
from taco_llm.engine.core import make_core
from taco_llm.engine.device import log_notes
from taco_llm.engine.drafting import make_drafting, start_companion
from taco_llm.engine.handle import EngineHandle
from taco_llm.engine.sizes import batched_tokens
from taco_llm.engine_args import EngineArgs
from taco_llm.logging import get_logger

logger = get_logger(__name__)

NULL_MODEL = "null"


def build_null(args: EngineArgs) -> EngineHandle:
    """The null model: token = f(prompt, position). TACO_NULL_STEP_SECONDS makes a step take that long."""
    from taco_llm import _core
    from taco_llm.null_model import VOCAB_SIZE, NullTokenizer

    log_notes(args, "cpu")
    length = args.max_model_len or 4096
    blocks = args.num_gpu_blocks_override or min(args.max_num_seqs, 4096) * -(-length // args.block_size)
    step = float(os.environ.get("TACO_NULL_STEP_SECONDS", "0"))
    tiers = prefix_cache.null_tiers(args, blocks)
    executor = _core.NullExecutor(
        VOCAB_SIZE, length, args.block_size, blocks, step, num_host_blocks=tiers.host_blocks
    )
    tokenizer = None if args.skip_tokenizer_init else NullTokenizer()
    _, names = model_and_names(args)
    logger.info("Null model: no weights, answers are made up of the prompt's hash (a test model)")
    drafting = make_drafting(args, reserved=0, vocab_size=VOCAB_SIZE, max_model_len=length, eos_token_ids=[])
    core = make_core(
        args,
        executor,
        tokenizer.core_vocabulary() if tokenizer is not None else None,
        batched=batched_tokens(args, length),
        drafting=drafting,
        caching=prefix_cache.settings(args, tiers),
    )
    return EngineHandle(
        core=core,
        tokenizer=tokenizer,  # type: ignore[arg-type]
        checkpoint=None,
        model_name=names[0],
        served_names=names,
        max_model_len=length,
        eos_token_ids=[],
        generation_config={},
        args=args,
        vocab_size=VOCAB_SIZE,
        num_kv_blocks=blocks,
        speculation=drafting.config,
        companion=start_companion(args, core, drafting),
        tiers=tiers,
        log=prefix_cache.log_of(args, core),
    )
