"""The native core: models, backends, the engine. See the README for embedding it without the rest.

Arrays are NumPy's; the core keeps no reference to what it is handed unless it says so.
Errors: ValueError (bad argument), KeyError (unknown name), MemoryError (out of memory or blocks),
NotImplementedError, RuntimeError (draining, dead, internal).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__version__: str

# --- models as data: every field of cpp/model/model_spec.def is a keyword of the constructor and an
# attribute. Enumerations are strings: norm kind "none|rms|layer"; activation
# "none|silu|gelu|gelu_tanh|gelu_quick|relu|relu2"; routing "softmax_topk|topk_softmax|sigmoid_topk".
class NormSpec:
    kind: str
    eps: float
    bias: bool
    weight: bool
    weight_offset: float
    def __init__(self, **fields: Any) -> None: ...

class RopeSpec:
    rotary_dim: int
    interleaved: bool
    inv_freq: list[float]
    attention_factor: float
    def __init__(self, **fields: Any) -> None: ...

class KeyPatternSpec:
    block: int
    local_blocks: int
    stride: int
    head_step: int
    def __init__(self, **fields: Any) -> None: ...

class AttentionSpec:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    qkv_bias: bool
    out_bias: bool
    kv_rank: int
    kv_extra: int
    q_rank: int
    latent_norm: NormSpec
    latent_bias: bool
    qk_norm: NormSpec
    qk_norm_scope: str
    window: int
    pattern: KeyPatternSpec
    softcap: float
    rope: int
    alibi_slopes: list[float]
    log_length: int
    sinks: bool
    def __init__(self, **fields: Any) -> None: ...

class FfnSpec:
    intermediate: int
    activation: str
    gated: bool
    gate_limit: float
    up_offset: float
    bias: bool
    num_experts: int
    top_k: int
    routing: str
    renormalize: bool
    router_jitter: float
    router_bias: bool
    expert_scale: float
    shared_intermediate: int
    shared_gate: bool
    def __init__(self, **fields: Any) -> None: ...

class LayerSpec:
    attn_norm: NormSpec
    post_attn_norm: NormSpec
    ffn_norm: NormSpec
    post_ffn_norm: NormSpec
    attn: AttentionSpec
    ffn: FfnSpec
    parallel: bool
    residual_post_norm: bool
    residual_scale: float
    def __init__(self, **fields: Any) -> None: ...

class ModelSpec:
    architecture: str
    vocab_size: int
    hidden: int
    max_positions: int
    embed_dim: int
    embed_scale: float
    learned_positions: bool
    position_offset: int
    embed_norm: NormSpec
    ropes: list[RopeSpec]
    layers: list[LayerSpec]
    final_norm: NormSpec
    tied_head: bool
    head_bias: bool
    logit_scale: float
    logit_softcap: float
    unused_tokens: list[int]
    def __init__(self, **fields: Any) -> None: ...

class Backend:
    """device: "cpu", "cuda" or "cuda:N". threads (CPU) 0: one for each core of the process. profile: time
    every op.

    For CUDA, plugin: the path of libtaco_cuda.so; cublaslt: the path of libcublasLt.so.13, or "" for the
    loader's search; batch_invariant: no row's result depends on the other rows of its step; offload_bytes: of
    weights that stay in host memory. RuntimeError: no such device, or the plugin cannot be loaded."""

    def __init__(
        self,
        device: str = "cpu",
        threads: int = 0,
        *,
        profile: bool = False,
        plugin: str = "",
        cublaslt: str = "",
        batch_invariant: bool = False,
        offload_bytes: int = 0,
    ) -> None: ...
    def profile(self) -> dict[str, tuple[int, float]]:
        """Op -> (calls, seconds) since the last call; ValueError without profile=True."""
    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def memory(self) -> tuple[int, int]:
        """(total, available) bytes."""

class Model:
    @property
    def spec(self) -> ModelSpec: ...
    @property
    def dtype(self) -> str:
        """Of unquantised matrices: "float32", "float16" or "bfloat16"."""
    @property
    def num_parameters(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...

class ModelBuilder:
    """Takes a checkpoint's tensors one by one, in any order, and repacks each as soon as it can.

    Slots: embed.tokens [vocab, embed_dim or hidden],
    embed.positions [max_positions + position_offset, hidden], embed.project_in [hidden, embed_dim],
    embed.project_out [embed_dim, hidden], embed.norm.{weight,bias},
    layers.I.{attn_norm,post_attn_norm,ffn_norm,post_ffn_norm}.{weight,bias},
    layers.I.attn.{q,k,v,o}.{weight,bias}, layers.I.attn.{q_a,kv_a,q_a_norm,kv_a_norm}.{weight,bias},
    layers.I.attn.{q_norm,k_norm}.{weight,bias} (each_head:
    layers.I.attn.{q_norm,k_norm}.HEAD.{weight,bias}), layers.I.attn.sinks,
    layers.I.ffn.{gate,up,down}.{weight,bias}, layers.I.moe.router.{weight,bias},
    layers.I.moe.shared_gate.weight [1, hidden], layers.I.moe.shared.{gate,up,down}.{weight,bias},
    layers.I.moe.experts.E.{gate,up,down}.{weight,bias}, final_norm.{weight,bias}, head.{weight,bias}.
    Linear weights are [out, in].
    """

    def __init__(
        self, spec: ModelSpec, backend: Backend, dtype: str = "bfloat16", quantize_fp8: bool = False
    ) -> None:
        """dtype: what unquantised matrices are kept in: float32, float16 or bfloat16. quantize_fp8 (CUDA):
        all but embeddings, head and routers in FP8 (e4m3), one scale each."""
    def slots(self) -> dict[str, tuple[int, ...]]:
        """Every slot that the spec has, with its shape."""
    def add(self, slot: str, data: np.ndarray, format: str, shape: Sequence[int]) -> None:
        """data: a contiguous uint8 view of the tensor's bytes, kept until the slot's group has been repacked.
        format: "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K" (quantised: matrices only).
        KeyError: no such slot. ValueError: given twice, wrong shape or byte count."""
    def add_dummy(self, slot: str, shape: Sequence[int], seed: int = 0) -> None:
        """Random values in +-1e-3 that the backend makes itself (CUDA), instead of a tensor."""
    def keep_wide(self, slot: str) -> None:
        """With quantize_fp8: the product that this slot is part of is not quantised. Before it is added."""
    def missing(self) -> list[str]:
        """Slots not yet given."""
    def finish(self) -> Model:
        """ValueError naming the slots that are missing."""

class Executor: ...

class ModelExecutor(Executor):
    def __init__(
        self,
        model: Model,
        *,
        max_model_len: int,
        block_size: int = 16,
        num_blocks: int,
        kv_dtype: str = "auto",
        max_num_batched_tokens: int = 2048,
        max_num_seqs: int = 256,
        enforce_eager: bool = False,
        max_seq_len_to_capture: int = 8192,
        swap_blocks: int = 0,
        max_draft_rows: int = 0,
        typical_acceptance: tuple[float, float] | None = None,
        host_blocks: int = 0,
        loads_by_layer: bool = True,
        disk: DiskStore | None = None,
    ) -> None:
        """kv_dtype: "auto" (the model's), "float32", "float16", "bfloat16"; on CUDA also "fp8_e4m3" and
        "fp8_e5m2". swap_blocks: of host memory, for preemption by swapping. max_draft_rows: of all drafts of
        a step; 0: an Engine over it cannot speculate. typical_acceptance: (threshold, alpha) of lossy
        acceptance of drafts; None: exact. host_blocks: of host memory, for the prefix cache, behind those of
        swap_blocks; loads_by_layer: a step may begin when a load's first layer is there. disk: where blocks
        of host memory go and come from."""
    @staticmethod
    def profile(
        model: Model,
        *,
        max_model_len: int,
        block_size: int = 16,
        kv_dtype: str = "auto",
        max_num_batched_tokens: int = 2048,
        max_num_seqs: int = 256,
        max_draft_rows: int = 0,
    ) -> int:
        """Bytes of device memory that steps take beside weights and KV cache: runs the largest ones once."""
    @staticmethod
    def block_bytes(model: Model, block_size: int, kv_dtype: str = "auto") -> int:
        """Bytes of one KV block over all layers."""
    def forward(self, token_ids: Sequence[int], chunks: Sequence[int] | None = None) -> np.ndarray:
        """Logits float32 [len(token_ids), vocab] of one sequence, computed in chunks of the given sizes.
        For tests and evaluation, before an Engine takes the executor over."""
    def time_step(self, sequences: int, drafts: int, context: int) -> float:
        """Seconds of a step of so many sequences after so much context each, with so many drafts spread
        evenly over them; 0: it does not fit. Like `forward`, before an Engine takes the executor over."""
    @property
    def step_sizes(self) -> list[int]:
        """The numbers of rows that steps are padded to; empty: they are not."""

class NullExecutor(Executor):
    """token = f(hash of the prompt, position): an oracle for servers and schedulers, without a model."""

    def __init__(
        self,
        vocab_size: int,
        max_model_len: int = 4096,
        block_size: int = 16,
        num_blocks: int = 65536,
        step_seconds: float = 0.0,
        eos_token_id: Sequence[int] = (),
        num_host_blocks: int = 0,
    ) -> None: ...

class Vocabulary:
    def __init__(
        self, pieces: Sequence[bytes], special: Sequence[int], strip_leading_space: bool = False
    ) -> None: ...
    def piece(self, id: int) -> bytes: ...
    def __len__(self) -> int: ...

class SamplingParams:
    """Plain fields of cpp/sched/sampling_params.h; taco_llm.SamplingParams is the one for people."""

    def __init__(self, **fields: Any) -> None: ...

# --- speculation. Enumerations are strings: method "none|lookahead|ngram"; a draft's source "root" (none),
# "ngram", "raw_local", "raw_global", "turbo_local", "turbo_global", "other".
class LookaheadConfig:
    """The keys of lookahead_cache_config.json; cpp/spec/speculation_config.h says what each means."""

    cache_mode: int
    cache_size: int
    copy_length: int
    match_length: int
    turbo_match_length: int
    min_match_length: int
    cell_max_size: int
    voc_size: int
    max_seq_len: int
    eos_token_id: list[int]
    top_k: int
    threshold: float
    decay: float
    is_hybrid: bool
    is_debug: bool
    log_interval: int
    target_parallelism: int
    top_k_in_cell: int
    token_paths_top_k: int
    start_freq: float
    num_threads: int
    global_cache_switch: bool
    ignore_prompt: bool
    warmup_file: str
    def __init__(self, **fields: Any) -> None: ...

class SpeculationConfig:
    method: str
    lookahead: LookaheadConfig
    memory_bytes: int
    fingerprint: str
    ngram_max: int
    ngram_min: int
    num_speculative_tokens: int
    cost_model: bool
    disable_by_batch_size: int
    typical_acceptance: bool
    typical_threshold: float
    typical_alpha: float
    def __init__(self, **fields: Any) -> None: ...

class DraftTree:
    """A tree of tokens that may follow `root`. Nodes are numbered from it, a parent before its children."""

    def __init__(self, root: int) -> None: ...
    def add(self, parent: int, token: int, p: float = 1.0, source: str = "other") -> int:
        """The new node's number. ValueError: no such parent, a child twice, more than 64 nodes."""
    def prune(self, keep: int) -> None:
        """Keeps the nodes whose bits are set, laid out depth first, the likelier child first."""
    def find_child(self, node: int, token: int) -> int:
        """-1: there is none."""
    def __len__(self) -> int:
        """Nodes, with the root."""
    @property
    def tokens(self) -> list[int]: ...
    @property
    def parents(self) -> list[int]:
        """-1 for the root."""
    @property
    def depths(self) -> list[int]: ...
    @property
    def p(self) -> list[float]:
        """Estimated probability that all of the path up to the node is accepted."""
    @property
    def sources(self) -> list[str]: ...
    @property
    def ancestors(self) -> list[int]:
        """Bit masks: the node itself and all before it on its path."""

class Drafter:
    """Proposes tokens. For one thread at a time but the last three; cpp/spec/drafter.h is the contract."""

    def begin(self, sequence: int, prompt: Sequence[int], name_space: int = 0) -> None: ...
    def commit(self, sequence: int, tokens: Sequence[int]) -> None: ...
    def end(self, sequence: int) -> None: ...
    def draft(
        self, sequence: int, last_token: int, max_depth: int = 7, max_nodes: int = 63, min_p: float = 0.0
    ) -> DraftTree: ...
    def catch_up(self, max_tokens: int = 0) -> int:
        """Learns what sequences tell each other, so many tokens at most (0: all). Returns what waits."""
    def verified(self, sequence: int, tree: DraftTree, accepted: int) -> None: ...
    @property
    def memory_bytes(self) -> int: ...
    def save(self, path: str) -> int:
        """Bytes written; 0: it remembers nothing. RuntimeError: why it could not be written."""
    def load(self, path: str) -> int:
        """What was taken over. KeyError: no such file. ValueError: damaged, or of another model."""

def make_drafter(config: SpeculationConfig) -> Drafter | None:
    """None for the method "none". ValueError: the setting to change."""

def tokens_to_learn(rows: int, step_seconds: float, beside_device: bool) -> int:
    """What the engine passes to `Drafter.catch_up` in a step of so many rows, where ordinary ones take so
    long."""

def fixed_drafter(nodes: int, vocab_size: int) -> Drafter:
    """So many drafts for every sequence, the last two siblings: for measurements."""

def replay_drafter(
    drafter: Drafter, texts: Sequence[tuple[Sequence[int], Sequence[int]]], forced: int
) -> Drafter:
    """Repeats recorded (prompt, output) in an engine that says nothing but the token `forced` (0 or 1): what
    the drafter proposes is accepted as the recorded text would have it."""

class StepCost:
    """Seconds of a step by its rows, sequences and KV tokens; cpp/spec/step_cost.h."""

    def __init__(self) -> None: ...
    def set_padding(self, speculative: bool, sizes: Sequence[int]) -> None: ...
    def set_measurements(self, measurements: Sequence[tuple[bool, int, int, int, float]]) -> None:
        """Of (speculative, rows, sequences, kv_tokens, seconds)."""
    def observe(
        self, speculative: bool, rows: int, sequences: int, kv_tokens: int, seconds: float
    ) -> None: ...
    def seconds(self, speculative: bool, rows: int, sequences: int, kv_tokens: int) -> float: ...

class DraftBudget:
    """How many drafts a step verifies; cpp/spec/draft_budget.h says who calls what when."""

    def __init__(self, config: SpeculationConfig, cost: StepCost, runs_ahead: bool) -> None:
        """cost: copied."""
    def next(self, sequences: int, kv_tokens: int, other_rows: int = 0) -> str:
        """ "none", "shadow" or "draft"."""
    def threshold(self, sequences: int, kv_tokens: int) -> float: ...
    def select(
        self,
        trees: Sequence[DraftTree],
        sequences: Sequence[int],
        other_rows: int,
        kv_tokens: int,
        max_rows: int,
    ) -> tuple[int, float, float, float]:
        """Prunes the trees; drafts left, expected tokens, seconds and speedup."""
    def committed(self, sequence: int, tokens: Sequence[int]) -> None: ...
    def end(self, sequence: int) -> None: ...
    def verified(self, sequence: int, tree: DraftTree, deepest_accepted: int) -> None: ...
    def observe(
        self,
        speculative: bool,
        rows: int,
        sequences: int,
        kv_tokens: int,
        tokens: int,
        seconds: float,
        draft_seconds: float = 0.0,
        hidden_draft_seconds: float = 0.0,
        other_rows: int = 0,
    ) -> None: ...
    @property
    def stats(self) -> dict[str, float]: ...

class SequenceSpeculation:
    """What speculation did for one sequence."""

    iterations: int
    hit_iterations: int
    drafted: int
    accepted: int
    accepted_at_least: list[int]
    """[d]: iterations that accepted at least d drafted tokens."""
    def __init__(self) -> None: ...

class HitAverages:
    """Means over the sequences so far."""

    num_iters: float
    hit_iters: float
    hit_len: float
    invalid_len: float
    hit_rate: float
    global_average_hit_len: float
    valid_average_hit_len: float
    hit_valid_rate: float

class SpeculationStats:
    iterations: int
    drafted_iterations: int
    hit_iterations: int
    drafted: int
    accepted: int
    possible: int
    """Tokens that the iterations had given if all of each tree's longest path were right."""
    drafted_by_source: dict[str, int]
    accepted_by_source: dict[str, int]
    hit_lengths: dict[str, list[int]]
    """Source of the first accepted token ("root": none) -> iterations by number accepted: 0 to 15, more."""
    averages: HitAverages
    reports: int
    """Multiples of the log interval that iterations has passed; reported: averages at the last of them."""
    reported: HitAverages
    draft_seconds: float
    cache_bytes: int
    expected_speedup: float
    """0: not known; likewise realised_speedup."""
    realised_speedup: float
    ordinary_steps: int
    speculative_steps: int
    """Of the budget controller, as the rest: cpp/spec/draft_budget.h."""
    hidden_draft_seconds: float
    ordinary_step_seconds: float
    allowance: float

class SpeculationMeter:
    """Counts iterations, for replays: the engine has its own."""

    def __init__(self, log_interval: int = 0) -> None: ...
    def count(self, sequence: SequenceSpeculation, tree: DraftTree, deepest_accepted: int) -> None: ...
    def stats(self) -> SpeculationStats: ...

class TokenLogprob:
    token: int
    logprob: float
    rank: int

class Output:
    request: int
    index: int
    text: str
    text_json: bytes
    """text, escaped for the inside of a JSON string (no quotes), UTF-8."""
    token_ids: list[int]
    logprobs: list[list[TokenLogprob]]
    prompt_logprobs: list[list[TokenLogprob]]
    finish_reason: str | None
    """None, "stop", "length", "abort" or "error"."""
    stop_reason: int | str | None
    error: str
    cumulative_logprob: float
    request_finished: bool
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    """Of the prompt, found in the prefix cache when the request was first admitted."""
    speculation: SequenceSpeculation
    """Of the whole sequence, with its finish_reason."""
    times: tuple[float, float, float, float, float]
    """arrival, first scheduled, first token, last token, finished: time.monotonic(); 0: not yet."""

class PrefixCachingConfig:
    enabled: bool
    host_blocks: int
    """Of the executor's host blocks, behind those of swap_blocks."""
    disk_blocks: int
    """Slots of the executor's disk store; needs host_blocks."""
    block_bytes: int
    """Of one block in all layers; needed with host_blocks."""
    min_accesses: int
    """Blocks that fewer requests used leave the device without a copy."""
    max_idle_blocks: int
    """That nobody uses and the device still keeps; -1: all that there is room for."""
    lazy: bool
    """Requests may be admitted while their blocks are being loaded."""
    log_hits: bool
    """A line for Engine.take_log_lines() each 100 blocks of prompts."""
    def __init__(self, **fields: Any) -> None: ...
    def use_disk(self, disk: DiskStore) -> None:
        """Sets disk_blocks and hands over what the store found. The executor must have got the same store."""

class DiskStoreStats:
    num_slots: int
    used_slots: int
    blocks_written: int
    blocks_read: int
    blocks_damaged: int
    """Found by their checksums when they were read."""
    bytes_written: int
    bytes_read: int
    write_seconds: float
    read_seconds: float
    folders_removed: int
    """Of other identities, to make room."""

class DiskStore:
    num_slots: int
    num_found: int
    """Blocks of an earlier process."""
    path: str
    """The identity's folder."""
    can_read: bool
    can_write: bool
    """A full disk ends writing, a broken one both; take_log_lines() says so once."""
    @staticmethod
    def open(
        directory: str, *, identity: bytes, block_bytes: int, block_size: int, capacity_bytes: int
    ) -> DiskStore:
        """Makes or opens the folder of this identity (32 bytes) in the directory.

        block_bytes: ModelExecutor.block_bytes; block_size: tokens. capacity_bytes: for the directory as a
        whole: folders of other identities are removed where there is no room, the least recently used first.
        ValueError for values that make no sense; RuntimeError where the folder cannot be used (not writable,
        another server has it): its text says what to do."""
    def stats(self) -> DiskStoreStats: ...
    def take_log_lines(self) -> list[str]:
        """What went wrong since the last call, a sentence each."""
    def close(self) -> None:
        """Ends reads and writes for good and leaves the folder to the next. Idempotent."""

class PrefixCacheStats:
    """Dictionaries have the keys "device", "host" and "disk". Speeds are bytes (prefill: tokens) per second,
    as measured; 0: not yet."""

    entries: int
    """Blocks of tokens that some tier holds."""
    blocks: dict[str, int]
    """That hold an entry, by tier; one entry may have several."""
    capacity: dict[str, int]
    idle_blocks: int
    """On the device, held by no sequence."""
    clean_idle_blocks: int
    loading_blocks: int
    fetches: int
    """Under way, like `transfers`."""
    transfers: int
    lookups: int
    """Of requests; one that was preempted counts once."""
    tokens_queried: int
    tokens_hit: dict[str, int]
    blocks_queried: int
    blocks_hit: dict[str, int]
    published: int
    exchanged: int
    evicted: dict[str, int]
    dropped: int
    stored: int
    loaded: int
    written: int
    read: int
    stored_by_steps: int
    failed: int
    fetches_started: int
    fetches_declined: int
    """Computing was faster."""
    resets: int
    store_speed: float
    load_speed: float
    write_speed: float
    read_speed: float
    prefill_speed: float

class HotPrefix:
    digest: str
    """In hexadecimal: of the root and all tokens up to the prefix's end."""
    tokens: int
    accesses: int
    tier: str
    """The highest that holds its last block: "device", "host" or "disk"."""

class CacheReport:
    stats: PrefixCacheStats
    hottest: list[HotPrefix]

class EngineStats:
    running: int
    waiting: int
    num_blocks: int
    free_blocks: int
    swap_blocks: int
    """Of host memory."""
    free_swap_blocks: int
    steps: int
    preemptions: int
    prompt_tokens: int
    """Computed, or found in the prefix cache."""
    prompt_tokens_computed: int
    generation_tokens: int
    finished_stop: int
    finished_length: int
    finished_abort: int
    finished_error: int
    last_step_end: float
    current_step_start: float
    dead: bool
    death_reason: str
    speculation: SpeculationStats
    """All 0 without speculation."""
    prefix_cache: PrefixCacheStats
    """All 0 without a prefix cache."""

class Engine:
    """Takes the executor over. All methods are thread-safe and release the GIL where they wait."""

    def __init__(
        self,
        executor: Executor,
        vocabulary: Vocabulary | None = None,
        *,
        max_num_batched_tokens: int = 2048,
        max_num_seqs: int = 256,
        enable_chunked_prefill: bool = True,
        priority_scheduling: bool = False,
        max_waiting: int = -1,
        seed: int = 0,
        swap_blocks: int = 0,
        preemption_mode: str = "auto",
        speculation: SpeculationConfig | None = None,
        drafter: Drafter | None = None,
        prefix_caching: PrefixCachingConfig | None = None,
    ) -> None:
        """drafter: of speculation's method, made and perhaps taught before; None: the engine makes it."""
    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        priority: int = 0,
        name_space: int = 0,
        cache_root: bytes | None = None,
    ) -> int:
        """name_space: requests of different ones (tenants) learn nothing from each other's texts; 64 bits.

        cache_root: a digest of 32 bytes of all that K and V depend on besides the tokens, and of who may
        share them: requests share cached blocks only if theirs are the same. None: 32 zeros."""
    def abort(self, request: int) -> None: ...
    def abort_all(self) -> None: ...
    def poll(self, timeout: float = 0.0) -> list[Output]: ...
    def event_fd(self) -> int: ...
    def drain(self, timeout: float) -> bool: ...
    def shutdown(self) -> None: ...
    def stats(self) -> EngineStats: ...
    def reset_prefix_cache(self) -> bool:
        """Forgets all that is cached; what runs goes on. False without a prefix cache."""
    def cache_report(self, hottest: int = 20) -> CacheReport:
        """The cache now, with its most used prefixes. ValueError without a prefix cache."""
    def take_log_lines(self) -> list[str]:
        """What the engine has to say to its operator since the last call. At most 1000 lines wait."""
    @property
    def max_model_len(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...

def cpu_info() -> dict[str, Any]:
    """{"isa": chosen level, "detected": best level, "model": CPU name, "cores": usable, "features": [...]}"""

LogitsProcessor = Callable[[list[int], list[int], np.ndarray], np.ndarray | None]
