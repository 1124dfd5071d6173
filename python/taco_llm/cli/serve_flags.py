"""The front end's flags of `taco_llm serve`: vLLM 0.6.1's names and defaults, and our own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taco_llm.flag_table import NotBuiltError, check_values, flag, notes, refusals

if TYPE_CHECKING:
    from taco_llm.server.options import ServerOptions

HTTP = "HTTP server"
API = "API"
LIMITS = "limits"
_LORA = "needs LoRA adapters, which are not built yet; leave it out"
_TOOLS = "needs tool call parsing, which is not built yet; leave it out"


@dataclass
class ServeFlags:
    """Each field is a flag; those that ServerOptions has too are handed to the server.

    Two defaults differ from vLLM's: no origin is allowed (no CORS headers) until --allowed-origins names
    some, and requests are logged without their text.
    """

    host: str | None = flag(None, "Address to listen on. Default: all.", HTTP, metavar="ADDRESS")
    port: int = flag(8000, "Port to listen on; 0 takes a free one.", HTTP, kind="int")
    uds: str | None = flag(None, "Listen on this unix socket instead of an address.", HTTP, metavar="PATH")
    uvicorn_log_level: str = flag(
        "info",
        "What is logged (vLLM's name of the flag; there is no uvicorn here).",
        HTTP,
        choices=("debug", "info", "warning", "error", "critical", "trace"),
    )
    allow_credentials: bool = flag(False, "CORS: let pages send credentials.", HTTP, kind="bool")
    allowed_origins: list[str] | None = flag(
        None, 'CORS: origins whose pages may use the API, such as ["https://a.b"]. Default: none.', HTTP,
        kind="list", metavar="JSON",
    )  # fmt: skip
    allowed_methods: list[str] = flag(["*"], "CORS: allowed methods.", HTTP, kind="list", metavar="JSON")
    allowed_headers: list[str] = flag(["*"], "CORS: allowed headers.", HTTP, kind="list", metavar="JSON")
    api_key: list[str] = flag(
        [], "A key that requests must bring as a bearer token; may be repeated. Also from the environment: "
        "TACO_LLM_API_KEY or VLLM_API_KEY.", HTTP, repeat=True, metavar="KEY",
    )  # fmt: skip
    api_key_file: str | None = flag(None, "File of such keys, one on a line.", HTTP, metavar="FILE")
    prefix_cache_shared: bool = flag(
        False,
        "Let all API keys share one prefix cache. Without it each of several keys has its own: how soon an "
        "answer begins would tell one what another has asked.",
        HTTP,
        kind="bool",
    )
    ssl_keyfile: str | None = flag(None, "TLS: private key.", HTTP, metavar="FILE")
    ssl_certfile: str | None = flag(None, "TLS: certificate.", HTTP, metavar="FILE")
    ssl_ca_certs: str | None = flag(None, "TLS: authorities of client certificates.", HTTP, metavar="FILE")
    ssl_cert_reqs: int = flag(
        0, "TLS: client certificates: 0 none, 1 optional, 2 required.", HTTP, kind="int", choices=(0, 1, 2)
    )
    root_path: str | None = flag(None, "Prefix that a proxy puts before the paths.", HTTP, metavar="PATH")
    middleware: list[str] = flag(
        [], "An aiohttp middleware by its import path; may be repeated.", HTTP, repeat=True, metavar="NAME"
    )
    disable_frontend_multiprocessing: bool = flag(
        False, "Run HTTP in the engine's process.", HTTP, kind="bool", note="the server is one process anyway"
    )
    uvloop: bool = flag(False, "Use the uvloop package as event loop.", HTTP, kind="bool")
    no_page: bool = flag(False, "Do not offer the chat page at /.", HTTP, kind="bool")
    open_metrics: bool = flag(False, "Let /metrics be read without a key.", HTTP, kind="bool")

    lora_modules: list[str] | None = flag(
        None, "LoRA adapters as NAME=PATH.", API, many=True, metavar="NAME=PATH", needs=_LORA
    )
    prompt_adapters: list[str] | None = flag(
        None, "Prompt adapters as NAME=PATH.", API, many=True, metavar="NAME=PATH",
        needs="needs prompt adapters, which are not built yet; leave it out",
    )  # fmt: skip
    chat_template: str | None = flag(
        None,
        "Chat template: a Jinja file, or the template itself. Default: the model's.",
        API,
        metavar="JINJA",
    )
    allow_request_chat_template: bool = flag(
        False, "Let requests bring a chat template of their own.", API, kind="bool"
    )
    response_role: str = flag("assistant", "Role of the answers.", API, metavar="ROLE")
    return_tokens_as_token_ids: bool = flag(False, "Name tokens in logprobs as token_id:N.", API, kind="bool")
    enable_auto_tool_choice: bool = flag(False, "Let the model call tools.", API, kind="bool", needs=_TOOLS)
    tool_call_parser: str | None = flag(
        None, "How the model writes tool calls.", API, choices=("mistral", "hermes"), needs=_TOOLS
    )
    max_log_len: int | None = flag(
        None, "Most characters of a prompt in the log.", API, kind="int", note="prompts are never logged"
    )

    shutdown_timeout: float = flag(
        30.0, "Seconds that running requests get after SIGTERM.", LIMITS, kind="float"
    )
    max_waiting: int = flag(
        4096, "Waiting requests beyond which a new one gets 429; 0: no limit.", LIMITS, kind="int"
    )
    max_body_bytes: int = flag(4 << 20, "Most bytes of a request's body.", LIMITS, kind="int")
    max_n: int = flag(16, "Most answers (n, best_of) of a request.", LIMITS, kind="int")
    tokenizer_threads: int = flag(2, "Threads that tokenise long prompts.", LIMITS, kind="int")

    def check(self) -> None:
        """ValueError or NotBuiltError, as EngineArgs.check."""
        check_values(self)
        if found := refusals(self):
            raise NotBuiltError("; also ".join(found))

    def notes(self) -> list[str]:
        return notes(self)

    def to_options(self, **more: Any) -> ServerOptions:
        """What the server takes; `more` are options that belong to the engine's flags as well."""
        from taco_llm.server.options import Limits, ServerOptions

        def shared(table: type) -> dict[str, Any]:
            names = {field.name for field in dataclasses.fields(table)}
            own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
            return {name: value for name, value in own.items() if name in names}

        values = {**shared(ServerOptions), **more}
        if self.allowed_origins is None:
            del values["allowed_origins"]
        values["page"] = not self.no_page
        values["limits"] = Limits(**shared(Limits))
        return ServerOptions(**values)
