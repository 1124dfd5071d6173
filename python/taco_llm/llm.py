"""LLM: offline generation in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taco_llm import logging as taco_logging
from taco_llm.collect import Collector, token_decoder
from taco_llm.engine import EngineHandle, build
from taco_llm.engine_args import EngineArgs
from taco_llm.flag_table import NotBuiltError
from taco_llm.prompts import Request, as_list, flatten_messages, is_token_ids, prepare, refuse_adapters
from taco_llm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from taco_llm.outputs import RequestOutput
    from taco_llm.tokenizer import Tokenizer

logger = taco_logging.get_logger(__name__)

_POLL_SECONDS = 0.2  # how soon Ctrl-C is noticed; outputs wake the poll at once


class LLM:
    """A model in this process, for lists of prompts.

    model: folder, .gguf file or hub id; None is the embedded default model, "null" a test model.
    dtype: "auto", "float32", "float16" or "bfloat16". The other arguments are EngineArgs' fields; those that
    are not built yet raise NotBuiltError (a NotImplementedError) that names them.

    Requests of one call run together, as many at a time as fit. Calls from several threads take turns.
    `shutdown()`, or leaving a `with` block, frees the model.
    """

    def __init__(
        self,
        model: str | None = None,
        tokenizer: str | None = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        seed: int = 0,
        gpu_memory_utilization: float = 0.9,
        swap_space: float = 4,
        cpu_offload_gb: float = 0,
        enforce_eager: bool | None = None,
        max_context_len_to_capture: int | None = None,
        max_seq_len_to_capture: int = 8192,
        disable_custom_all_reduce: bool = False,
        disable_async_output_proc: bool = False,
        **kwargs: Any,
    ) -> None:
        taco_logging.setup()
        # Throughput is shown by the progress bar; there are no periodic log lines to turn off.
        kwargs.setdefault("disable_log_stats", True)
        _check_names(kwargs)
        args = EngineArgs(
            model=model,
            tokenizer=tokenizer,
            tokenizer_mode=tokenizer_mode,
            skip_tokenizer_init=skip_tokenizer_init,
            trust_remote_code=trust_remote_code,
            tensor_parallel_size=tensor_parallel_size,
            dtype=dtype,
            quantization=quantization,
            revision=revision,
            tokenizer_revision=tokenizer_revision,
            seed=seed,
            gpu_memory_utilization=gpu_memory_utilization,
            swap_space=swap_space,
            cpu_offload_gb=cpu_offload_gb,
            enforce_eager=enforce_eager,
            max_context_len_to_capture=max_context_len_to_capture,
            max_seq_len_to_capture=max_seq_len_to_capture,
            disable_custom_all_reduce=disable_custom_all_reduce,
            disable_async_output_proc=disable_async_output_proc,
            **kwargs,
        )
        self._start(build(args))

    def _start(self, handle: EngineHandle) -> None:
        self.handle = handle
        self._tokenizer: Any = handle.tokenizer
        self._lock = threading.Lock()
        self._count = 0
        self._closed = False

    # --- generation

    def generate(
        self,
        prompts: Any = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        use_tqdm: bool = True,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        guided_options_request: Any = None,
    ) -> list[RequestOutput]:
        """Answers of prompts, in the order of the prompts.

        prompts: text, token ids, {"prompt": text} or {"prompt_token_ids": ids}, or a list of those.
        sampling_params: one for all, or a list with one for each prompt; None: SamplingParams().
        prompt_token_ids: token ids of one or many prompts, beside or instead of prompts (vLLM's older form).

        A prompt or parameter that cannot be taken raises ValueError before anything is queued. A request that
        fails later (a logits processor that raises) has finish_reason "error", and the others are answered.
        """
        refuse_adapters(
            lora_request=lora_request,
            prompt_adapter_request=prompt_adapter_request,
            guided_options_request=guided_options_request,
        )
        requests = self._prepare_all(_join(prompts, prompt_token_ids), sampling_params)
        return self._run(requests, use_tqdm)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        lora_request: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers of a conversation, or of a list of conversations.

        messages: OpenAI messages ({"role": ..., "content": text or parts of text}).
        chat_template: a Jinja template instead of the model's own.
        """
        refuse_adapters(lora_request=lora_request)
        if self._tokenizer is None:
            raise ValueError("chat needs a tokenizer, and this LLM was made with skip_tokenizer_init")
        if not isinstance(messages, Sequence) or not messages:
            raise ValueError("messages should be a list of messages, or a list of such lists")
        conversations: list[Any] = [messages] if isinstance(messages[0], Mapping) else list(messages)
        texts = [
            self._tokenizer.apply_chat_template(
                flatten_messages(conversation),
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                **(chat_template_kwargs or {}),
            )
            for conversation in conversations
        ]
        # The template has written the special tokens already.
        return self._run(self._prepare_all(texts, sampling_params, special_tokens=False), use_tqdm)

    def encode(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Embeddings: not built yet."""
        raise NotBuiltError("encode needs embedding models, which are not built yet; use generate or chat")

    def _prepare_all(
        self, prompts: list[Any], sampling_params: Any, *, special_tokens: bool = True
    ) -> list[Request]:
        if sampling_params is None:
            sampling_params = SamplingParams()
        if isinstance(sampling_params, SamplingParams):
            params = [sampling_params] * len(prompts)
        else:
            params = list(sampling_params)
            if len(params) != len(prompts):
                raise ValueError(
                    f"there are {len(prompts)} prompts and {len(params)} sampling_params: "
                    "give one for all, or one for each"
                )
        requests = []
        for index, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
            if not isinstance(one, SamplingParams):
                raise ValueError(f"sampling_params[{index}] is not a SamplingParams but {type(one).__name__}")
            try:
                requests.append(prepare(self.handle, prompt, one, special_tokens=special_tokens))
            except ValueError as error:
                if len(prompts) == 1:
                    raise
                raise ValueError(f"prompt {index}: {error}") from error
        return requests

    def _run(self, requests: list[Request], use_tqdm: bool) -> list[RequestOutput]:
        with self._lock:
            if self._closed:
                raise RuntimeError("this LLM was shut down")
            progress = _Progress(len(requests)) if use_tqdm else None
            try:
                return self._run_locked(requests, progress)
            finally:
                if progress is not None:
                    progress.close()

    def _run_locked(self, requests: list[Request], progress: _Progress | None) -> list[RequestOutput]:
        core = self.handle.core
        decode = token_decoder(self.handle.tokenizer)
        live: dict[int, Collector] = {}
        collectors: list[Collector] = []
        try:
            for request in requests:
                collector = Collector(str(self._count), request, decode)
                ids, root = request.prompt_token_ids, request.cache_root
                live[core.submit(ids, request.core_params, cache_root=root)] = collector
                self._count += 1
                collectors.append(collector)
            while live:
                outputs = core.poll(_POLL_SECONDS)
                for output in outputs:
                    current = live.get(output.request)
                    if current is None:
                        continue
                    current.add(output)
                    if current.finished:
                        del live[output.request]
                        if current.error:
                            logger.error("Request %s failed: %s", current.request_id, current.error)
                        if progress is not None:
                            progress.finished(current)
                if not outputs and live and (stats := core.stats()).dead:
                    raise RuntimeError(f"the engine has stopped: {stats.death_reason}")
        except BaseException:
            self._give_up(live)
            raise
        return [collector.result() for collector in collectors]

    def _give_up(self, live: dict[int, Collector]) -> None:
        """Aborts what still runs and takes its last outputs, so that the next call finds a clean queue."""
        core = self.handle.core
        for request in live:
            core.abort(request)
        deadline = time.monotonic() + 10
        while live and time.monotonic() < deadline and not core.stats().dead:
            for output in core.poll(_POLL_SECONDS):
                if output.request_finished:
                    live.pop(output.request, None)

    # --- the rest

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer that prompts are encoded with."""
        return self._tokenizer

    def set_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Encodes prompts and renders chats with another tokenizer of the same vocabulary.

        Answers are still turned into text with the model's own."""
        self._tokenizer = tokenizer
        self.handle.tokenizer = tokenizer

    def shutdown(self) -> None:
        """Stops the engine and frees the model. Idempotent."""
        if not self._closed:
            self._closed = True
            self.handle.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.shutdown()


class _Progress:
    """A progress bar with tokens per second."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=total, desc="Processed prompts", unit="prompt", dynamic_ncols=True)
        self.started = time.perf_counter()
        self.prompt_tokens = self.output_tokens = 0

    def finished(self, collector: Collector) -> None:
        self.prompt_tokens += len(collector.request.prompt_token_ids)
        self.output_tokens += collector.num_tokens
        spent = max(time.perf_counter() - self.started, 1e-9)
        rates = f"in {self.prompt_tokens / spent:.0f} tok/s, out {self.output_tokens / spent:.0f} tok/s"
        self.bar.set_postfix_str(rates, refresh=False)
        self.bar.update(1)

    def close(self) -> None:
        self.bar.close()


def _join(prompts: Any, prompt_token_ids: Any) -> list[Any]:
    """prompts and vLLM's older prompt_token_ids as one list of prompts."""
    if prompt_token_ids is None:
        if prompts is None:
            raise ValueError("give prompts or prompt_token_ids")
        return as_list(prompts)
    many: list[Any] = [prompt_token_ids] if is_token_ids(prompt_token_ids) else list(prompt_token_ids)
    if prompts is None:
        return many
    texts = as_list(prompts)
    if len(texts) != len(many):
        raise ValueError(f"there are {len(texts)} prompts and {len(many)} prompt_token_ids")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("beside prompt_token_ids, prompts should be their texts")
    return [{"prompt": text, "prompt_token_ids": ids} for text, ids in zip(texts, many, strict=True)]


def _check_names(kwargs: dict[str, Any]) -> None:
    from dataclasses import fields

    from taco_llm.flag_table import nearest

    known = [field.name for field in fields(EngineArgs)]
    for name in kwargs:
        if name not in known:
            near = nearest(name, known)
            raise TypeError(f"LLM() has no argument {name!r}" + (f"; did you mean {near!r}?" if near else ""))
