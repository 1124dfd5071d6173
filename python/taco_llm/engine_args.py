"""Every setting of the engine: vLLM 0.6.1's names and defaults, and taco_llm's own.

One table. A field is a keyword of `EngineArgs` and `LLM`, and a flag of the command line. What this version
cannot do yet carries `needs=`: such a flag parses, and a value other than the default is refused at start
with a sentence that names it. What changes nothing here carries `note=`: one log line says so.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taco_llm import prefix_cache, speculation
from taco_llm import refusal_reasons as why
from taco_llm.flag_table import NotBuiltError, add_flags, check_values, flag, notes, refusals

__all__ = ["AsyncEngineArgs", "EngineArgs", "NotBuiltError"]

MODEL = "model"
PARALLEL = "memory and parallelism"
SCHEDULING = "scheduling"
ADAPTERS = "adapters"
SPECULATION = "speculative decoding"
TACO = "taco_llm"

DTYPES = {"half": "float16", "float": "float32"}


@dataclass
class EngineArgs:
    """The engine's settings; the names and defaults are vLLM 0.6.1's.

    Two differ: no model means the embedded default model, and chunked prefill is on unless it is turned off.
    """

    # --- model
    model: str | None = flag(
        None,
        "Folder, .gguf file or hub id of the model. Without it the embedded SmolLM2-135M-Instruct is used; "
        '"null" is a test model that computes nothing.',
        MODEL,
        metavar="MODEL",
    )
    served_model_name: str | list[str] | None = flag(
        None,
        "Names under which the API offers the model; the first is used in answers. Default: the model's.",
        MODEL,
        many=True,
        metavar="NAME",
    )
    tokenizer: str | None = flag(
        None, "Folder or hub id of the tokenizer, when it is not the model's own.", MODEL, metavar="PATH"
    )
    skip_tokenizer_init: bool = flag(
        False,
        "Load no tokenizer: requests must bring token ids, and answers carry token ids only.",
        MODEL,
        kind="bool",
    )
    tokenizer_mode: str = flag(
        "auto",
        "auto: the fast tokenizer if the checkpoint has one. slow: the SentencePiece one. mistral: "
        "mistral-common's.",
        MODEL,
        choices=("auto", "slow", "mistral"),
    )
    trust_remote_code: bool = flag(
        False,
        "Allow code from the model's repository.",
        MODEL,
        kind="bool",
        note="taco_llm never runs code from a model's repository; models are described by data",
    )
    download_dir: str | None = flag(
        None, "Where hub downloads are kept. Default: the hub's cache.", MODEL, metavar="DIR"
    )
    load_format: str = flag(
        "auto",
        "Format of the weights. auto: safetensors, else .bin/.pt, or GGUF by the file's name. npcache: "
        ".bin/.pt with a NumPy copy for faster starts. dummy: random weights, to measure speed.",
        MODEL,
        choices=(
            "auto",
            "pt",
            "safetensors",
            "npcache",
            "dummy",
            "tensorizer",
            "sharded_state",
            "gguf",
            "bitsandbytes",
            "mistral",
        ),
        spellings={"np-cache": "npcache", "tokenizer": "tensorizer"},
        needs=why.load_format,
    )
    config_format: str = flag(
        "auto",
        "Format of the model's configuration.",
        MODEL,
        choices=("auto", "hf", "mistral"),
        needs=why.config_format,
    )
    dtype: str = flag(
        "auto",
        "Data type of weights and activations. auto: the checkpoint's, and float16 for float32. half is "
        "float16, float is float32.",
        MODEL,
        choices=("auto", "half", "float16", "bfloat16", "float", "float32"),
    )
    kv_cache_dtype: str = flag(
        "auto",
        "Data type of the KV cache; auto is the model's, fp8 is fp8_e4m3. 8 bits on GPUs only.",
        MODEL,
        choices=("auto", "fp8", "fp8_e5m2", "fp8_e4m3"),
        spellings={"fp8": "fp8_e4m3"},
        cpu_needs=why.FP8_CACHE,
    )
    quantization_param_path: str | None = flag(
        None,
        "JSON file with the scales of an fp8 KV cache.",
        MODEL,
        metavar="FILE",
        needs="needs scales of an fp8 KV cache, which are not built yet (they are 1); leave it out",
    )
    seed: int = flag(0, "Seed of the requests that bring none.", MODEL, kind="int")
    max_model_len: int | None = flag(
        None,
        "Longest sequence, prompt and answer together, in tokens. Default: the model's context, or what the "
        "memory allows.",
        MODEL,
        kind="int",
    )
    revision: str | None = flag(None, "Branch, tag or commit of the model on the hub.", MODEL, metavar="REV")
    code_revision: str | None = flag(
        None,
        "Branch, tag or commit of the model's code on the hub.",
        MODEL,
        metavar="REV",
        note="taco_llm never runs code from a model's repository",
    )
    tokenizer_revision: str | None = flag(
        None, "Branch, tag or commit of the tokenizer on the hub.", MODEL, metavar="REV"
    )
    rope_scaling: dict[str, Any] | None = flag(
        None,
        'Scaling of rotary positions, as in config.json, such as {"rope_type":"dynamic","factor":2.0}.',
        MODEL,
        kind="json",
    )
    rope_theta: float | None = flag(None, "Base of rotary positions.", MODEL, kind="float")
    quantization: str | None = flag(
        None,
        "How the weights are quantised. Default: what the checkpoint says. fp8 quantises 16-bit weights "
        "while loading (GPUs).",
        MODEL,
        choices=why.QUANTIZATIONS,
        short=("-q",),
        metavar="METHOD",
        needs=why.quantization,
        cpu_needs=why.cpu_quantization,
    )
    model_loader_extra_config: dict[str, Any] | None = flag(
        None,
        "Settings of the loader chosen by --load-format.",
        MODEL,
        kind="json",
        needs="is for loaders that are not built yet (tensorizer, sharded_state, bitsandbytes); leave it out",
    )
    ignore_patterns: str | list[str] | None = flag(
        None,
        "File patterns not to download or load. Default: original/**/*.",
        MODEL,
        repeat=True,
        metavar="GLOB",
    )
    qlora_adapter_name_or_path: str | None = flag(
        None, "A QLoRA adapter.", MODEL, metavar="PATH", needs=why.LORA
    )
    guided_decoding_backend: str = flag(
        "outlines",
        "What compiles the grammars of guided decoding.",
        MODEL,
        choices=("outlines", "lm-format-enforcer"),
        needs=why.GUIDED,
    )

    # --- memory and parallelism
    worker_use_ray: bool = flag(
        False, "The same as --distributed-executor-backend ray.", PARALLEL, kind="bool", needs=why.RAY
    )
    distributed_executor_backend: str | None = flag(
        None,
        "How the processes of a distributed model are run.",
        PARALLEL,
        choices=("ray", "mp"),
        needs=why.executor,
        note="the model runs in one process; there is nothing to distribute",
    )
    pipeline_parallel_size: int = flag(
        1,
        "Pipeline stages.",
        PARALLEL,
        kind="int",
        short=("-pp",),
        needs=why.more_than_one("pipeline parallelism"),
    )
    tensor_parallel_size: int = flag(
        1,
        "Devices that share each layer.",
        PARALLEL,
        kind="int",
        short=("-tp",),
        needs=why.more_than_one("tensor parallelism"),
    )
    max_parallel_loading_workers: int | None = flag(
        None,
        "Workers that load at the same time under tensor parallelism.",
        PARALLEL,
        kind="int",
        note="one process loads the model, tensor by tensor",
    )
    ray_workers_use_nsight: bool = flag(
        False,
        "Profile Ray workers with Nsight.",
        PARALLEL,
        kind="bool",
        needs="needs Ray workers, which taco_llm does not have; profile the process itself, with perf record",
    )
    block_size: int = flag(
        16, "Tokens in a block of the KV cache.", PARALLEL, kind="int", choices=(8, 16, 32)
    )
    enable_prefix_caching: bool = flag(
        False,
        "Keep the KV cache of prompts and answers, and reuse it for prompts that begin with the same tokens.",
        PARALLEL,
        kind="bool",
    )
    disable_sliding_window: bool = flag(
        False, "Limit the context to the model's sliding window instead of sliding it.", PARALLEL, kind="bool"
    )
    use_v2_block_manager: bool = flag(
        False, "vLLM's second block manager.", PARALLEL, kind="bool", note="taco_llm has one block manager"
    )
    num_lookahead_slots: int = flag(
        0,
        "Slots that vLLM's scheduler keeps for speculation.",
        PARALLEL,
        kind="int",
        note="the scheduler of taco_llm reserves what a step needs",
    )
    swap_space: float = flag(
        4,
        "GiB of host memory for swapped-out KV blocks, per GPU.",
        PARALLEL,
        kind="float",
        cpu_note=why.cpu_swap,
    )
    cpu_offload_gb: float = flag(
        0,
        "GiB of weights kept in host memory, from where each visits the GPU for its use.",
        PARALLEL,
        kind="float",
        cpu_note="on the CPU all weights are in memory anyway",
    )
    gpu_memory_utilization: float = flag(
        0.9,
        "Part of a GPU's memory to use, from 0 to 1.",
        PARALLEL,
        kind="float",
        cpu_note="sizes GPU memory; on the CPU, TACO_CPU_KVCACHE_SPACE (GiB, environment) sizes the KV cache",
    )
    num_gpu_blocks_override: int | None = flag(
        None, "Number of KV cache blocks, instead of what the memory allows.", PARALLEL, kind="int"
    )
    disable_custom_all_reduce: bool = flag(
        False,
        "Leave sums over devices to NCCL.",
        PARALLEL,
        kind="bool",
        note="one device has nothing to sum over",
    )
    device: str = flag(
        "auto",
        "Where the model runs: cpu, cuda or cuda:N. auto: a GPU of compute capability 8.0 or newer where "
        "there is one, else the CPU.",
        PARALLEL,
        choices=("auto", "cuda", "neuron", "cpu", "openvino", "tpu", "xpu"),
        also=r"cuda:\d{1,3}",
        needs=why.device,
    )
    override_neuron_config: dict[str, Any] | None = flag(
        None,
        "Settings of a Neuron device.",
        PARALLEL,
        kind="json",
        needs="is for AWS Neuron, on which taco_llm does not run; use --device cpu without it",
    )

    # --- scheduling
    max_num_batched_tokens: int | None = flag(
        None,
        "Most tokens computed in one step. Default: 8192 on GPUs, 2048 on the CPU.",
        SCHEDULING,
        kind="int",
    )
    max_num_seqs: int = flag(256, "Most sequences in one step.", SCHEDULING, kind="int")
    max_logprobs: int = flag(20, "Most logprobs that a request may ask for.", SCHEDULING, kind="int")
    disable_log_stats: bool = flag(False, "Do not log throughput from time to time.", SCHEDULING, kind="bool")
    enforce_eager: bool | None = flag(
        None, "Do not capture CUDA graphs.", SCHEDULING, kind="bool", cpu_note=why.GRAPHS
    )
    max_context_len_to_capture: int | None = flag(
        None, "Old name of --max-seq-len-to-capture.", SCHEDULING, kind="int", cpu_note=why.GRAPHS
    )
    max_seq_len_to_capture: int = flag(
        8192, "Longest sequence that CUDA graphs cover.", SCHEDULING, kind="int", cpu_note=why.GRAPHS
    )
    tokenizer_pool_size: int = flag(0, "Tokenizers in the pool.", SCHEDULING, kind="int", note=why.POOL)
    tokenizer_pool_type: str = flag("ray", "Kind of tokenizer pool.", SCHEDULING, note=why.POOL)
    tokenizer_pool_extra_config: dict[str, Any] | None = flag(
        None, "Settings of the tokenizer pool.", SCHEDULING, kind="json", note=why.POOL
    )
    limit_mm_per_prompt: Mapping[str, int] | None = flag(
        None,
        "Most images, videos and so on in one prompt, such as image=2,video=1. Default: 1 of each.",
        SCHEDULING,
        kind="pairs",
        needs="needs multimodal models, which are not built yet; leave it out",
    )
    num_scheduler_steps: int = flag(
        1,
        "Steps run between two visits of the scheduler.",
        SCHEDULING,
        kind="int",
        note=why.STEPS,
    )
    scheduler_delay_factor: float = flag(
        0.0,
        "Wait this many times the last prompt's latency before the next prompt.",
        SCHEDULING,
        kind="float",
        needs="needs delayed scheduling, which is not built yet; leave it at 0",
    )
    enable_chunked_prefill: bool | None = flag(
        None,
        "Compute long prompts in pieces of --max-num-batched-tokens, along with decoding. On unless false.",
        SCHEDULING,
        kind="maybe_bool",
    )
    preemption_mode: str | None = flag(
        None,
        "What becomes of a request when KV blocks run out: recompute drops and recomputes its cache, swap "
        "moves it to host memory and back. Default: recompute, but swap for requests with several answers.",
        SCHEDULING,
        choices=("recompute", "swap"),
        cpu_needs=why.cpu_preemption,
    )
    disable_async_output_proc: bool = flag(
        False,
        "Do not process outputs while the next step runs.",
        SCHEDULING,
        kind="bool",
        note="the engine's thread makes the text of a step itself",
    )
    otlp_traces_endpoint: str | None = flag(
        None, "Where OpenTelemetry traces go.", SCHEDULING, metavar="URL", needs=why.TRACES
    )
    collect_detailed_traces: str | None = flag(
        None,
        "Modules to trace: model, worker, all, separated by commas.",
        SCHEDULING,
        metavar="MODULES",
        needs=why.TRACES,
    )

    # --- adapters
    enable_lora: bool = flag(False, "Serve LoRA adapters.", ADAPTERS, kind="bool", needs=why.LORA)
    max_loras: int = flag(1, "LoRA adapters in one step.", ADAPTERS, kind="int", needs=why.LORA)
    max_lora_rank: int = flag(16, "Highest rank of a LoRA adapter.", ADAPTERS, kind="int", needs=why.LORA)
    lora_extra_vocab_size: int = flag(
        256, "Tokens that LoRA adapters may add.", ADAPTERS, kind="int", needs=why.LORA
    )
    lora_dtype: str = flag(
        "auto",
        "Data type of LoRA adapters.",
        ADAPTERS,
        choices=("auto", "float16", "bfloat16", "float32"),
        needs=why.LORA,
    )
    long_lora_scaling_factors: str | None = flag(
        None, "Scaling factors of long-context LoRA adapters, separated by commas.", ADAPTERS, needs=why.LORA
    )
    max_cpu_loras: int | None = flag(
        None, "LoRA adapters kept in memory.", ADAPTERS, kind="int", needs=why.LORA
    )
    fully_sharded_loras: bool = flag(
        False, "Share LoRA layers fully among devices.", ADAPTERS, kind="bool", needs=why.LORA
    )
    enable_prompt_adapter: bool = flag(
        False, "Serve prompt adapters.", ADAPTERS, kind="bool", needs=why.PROMPT_ADAPTERS
    )
    max_prompt_adapters: int = flag(
        1, "Prompt adapters in one step.", ADAPTERS, kind="int", needs=why.PROMPT_ADAPTERS
    )
    max_prompt_adapter_token: int = flag(
        0, "Tokens of a prompt adapter.", ADAPTERS, kind="int", needs=why.PROMPT_ADAPTERS
    )

    # --- speculative decoding
    speculative_model: str | None = flag(
        None,
        "What drafts tokens: [ngram] looks for the last tokens in the prompt and the answer so far. Models "
        "that draft are not built yet.",
        SPECULATION,
        metavar="[ngram]",
        spellings={"ngram": "[ngram]"},
        needs=why.draft_model,
    )
    speculative_model_quantization: str | None = flag(
        None,
        "How the draft model is quantised.",
        SPECULATION,
        choices=why.QUANTIZATIONS,
        metavar="METHOD",
        needs=why.DRAFT_MODEL,
    )
    num_speculative_tokens: int | None = flag(
        None, "Tokens that [ngram] drafts for a sequence in one step, such as 5.", SPECULATION, kind="int"
    )
    speculative_draft_tensor_parallel_size: int | None = flag(
        None,
        "Devices that share the draft model's layers.",
        SPECULATION,
        kind="int",
        short=("-spec-draft-tp",),
        needs=why.draft_tensor_parallel,
        note="there is no draft model to share",
    )
    speculative_max_model_len: int | None = flag(
        None, "Longest sequence of the draft model.", SPECULATION, kind="int", needs=why.DRAFT_MODEL
    )
    speculative_disable_by_batch_size: int | None = flag(
        None,
        "Draft nothing in steps of more sequences than this. Without it, too, what is not worth its time is "
        "not verified.",
        SPECULATION,
        kind="int",
    )
    ngram_prompt_lookup_max: int | None = flag(
        None, "Longest n-gram that [ngram] looks for, such as 4.", SPECULATION, kind="int"
    )
    ngram_prompt_lookup_min: int | None = flag(
        None, "Shortest n-gram that [ngram] looks for (1 when unset).", SPECULATION, kind="int"
    )
    spec_decoding_acceptance_method: str = flag(
        "rejection_sampler",
        "How drafts are accepted. rejection_sampler: exactly, the answers are the model's own. "
        "typical_acceptance_sampler: lossy, takes drafted tokens that are merely likely.",
        SPECULATION,
        choices=("rejection_sampler", "typical_acceptance_sampler"),
    )
    typical_acceptance_sampler_posterior_threshold: float | None = flag(
        None,
        "Lossy typical acceptance takes a drafted token that is likelier than this (0.09 when unset), or "
        "than alpha * exp(-entropy) if that is less.",
        SPECULATION,
        kind="float",
    )
    typical_acceptance_sampler_posterior_alpha: float | None = flag(
        None, "alpha of lossy typical acceptance (0.3 when unset).", SPECULATION, kind="float"
    )
    disable_logprobs_during_spec_decoding: bool | None = flag(
        None,
        "In vLLM, give no logprobs while drafting. Here requests that ask for logprobs always get the right "
        "ones.",
        SPECULATION,
        kind="maybe_bool",
        note="logprobs come from the step that verifies, at no cost: who asks for them gets them",
    )
    cpu_draft_worker: bool = flag(
        False, "Run the draft model on the CPU beside a GPU.", SPECULATION, kind="bool", needs=why.DRAFT_MODEL
    )

    # --- taco_llm's own
    lookahead_cache_config_dir: str | None = flag(
        None,
        "Turns the lookahead cache on: tokens are drafted from what prompts and answers have shown. The "
        "folder may hold settings, lookahead_cache_config.json; without the file the defaults apply.",
        TACO,
        metavar="DIR",
    )
    cpu_decoding_memory_utilization: float = flag(
        0.15,
        "Part of the memory (of the machine, or of the container's limit) that the lookahead cache may fill.",
        TACO,
        kind="float",
    )
    ignore_prompt_for_lookahead_cache: bool = flag(
        False,
        "Let the lookahead cache learn from answers only, not from prompts, as where the two have nothing in "
        "common (translation).",
        TACO,
        kind="bool",
    )
    lookahead_cache_save: str | None = flag(
        None,
        "File that keeps what the lookahead cache has learnt: read at start if it is there, written at the "
        "end and from time to time.",
        TACO,
        metavar="FILE",
    )
    lookahead_cache_save_interval: float = flag(
        10,
        "Minutes between two writes of --lookahead-cache-save; 0: at the end only.",
        TACO,
        kind="float",
    )
    enable_prefix_cache_offload: bool = flag(
        False,
        "Let blocks that must leave the prefix cache on the device move to memory, and come back on a hit.",
        TACO,
        kind="bool",
    )
    cpu_prefill_memory_utilization: float = flag(
        0.3,
        "Part of the memory (of the machine, or of the container's limit) for offloaded prefix blocks; the "
        "GPUs share it.",
        TACO,
        kind="float",
    )
    apc_offload_not_lazy: bool = flag(
        False,
        "Debugging: let a request wait until its offloaded blocks are back in all layers, instead of "
        "beginning when the first ones are.",
        TACO,
        kind="bool",
    )
    apc_offload_min_access_threshold: int = flag(
        1, "Uses of a block before it is worth offloading; 1: every block is.", TACO, kind="int"
    )
    apc_offload_enable_hit_cnt: bool = flag(
        False, "Log, every 100 blocks of prompts, how many of them the prefix cache had.", TACO, kind="bool"
    )
    apc_offload_gpu_evictor_limit: int = flag(
        -1,
        "Debugging: most unused blocks that the prefix cache keeps on the device; -1: all there are.",
        TACO,
        kind="int",
    )
    prefix_cache_dir: str | None = flag(
        None,
        "Folder in which offloaded prefix blocks outlive the process. They are made of prompts and answers: "
        "guard it as those.",
        TACO,
        metavar="DIR",
    )
    prefix_cache_disk_gb: float = flag(16, "GiB that --prefix-cache-dir may fill.", TACO, kind="float")
    sequence_parallel_size: int = flag(
        1,
        "Devices that share a prompt's tokens.",
        TACO,
        kind="int",
        needs=why.more_than_one("sequence parallelism"),
    )
    conservative_dry_run: bool = flag(
        False,
        "Leave twice the memory that a trial of the largest step took beside the weights, where kernels or "
        "other programs may want more later than they did then.",
        TACO,
        kind="bool",
        cpu_note="sizes GPU memory; on the CPU there is no trial step",
    )
    batch_invariant: bool = flag(
        False,
        "Let no answer depend on what else is in its batch: kernels with a fixed order of sums (GPUs).",
        TACO,
        kind="bool",
        cpu_needs="is a mode of the CUDA backend; leave it out on the CPU",
    )
    scheduling_policy: str = flag(
        "fcfs",
        "Order of waiting requests: first come, first served, or by the request's priority (lower first).",
        TACO,
        choices=("fcfs", "priority"),
    )
    threads: int = flag(
        0, "Threads that compute; 0: one for each core that this process may use.", TACO, kind="int"
    )

    def __post_init__(self) -> None:
        if self.dtype is not None and not isinstance(self.dtype, str):
            self.dtype = str(self.dtype).removeprefix("torch.")  # a torch.dtype, as vLLM accepts
        if self.worker_use_ray and self.distributed_executor_backend is None:
            self.distributed_executor_backend = "ray"
        if self.max_context_len_to_capture is not None:
            self.max_seq_len_to_capture = self.max_context_len_to_capture

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Adds the engine's flags to a parser."""
        add_flags(parser, EngineArgs)
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> EngineArgs:
        """The settings of a parsed command line; attributes that are no engine flag are left alone."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(args, name) for name in names if hasattr(args, name)})

    def check(self, device: str | None = None) -> None:
        """ValueError for a value that makes no sense; NotBuiltError (a NotImplementedError) for one that this
        version cannot honour. device: "cpu" or "cuda:N", once it is known what auto means."""
        check_values(self)
        self.dtype = DTYPES.get(self.dtype, self.dtype)
        _positive(self, "max_model_len", "max_num_batched_tokens", "max_num_seqs", "num_gpu_blocks_override",
                  "tensor_parallel_size", "pipeline_parallel_size", "sequence_parallel_size",
                  "num_scheduler_steps")  # fmt: skip
        budget = self.max_num_batched_tokens
        if budget is not None and budget < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={budget} should be at least max_num_seqs={self.max_num_seqs}, so "
                "that every running sequence gets a token in each step; raise it, or lower --max-num-seqs"
            )
        if self.max_logprobs < 0:
            raise ValueError(f"max_logprobs={self.max_logprobs} should be 0 or more")
        if self.threads < 0:
            raise ValueError(f"threads={self.threads} should be 0 (one for each core) or more")
        if self.seed < 0 or self.seed >= 2**64:
            raise ValueError(f"seed={self.seed} should be from 0 to 2**64 - 1")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization={self.gpu_memory_utilization} should be above 0 and at most 1"
            )
        for name in ("swap_space", "cpu_offload_gb", "scheduler_delay_factor"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} should be 0 or more")
        if self.rope_theta is not None and self.rope_theta <= 0:
            raise ValueError(f"rope_theta={self.rope_theta} should be above 0")
        if found := refusals(self, device or self.device):
            raise NotBuiltError("; also ".join(found))
        speculation.check(self)
        prefix_cache.check(self)

    def notes(self, device: str | None = None) -> list[str]:
        """A sentence for each setting that was given and changes nothing here. device: as for check."""
        return notes(self, device or self.device) + speculation.notes(self) + prefix_cache.notes(self)


def _positive(args: EngineArgs, *names: str) -> None:
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} should be 1 or more")


@dataclass
class AsyncEngineArgs(EngineArgs):
    """EngineArgs and what concerns the logs of an asynchronous engine."""

    disable_log_requests: bool = flag(False, "Do not log requests.", SCHEDULING, kind="bool")

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Adds the flags of the engine and of the asynchronous engine to a parser."""
        add_flags(parser, AsyncEngineArgs)
        return parser
