"""The flags of the HTTP front end, and its limits."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Limits:
    """What one client may ask for. Everything beyond is a 4xx that names the limit."""

    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 8 << 10  # all header lines together
    body_timeout: float = 30.0  # seconds for the whole body to arrive
    keepalive_timeout: float = 30.0  # idle connections, and those that send their header slowly
    stalled_reader_timeout: float = 30.0  # a stream whose client reads nothing for so long is dropped
    soft_buffer_bytes: int = 64 << 10  # unsent bytes of a stream beyond which its text is coalesced
    hard_buffer_bytes: int = 1 << 20  # and beyond which it is dropped
    max_json_depth: int = 64
    max_json_containers: int = 1 << 16  # arrays and objects in one body
    max_n: int = 16  # n and best_of
    max_stop: int = 16
    max_stop_bytes: int = 1024  # of one stop string
    max_stop_token_ids: int = 128
    max_bad_words: int = 128
    max_logit_bias: int = 1024
    max_prompts: int = 64  # prompts in one /v1/completions request
    max_messages: int = 4096
    max_waiting: int = 4096  # queued requests beyond which a new one gets 429; 0: no limit
    max_template_bytes: int = 4 << 20  # of the rendered chat prompt


@dataclass
class ServerOptions:
    """Names and defaults of `taco_llm serve`'s front-end flags (vLLM 0.6.1's), then our own."""

    host: str | None = None  # None: all interfaces
    port: int = 8000
    uvicorn_log_level: str = "info"
    allow_credentials: bool = False
    allowed_origins: list[str] = field(default_factory=list)  # empty: no CORS headers at all; vLLM: ["*"]
    allowed_methods: list[str] = field(default_factory=lambda: ["*"])
    allowed_headers: list[str] = field(default_factory=lambda: ["*"])
    api_key: list[str] = field(default_factory=list)
    lora_modules: list[str] | None = None
    prompt_adapters: list[str] | None = None
    chat_template: str | None = None  # a file, or the template itself
    response_role: str = "assistant"
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: int = int(ssl.CERT_NONE)
    root_path: str | None = None  # routes are served both at / and below this prefix
    middleware: list[str] = field(default_factory=list)  # "package.module.name" of aiohttp middlewares
    return_tokens_as_token_ids: bool = False
    disable_frontend_multiprocessing: bool = False  # accepted; the front end is one process anyway
    enable_auto_tool_choice: bool = False
    tool_call_parser: str | None = None
    disable_log_requests: bool = False  # no access log
    max_log_len: int | None = None  # accepted; prompt text is never logged

    served_model_name: list[str] = field(default_factory=list)  # empty: the engine's
    api_key_file: str | None = None  # one key a line, '#' comments; read again when it changes
    uds: str | None = None  # path of a unix socket to listen on instead of host and port
    open_metrics: bool = False  # /metrics without a key
    allow_request_chat_template: bool = False  # `chat_template` in a request; a template can burn CPU time
    allowed_chat_template_kwargs: list[str] = field(default_factory=lambda: ["enable_thinking", "thinking"])
    shutdown_timeout: float = 30.0  # seconds that running requests get after SIGTERM
    hang_seconds: float = 60.0  # a step that runs longer makes /ready say 503
    ping_seconds: float = 15.0  # SSE comment while a stream waits for its first token
    tokenizer_threads: int = 2  # for prompts of over `tokenizer_inline_chars` characters
    tokenizer_inline_chars: int = 2000
    page: bool = True  # the chat page at /
    prefix_cache_shared: bool = False  # one prefix cache for all API keys
    uvloop: bool = False
    limits: Limits = field(default_factory=Limits)

    def validate(self) -> None:
        """ValueError naming the flag that is not built yet, or that is wrong."""
        for name in ("lora_modules", "prompt_adapters", "tool_call_parser", "enable_auto_tool_choice"):
            if getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')} is not built yet; leave it out")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port must be between 0 and 65535, got {self.port}")
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("--ssl-keyfile needs --ssl-certfile")
        if self.ssl_ca_certs and not self.ssl_certfile:
            raise ValueError("--ssl-ca-certs needs --ssl-certfile")
        if self.allow_credentials and "*" in self.allowed_origins:
            raise ValueError(
                "--allow-credentials with --allowed-origins '*' would let any page act for the user: "
                "list the origins"
            )
        if self.root_path and not self.root_path.startswith("/"):
            raise ValueError(f"--root-path must start with '/', got {self.root_path!r}")
        if any(not key.strip() for key in self.api_key):
            raise ValueError("--api-key must not be empty")

    def load_chat_template(self) -> str | None:
        """The text of --chat-template: a file's content, or the argument when it is a template itself."""
        if self.chat_template is None:
            return None
        if any(c in self.chat_template for c in "{}\n"):
            return self.chat_template
        path = Path(self.chat_template)
        if not path.is_file():
            raise ValueError(
                f"--chat-template {self.chat_template!r} is no file, and no template either (no '{{')"
            )
        return path.read_text(encoding="utf-8")

    def ssl_context(self) -> ssl.SSLContext | None:
        """None without --ssl-certfile."""
        if not self.ssl_certfile:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
        if self.ssl_ca_certs:
            context.load_verify_locations(self.ssl_ca_certs)
        context.verify_mode = ssl.VerifyMode(self.ssl_cert_reqs)
        return context
