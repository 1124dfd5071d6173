"""Flags about the model: which one, its weights, types and lengths, its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taco_llm import refusal_reasons as why
from taco_llm.flag_table import flag

GROUP = "model"


@dataclass
class ModelArgs:
    """The model, its weights and its tokenizer."""

    model: str | None = flag(
        None,
        "Folder, .gguf file or hub id of the model. Without it the embedded SmolLM2-135M-Instruct is used; "
        '"null" is a test model that computes nothing.',
        GROUP,
        metavar="MODEL",
    )
    served_model_name: str | list[str] | None = flag(
        None,
        "Names under which the API offers the model; the first is used in answers. Default: the model's.",
        GROUP,
        many=True,
        metavar="NAME",
    )
    tokenizer: str | None = flag(
        None, "Folder or hub id of the tokenizer, when it is not the model's own.", GROUP, metavar="PATH"
    )
    skip_tokenizer_init: bool = flag(
        False,
        "Load no tokenizer: requests must bring token ids, and answers carry token ids only.",
        GROUP,
        kind="bool",
    )
    tokenizer_mode: str = flag(
        "auto",
        "auto: the fast tokenizer if the checkpoint has one. slow: the SentencePiece one. mistral: "
        "mistral-common's.",
        GROUP,
        choices=("auto", "slow", "mistral"),
    )
    trust_remote_code: bool = flag(
        False,
        "Allow code from the model's repository.",
        GROUP,
        kind="bool",
        note="taco_llm never runs code from a model's repository; models are described by data",
    )
    download_dir: str | None = flag(
        None, "Where hub downloads are kept. Default: the hub's cache.", GROUP, metavar="DIR"
    )
    load_format: str = flag(
        "auto",
        "Format of the weights. auto: safetensors, else .bin/.pt, or GGUF by the file's name. npcache: "
        ".bin/.pt with a NumPy copy for faster starts. dummy: random weights, to measure speed.",
        GROUP,
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
        GROUP,
        choices=("auto", "hf", "mistral"),
        needs=why.config_format,
    )
    dtype: str = flag(
        "auto",
        "Data type of weights and activations. auto: the checkpoint's, and float16 for float32. half is "
        "float16, float is float32.",
        GROUP,
        choices=("auto", "half", "float16", "bfloat16", "float", "float32"),
    )
    kv_cache_dtype: str = flag(
        "auto",
        "Data type of the KV cache; auto is the model's, fp8 is fp8_e4m3. 8 bits on GPUs only.",
        GROUP,
        choices=("auto", "fp8", "fp8_e5m2", "fp8_e4m3"),
        spellings={"fp8": "fp8_e4m3"},
        cpu_needs=why.FP8_CACHE,
    )
    quantization_param_path: str | None = flag(
        None,
        "JSON file with the scales of an fp8 KV cache.",
        GROUP,
        metavar="FILE",
        needs="needs scales of an fp8 KV cache, which are not built yet (they are 1); leave it out",
    )
    seed: int = flag(0, "Seed of the requests that bring none.", GROUP, kind="int")
    max_model_len: int | None = flag(
        None,
        "Longest sequence, prompt and answer together, in tokens. Default: the model's context, or what the "
        "memory allows.",
        GROUP,
        kind="int",
    )
    revision: str | None = flag(None, "Branch, tag or commit of the model on the hub.", GROUP, metavar="REV")
    code_revision: str | None = flag(
        None,
        "Branch, tag or commit of the model's code on the hub.",
        GROUP,
        metavar="REV",
        note="taco_llm never runs code from a model's repository",
    )
    tokenizer_revision: str | None = flag(
        None, "Branch, tag or commit of the tokenizer on the hub.", GROUP, metavar="REV"
    )
    rope_scaling: dict[str, Any] | None = flag(
        None,
        'Scaling of rotary positions, as in config.json, such as {"rope_type":"dynamic","factor":2.0}.',
        GROUP,
        kind="json",
    )
    rope_theta: float | None = flag(None, "Base of rotary positions.", GROUP, kind="float")
    quantization: str | None = flag(
        None,
        "How the weights are quantised. Default: what the checkpoint says. fp8 quantises 16-bit weights "
        "while loading (GPUs).",
        GROUP,
        choices=why.QUANTIZATIONS,
        short=("-q",),
        metavar="METHOD",
        needs=why.quantization,
        cpu_needs=why.cpu_quantization,
    )
    model_loader_extra_config: dict[str, Any] | None = flag(
        None,
        "Settings of the loader chosen by --load-format.",
        GROUP,
        kind="json",
        needs="is for loaders that are not built yet (tensorizer, sharded_state, bitsandbytes); leave it out",
    )
    ignore_patterns: str | list[str] | None = flag(
        None,
        "File patterns not to download or load. Default: original/**/*.",
        GROUP,
        repeat=True,
        metavar="GLOB",
    )
    qlora_adapter_name_or_path: str | None = flag(
        None, "A QLoRA adapter.", GROUP, metavar="PATH", needs=why.LORA
    )
    guided_decoding_backend: str = flag(
        "outlines",
        "What compiles the grammars of guided decoding.",
        GROUP,
        choices=("outlines", "lm-format-enforcer"),
        needs=why.GUIDED,
    )
