"""Why a setting is refused or without effect: the sentences' ends that follow a flag's name."""

from __future__ import annotations

from taco_llm.flag_table import Verdict

QUANTIZATIONS = (
    "aqlm", "awq", "deepspeedfp", "tpu_int8", "fp8", "fbgemm_fp8", "modelopt", "marlin", "gguf",
    "gptq_marlin_24", "gptq_marlin", "awq_marlin", "gptq", "compressed-tensors", "bitsandbytes",
    "experts_int8", "qqq", "neuron_quant",
)  # fmt: skip

LORA = "needs LoRA adapters, which are not built yet; merge the adapter into the weights and serve those"
PROMPT_ADAPTERS = "needs prompt adapters, which are not built yet; put the text into the prompt"
DRAFT_MODEL = (
    "needs a draft model, which is not built yet; --lookahead-cache-config-dir FOLDER and "
    "--speculative-model [ngram] draft without one"
)
TRACES = "needs OpenTelemetry tracing, which is not built yet; /metrics has the latencies"
GUIDED = "needs guided decoding, which is not built yet; leave it out"
RAY = "needs execution over Ray, which is not built yet; one process runs the whole model: leave it out"
POOL = "tokenising runs in this process's threads; there is no pool to set up"
GRAPHS = "there are no CUDA graphs on the CPU"
FP8_CACHE = "needs a GPU: on the CPU the KV cache has the model's type; use auto"
STEPS = "each step is planned while the one before runs, so there is nothing to gain from planning several"


def quantization(value: str) -> str | None:
    if value in ("gguf", "fp8"):
        return None
    other = "use a GGUF file (Q8_0, Q4_0, Q4_1, Q4_K, Q6_K) or unquantised weights"
    if value in ("neuron_quant", "tpu_int8", "deepspeedfp"):
        return f"belongs to hardware or a library that taco_llm does not use; {other}"
    return f"needs kernels for that format, which are not built yet; {other}"


def cpu_quantization(value: str) -> str | None:
    if value == "fp8":
        return "needs a GPU; on the CPU use a GGUF file (Q8_0, Q4_K and others) or unquantised weights"
    return None


def load_format(value: str) -> str | None:
    if value in ("tensorizer", "sharded_state", "bitsandbytes", "mistral"):
        return "needs a loader that is not built yet; convert the checkpoint to safetensors or GGUF"
    return None


def device(value: str) -> str | None:
    if value in ("neuron", "tpu", "openvino", "xpu"):
        return "names hardware that taco_llm does not run on; use --device cuda, cpu (x86-64) or auto"
    return None


def more_than_one(what: str) -> Verdict:
    def verdict(value: int) -> str | None:
        return f"needs {what}, which is not built yet; leave it at 1" if value != 1 else None

    return verdict


def draft_model(value: str) -> str | None:
    return DRAFT_MODEL if value != "[ngram]" else None


def draft_tensor_parallel(value: int) -> str | None:
    return DRAFT_MODEL if value != 1 else None


def executor(value: str) -> str | None:
    return RAY if value == "ray" else None


def cpu_swap(value: float) -> str | None:
    return "on the CPU the KV cache is in memory anyway: there is nothing to swap" if value else None


def cpu_preemption(value: str) -> str | None:
    if value == "swap":
        return "needs a GPU: on the CPU the KV cache is in memory anyway; use recompute"
    return None


def config_format(value: str) -> str | None:
    if value == "mistral":
        return "needs a reader of params.json, which is not built yet; use the checkpoint's config.json form"
    return None
