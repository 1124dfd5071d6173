"""The command line: nearest names, YAML below it, dispositions of the front end's flags."""

from __future__ import annotations

from pathlib import Path

import pytest
from taco_llm.cli import main as cli
from taco_llm.cli.parser import UsageError
from taco_llm.cli.serve import engine_args, make_parser, serve_flags
from taco_llm.engine_args import NotBuiltError
from taco_llm.flag_table import option_name

# Front-end flag: (default, words, value); "no": refused at start; "note": accepted with a log line.
FRONT = {
    "host": (None, "::1", "::1", "ok"),
    "port": (8000, "81", 81, "ok"),
    "uvicorn_log_level": ("info", "debug", "debug", "ok"),
    "allow_credentials": (False, None, True, "ok"),
    "allowed_methods": (["*"], '["GET"]', ["GET"], "ok"),
    "allowed_headers": (["*"], '["A", "B"]', ["A", "B"], "ok"),
    "allowed_origins": (None, '["*"]', ["*"], "ok"),  # vLLM's is ["*"]; here no origin is trusted by default
    "api_key": ([], "k", ["k"], "ok"),
    "lora_modules": (None, "a=b", ["a=b"], "no"),
    "prompt_adapters": (None, "a=b", ["a=b"], "no"),
    "chat_template": (None, "x.jinja", "x.jinja", "ok"),
    "response_role": ("assistant", "bot", "bot", "ok"),
    "ssl_keyfile": (None, "k", "k", "ok"),
    "ssl_certfile": (None, "k", "k", "ok"),
    "ssl_ca_certs": (None, "k", "k", "ok"),
    "ssl_cert_reqs": (0, "2", 2, "ok"),
    "root_path": (None, "/x", "/x", "ok"),
    "middleware": ([], "a.b", ["a.b"], "ok"),
    "return_tokens_as_token_ids": (False, None, True, "ok"),
    "disable_frontend_multiprocessing": (False, None, True, "note"),
    "enable_auto_tool_choice": (False, None, True, "no"),
    "tool_call_parser": (None, "hermes", "hermes", "no"),
    "max_log_len": (None, "5", 5, "note"),
}


@pytest.mark.parametrize("name", FRONT)
def test_front_end_flags(name: str) -> None:
    default, words, value, verdict = FRONT[name]
    assert getattr(make_parser().parse([]), name) == default
    flags = serve_flags(make_parser().parse([option_name(name), *([words] if words else [])]))
    assert getattr(flags, name) == value
    if verdict == "no":
        with pytest.raises(NotBuiltError, match=option_name(name)):
            flags.check()
        return
    flags.check()
    assert any(option_name(name) in note for note in flags.notes()) == (verdict == "note")


def test_options_reach_the_server() -> None:
    settings = make_parser().parse(
        ["--port", "9", "--api-key", "a", "--api-key", "b", "--no-page", "--max-n", "3"]
    )
    options = serve_flags(settings).to_options(disable_log_requests=True)
    assert (options.port, options.api_key, options.page) == (9, ["a", "b"], False)
    assert options.limits.max_n == 3 and options.disable_log_requests and options.allowed_origins == []


@pytest.mark.parametrize("wrong, near", [
    ("--dtyp", "--dtype"), ("--max-modle-len", "--max-model-len"),
    ("--enable_prefix_cache", "--enable-prefix-caching"), ("--tensor-parallel", "--tensor-parallel-size"),
    ("--gpu-mem-utilization=0.5", "--gpu-memory-utilization"),
])  # fmt: skip
def test_unknown_flags_name_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {near}[?]"):
        make_parser().parse([wrong])


def test_nothing_is_near() -> None:
    with pytest.raises(UsageError, match="no flag --zzzzqqqq$"):
        make_parser().parse(["--zzzzqqqq"])
    with pytest.raises(UsageError, match="unexpected argument 'b'"):
        make_parser().parse(["a", "b"])


def test_underscores_and_equals() -> None:
    settings = make_parser().parse(["--max_model_len=7", "--served_model_name", "a_b"])
    assert settings.max_model_len == 7 and settings.served_model_name == ["a_b"]


def test_model_positions() -> None:
    assert engine_args(make_parser().parse(["m"])).model == "m"
    assert engine_args(make_parser().parse(["--model", "m"])).model == "m"
    assert engine_args(make_parser().parse([])).model is None
    with pytest.raises(UsageError, match="two models"):
        engine_args(make_parser().parse(["m", "--model", "n"]))


@pytest.mark.parametrize("words, near", [
    (["--dtype", "flaot16"], "did you mean float16"), (["--port", "x"], "'x' is not a whole number"),
    (["--rope-scaling", "{"], "not JSON"), (["--rope-scaling", "[1]"], "not an object"),
    (["--limit-mm-per-prompt", "image"], "NAME=COUNT"),
    (["--enable-chunked-prefill", "maybe"], "neither true"),
    (["--gpu-memory-utilization", "x"], "not a number"), (["--port"], "expected one argument"),
])  # fmt: skip
def test_bad_values_are_named(words: list[str], near: str) -> None:
    with pytest.raises(UsageError, match=near) as error:
        make_parser().parse(words)
    assert words[0] in str(error.value)


# --- --config


def config(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    return ["--config", str(file)]


def test_config_file(tmp_path: Path) -> None:
    words = config(tmp_path, (
        "model: m\nport: 81\nmax_model_len: 77\nskip-tokenizer-init: true\nenable-lora: false\n"
        "rope-scaling: {type: linear, factor: 2.0}\nallowed-origins: [a, b]\nserved-model-name: [x, y]\n"
        "enable-chunked-prefill: false\nlimit-mm-per-prompt: {image: 2}\nmiddleware: [p.q, r.s]\n"
        "revision: null\napi-key: k\n"
    ))  # fmt: skip
    settings = make_parser().parse(words)
    args, flags = engine_args(settings), serve_flags(settings)
    assert (args.model, args.max_model_len, args.skip_tokenizer_init) == ("m", 77, True)
    assert args.rope_scaling == {"type": "linear", "factor": 2.0} and args.enable_lora is False
    assert args.served_model_name == ["x", "y"] and args.enable_chunked_prefill is False
    assert args.limit_mm_per_prompt == {"image": 2} and args.revision is None
    assert (flags.port, flags.allowed_origins, flags.api_key) == (81, ["a", "b"], ["k"])
    assert flags.middleware == ["p.q", "r.s"]


def test_command_line_wins_over_the_file(tmp_path: Path) -> None:
    words = config(
        tmp_path, "port: 81\nmodel: m\nmiddleware: [a.b]\nseed: 5\nenable-chunked-prefill: false\n"
    )
    settings = make_parser().parse(
        [*words, "n", "--port", "8000", "--middleware", "c.d", "--enable-chunked-prefill"]
    )
    args, flags = engine_args(settings), serve_flags(settings)
    assert (flags.port, args.model, flags.middleware, args.seed) == (8000, "n", ["c.d"], 5)
    assert args.enable_chunked_prefill is True


@pytest.mark.parametrize("text, words", [
    ("prot: 1", "no setting 'prot'; did you mean port[?]"), ("zzzqqq: 1", "no setting 'zzzqqq'$"),
    ("port: x", "not a whole number"), ("enable-lora: 3", "true or false"), ("- a", "flag: value"),
    ("a: [", "not YAML"), ("config: x", "another config"), ("port: [1, 2]", "not a whole number"),
    ("!!python/object/apply:os.system ['x']", "not YAML"),
])  # fmt: skip
def test_bad_config_files(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_parser().parse(config(tmp_path, text))


def test_missing_config_file() -> None:
    with pytest.raises(UsageError, match="No such file"):
        make_parser().parse(["--config", "/nowhere/c.yaml"])


def test_empty_config_file(tmp_path: Path) -> None:
    assert make_parser().parse(config(tmp_path, "")).port == 8000


# --- the whole command


@pytest.mark.parametrize("words, status, text", [
    (["serve", "--dtyp", "x"], 2, "did you mean --dtype?"), (["srve"], 2, "did you mean serve?"),
    ([], 2, "usage:"),
    (["serve", "--tensor-parallel-size", "2"], 2, "--tensor-parallel-size 2 needs"),
    (["serve", "--max-num-seqs", "0"], 2, "max_num_seqs=0"), (["serve", "--lora-modules", "a=b"], 2, "LoRA"),
    (["bench", "latencyy"], 2, "did you mean latency?"), (["bench"], 2, "kinds:"),
    (["chat", "--url", "ftp://x"], 2, "http://host:port"), (["version", "x"], 2, "unexpected argument 'x'"),
    (["bench", "serve", "--request-rate", "0"], 2, "above 0"),
    (["bench", "serve", "--percentile-metrics", "x"], 2, "'x' is not one of"),
    (["bench", "latency", "--batch-size", "0"], 2, "--batch-size"),
    (["chat", "--url", "http://127.0.0.1:9"], 1, "is the server running?"),
    (["bench", "serve", "--port", "9"], 1, "is the server running?"),
    (["serve", "/nowhere/at/all.gguf"], 1, "/nowhere/at/all.gguf"),
])  # fmt: skip
def test_errors_are_a_sentence_and_a_status(words, status, text, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == status
    shown = capsys.readouterr().err
    assert text in shown and "Traceback" not in shown


def test_a_model_that_the_hub_cannot_give(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def unreachable(model, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr("taco_llm.loading.resolve", unreachable)
    assert cli.main(["serve", "not/there"]) == 1
    shown = capsys.readouterr().err
    assert "no model at 'not/there'" in shown and "Name or service" in shown


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACO_LLM_DEBUG", "1")
    with pytest.raises(NotBuiltError):
        cli.main(["serve", "--enable-lora"])


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)
    assert cli.main(["version"]) == 0 and cli.main(["--version"]) == 0
    from taco_llm import __version__

    assert capsys.readouterr().out.split() == [__version__] * 2


@pytest.mark.parametrize("words", [["serve"], ["chat"], ["complete"], ["doctor"], ["bench", "serve"],
                                   ["bench", "latency"], ["bench", "throughput"]])  # fmt: skip
def test_every_command_has_help(words, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        cli.main([*words, "-h"])
    assert leave.value.code == 0
    assert f"usage: taco_llm {' '.join(words)}" in capsys.readouterr().out
