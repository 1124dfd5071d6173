"""Flags about speculative decoding, in vLLM's names. What they mean together is in taco_llm.speculation."""

from __future__ import annotations

from dataclasses import dataclass

from taco_llm import refusal_reasons as why
from taco_llm.flag_table import flag

GROUP = "speculative decoding"


@dataclass
class SpeculationArgs:
    """Who drafts, and how drafts are accepted."""

    speculative_model: str | None = flag(
        None,
        "What drafts tokens: [ngram] looks for the last tokens in the prompt and the answer so far. Models "
        "that draft are not built yet.",
        GROUP,
        metavar="[ngram]",
        spellings={"ngram": "[ngram]"},
        needs=why.draft_model,
    )
    speculative_model_quantization: str | None = flag(
        None,
        "How the draft model is quantised.",
        GROUP,
        choices=why.QUANTIZATIONS,
        metavar="METHOD",
        needs=why.DRAFT_MODEL,
    )
    num_speculative_tokens: int | None = flag(
        None, "Tokens that [ngram] drafts for a sequence in one step, such as 5.", GROUP, kind="int"
    )
    speculative_draft_tensor_parallel_size: int | None = flag(
        None,
        "Devices that share the draft model's layers.",
        GROUP,
        kind="int",
        short=("-spec-draft-tp",),
        needs=why.draft_tensor_parallel,
        note="there is no draft model to share",
    )
    speculative_max_model_len: int | None = flag(
        None, "Longest sequence of the draft model.", GROUP, kind="int", needs=why.DRAFT_MODEL
    )
    speculative_disable_by_batch_size: int | None = flag(
        None,
        "Draft nothing in steps of more sequences than this. Without it, too, what is not worth its time is "
        "not verified.",
        GROUP,
        kind="int",
    )
    ngram_prompt_lookup_max: int | None = flag(
        None, "Longest n-gram that [ngram] looks for, such as 4.", GROUP, kind="int"
    )
    ngram_prompt_lookup_min: int | None = flag(
        None, "Shortest n-gram that [ngram] looks for (1 when unset).", GROUP, kind="int"
    )
    spec_decoding_acceptance_method: str = flag(
        "rejection_sampler",
        "How drafts are accepted. rejection_sampler: exactly, the answers are the model's own. "
        "typical_acceptance_sampler: lossy, takes drafted tokens that are merely likely.",
        GROUP,
        choices=("rejection_sampler", "typical_acceptance_sampler"),
    )
    typical_acceptance_sampler_posterior_threshold: float | None = flag(
        None,
        "Lossy typical acceptance takes a drafted token that is likelier than this (0.09 when unset), or "
        "than alpha * exp(-entropy) if that is less.",
        GROUP,
        kind="float",
    )
    typical_acceptance_sampler_posterior_alpha: float | None = flag(
        None, "alpha of lossy typical acceptance (0.3 when unset).", GROUP, kind="float"
    )
    disable_logprobs_during_spec_decoding: bool | None = flag(
        None,
        "In vLLM, give no logprobs while drafting. Here requests that ask for logprobs always get the right "
        "ones.",
        GROUP,
        kind="maybe_bool",
        note="logprobs come from the step that verifies, at no cost: who asks for them gets them",
    )
    cpu_draft_worker: bool = flag(
        False, "Run the draft model on the CPU beside a GPU.", GROUP, kind="bool", needs=why.DRAFT_MODEL
    )
