"""chat, complete and bench serve against `taco_llm serve null` in a process of its own, and in process."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path

import pytest
from served_process import ServedProcess
from taco_llm import LLM, SamplingParams
from taco_llm.cli import main as cli
from taco_llm.cli.bench_serve import Sample, summarize
from taco_llm.cli.workload import mean, percentile, random_token_ids, read_prompts


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of a server with a key."""
    log = tmp_path_factory.mktemp("server") / "log"
    with ServedProcess(log, "null", "--api-key", "secret") as process:
        yield process.port
        process.send(signal.SIGTERM)
        assert process.wait() == 0


@pytest.fixture(scope="module")
def wanted() -> str:
    """What the null model says to `abc`."""
    with LLM("null") as llm:
        (output,) = llm.generate("abc", SamplingParams(max_tokens=8, temperature=0), use_tqdm=False)
        return output.outputs[0].text


def test_complete_over_http_and_in_process(
    server: int, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["complete", "--prompt", "abc", "--max-tokens", "8", "--temperature", "0"]
    assert cli.main([*words, "--url", f"http://127.0.0.1:{server}/v1", "--api-key", "secret"]) == 0
    assert capsys.readouterr().out == wanted + "\n"
    assert cli.main([*words, "null"]) == 0
    assert capsys.readouterr().out == wanted + "\n"


def test_complete_reads_the_input(monkeypatch: pytest.MonkeyPatch, wanted: str, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc"))
    assert cli.main(["complete", "null", "--max-tokens", "8"]) == 0
    assert capsys.readouterr().out == wanted + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli.main(["complete", "null"]) == 2


def test_chat_remembers_the_conversation(monkeypatch: pytest.MonkeyPatch, server: int, capsys) -> None:
    talk = "first\nsecond\n/clear\nfirst\n/exit\nnever\n"
    shown = []
    for where in (["null"], ["--url", f"http://127.0.0.1:{server}", "--api-key", "secret"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO(talk))
        words = ["chat", *where, "--max-tokens", "6", "--temperature", "0", "--system-prompt", "s"]
        assert cli.main(words) == 0
        shown.append(capsys.readouterr().out.splitlines())
    assert shown[0] == shown[1]
    first, second, again = shown[0]
    assert first == again != second


def test_a_wrong_key_is_a_sentence(server: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "--url", f"http://127.0.0.1:{server}", "--api-key", "wrong"]) == 1
    assert "401" in capsys.readouterr().err


def test_bench_serve(server: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "serve", "--port", str(server), "--api-key", "secret", "--num-prompts", "12"]
    words += ["--random-input-len", "50", "--random-output-len", "9", "--save-result", "--ignore-eos"]
    words += ["--metric-percentiles", "50,99", "--percentile-metrics", "ttft,e2el", "--max-concurrency", "3"]
    assert cli.main([*words, "--result-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("openai-infqps-null-")
    figures = json.loads(file.read_text())
    assert (figures["completed"], figures["failed"]) == (12, 0)
    assert (figures["total_input_tokens"], figures["total_output_tokens"]) == (12 * 50, 12 * 9)
    assert 0 < figures["mean_ttft_ms"] <= figures["mean_e2el_ms"] and "p50_e2el_ms" in figures
    order = ["Backend:", "Traffic request rate:", "Successful requests:", "Benchmark duration (s):",
             "Total input tokens:", "Total generated tokens:", "Request throughput (req/s):",
             "Input token throughput (tok/s):", "Output token throughput (tok/s):", "Mean E2E Latency (ms):",
             "Median E2E Latency (ms):", "Mean TTFT (ms):", "P99 TTFT (ms):", "Mean TPOT (ms):",
             "Mean ITL (ms):"]  # fmt: skip
    places = [shown.index(name) for name in order]
    assert places == sorted(places)


def test_bench_serve_chat_with_a_dataset(server: int, tmp_path: Path, capsys) -> None:
    data = tmp_path / "d.json"
    data.write_text(json.dumps([{"conversations": [{"from": "human", "value": f"q{n}"}]} for n in range(3)]))
    words = ["bench", "serve", "--port", str(server), "--api-key", "secret", "--backend", "openai-chat"]
    words += ["--dataset-path", str(data), "--num-prompts", "5", "--output-len", "4", "--request-rate", "100"]
    assert cli.main(words) == 0
    assert "Successful requests:                     5" in capsys.readouterr().out


def test_bench_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.json"
    words = ["--input-len", "10", "--output-len", "5", "--output-json", str(file)]
    assert cli.main(["bench", "latency", "null", *words, "--num-iters", "2", "--batch-size", "3"]) == 0
    assert json.loads(file.read_text())["batch size"] == 3
    assert cli.main(["bench", "throughput", "null", *words, "--num-prompts", "7"]) == 0
    figures = json.loads(file.read_text())
    assert (figures["requests"], figures["prompt tokens"], figures["output tokens"]) == (7, 70, 35)
    assert cli.main(["bench", "latency", "null", "--input-len", "5000"]) == 2
    assert "the model takes" in capsys.readouterr().err


def test_summary_of_known_samples() -> None:
    samples = [
        Sample(ok=True, prompt_tokens=10, output_tokens=5, ttft=0.1, latency=0.5, itl=[0.1] * 4),
        Sample(ok=True, prompt_tokens=10, output_tokens=3, ttft=0.2, latency=0.3, itl=[0.05] * 2),
        Sample(ok=False, error="x"),
    ]
    figures = summarize(samples, 2.0, ["ttft"], [99.0])
    assert (figures["completed"], figures["failed"], figures["total_output_tokens"]) == (2, 1, 8)
    assert figures["request_throughput"] == 1.0 and figures["output_throughput"] == 4.0
    assert figures["mean_ttft_ms"] == pytest.approx(150) and figures["p99_ttft_ms"] == pytest.approx(199)
    assert figures["mean_tpot_ms"] == pytest.approx((100 + 50) / 2)
    assert figures["mean_itl_ms"] == pytest.approx((0.4 + 0.1) / 6 * 1e3)
    assert "p99_itl_ms" not in figures


def test_percentiles() -> None:
    assert [percentile([4, 1, 3, 2], percent) for percent in (0, 50, 100)] == [1, 2.5, 4]
    assert percentile([], 50) != percentile([], 50) and mean([1, 2]) == 1.5


def test_workloads(tmp_path: Path) -> None:
    ids = random_token_ids(3, 7, 100, 1)
    assert ids == random_token_ids(3, 7, 100, 1) != random_token_ids(3, 7, 100, 2)
    assert all(len(one) == 7 and all(10 <= token < 90 for token in one) for one in ids)
    file = tmp_path / "x.jsonl"
    file.write_text(
        '{"prompt": "a"}\n{"turns": ["b", "c"]}\n{"messages": [{"role": "user", "content": "d"}]}\n'
    )
    assert read_prompts(file) == ["a", "b", "d"]
    file.write_text("one\n\ntwo\n")
    assert read_prompts(file) == ["one", "two"]
    file.write_text('[{"nothing": 1}]')
    with pytest.raises(ValueError, match="has no prompts"):
        read_prompts(file)


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert "taco_llm can run models here" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    names = {finding["what"] for finding in findings}
    assert {"Python", "native core", "CPU", "memory", "huge pages", "packages", "default model"} <= names
    assert names & {"CUDA", "CUDA backend"}  # without and with the plugin
