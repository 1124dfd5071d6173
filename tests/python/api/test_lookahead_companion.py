"""What stands beside the lookahead cache: its file, its warm-up, its log line. The drafter is a stand-in."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from taco_llm import lookahead
from taco_llm.lookahead import Companion, hit_line, read_texts, restore, warm_up
from waiting import wait_until


class Drafter:
    """Notes what it is told; a text takes 100 bytes of its memory."""

    def __init__(self) -> None:
        self.told: list[tuple] = []
        self.memory_bytes = 0
        self.saves: list[tuple[str, str]] = []  # path, name of the thread
        self.failure: Exception | None = None

    def begin(self, sequence: int, prompt: list[int], name_space: int = 0) -> None:
        self.told.append(("begin", sequence, prompt, name_space))
        self.memory_bytes += 100

    def commit(self, sequence: int, tokens: list[int]) -> None:
        self.told.append(("commit", sequence, tokens))

    def end(self, sequence: int) -> None:
        self.told.append(("end", sequence))

    def save(self, path: str) -> int:
        self.saves.append((path, threading.current_thread().name))
        if self.failure is not None:
            raise self.failure
        return 1234567

    def load(self, path: str) -> int:
        if self.failure is not None:
            raise self.failure
        return 42


def averages(**changes: float) -> SimpleNamespace:
    names = ("num_iters hit_iters hit_len invalid_len hit_rate global_average_hit_len valid_average_hit_len "
             "hit_valid_rate").split()  # fmt: skip
    return SimpleNamespace(**dict.fromkeys(names, 0.0) | changes)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookahead, "_LOOK_SECONDS", 0.005)


# --- the log line


def test_the_line_is_that_of_the_documentation() -> None:
    line = hit_line(
        averages(
            num_iters=10785.0, hit_iters=8836.445, hit_len=16887.065, invalid_len=3936.295, hit_rate=0.82494,
            global_average_hit_len=1.58831, valid_average_hit_len=1.91174, hit_valid_rate=0.81353,
        )
    )  # fmt: skip
    assert line == (
        "num_iters: 10785.0000, hit_iters:8836.4450, hit_len: 16887.0650, invalid_len: 3936.2950, "
        "hit_rate: 0.8249, global_average_hit_len: 1.5883, valid_average_hit_len: 1.9117, "
        "hit_valid_rate: 0.8135"
    )


def test_the_line_comes_through_the_log_with_its_module() -> None:
    """In a process of its own: the log's set-up is the package's, not pytest's."""
    program = """if True:
        from types import SimpleNamespace
        from taco_llm import logging, lookahead
        logging.setup()
        names = "num_iters hit_iters hit_len invalid_len hit_rate global_average_hit_len"
        names += " valid_average_hit_len hit_valid_rate"
        averages = SimpleNamespace(**dict.fromkeys(names.split(), 1.5))
        stats = [SimpleNamespace(iterations=0, reports=0)]
        companion = lookahead.Companion(None, lambda: stats[0], debug=True)
        companion.start()
        stats[0] = SimpleNamespace(iterations=3000, reports=1, reported=averages)
        companion.stop()
    """
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    assert re.fullmatch(
        r"INFO \d\d-\d\d \d\d:\d\d:\d\d lookahead\.py:\d+\] num_iters: 1\.5000, hit_iters:1\.5000, "
        r"hit_len: 1\.5000, invalid_len: 1\.5000, hit_rate: 1\.5000, global_average_hit_len: 1\.5000, "
        r"valid_average_hit_len: 1\.5000, hit_valid_rate: 1\.5000\n",
        shown,
    ), shown


def test_a_line_for_each_report_and_none_without_debug(fast: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stats = SimpleNamespace(iterations=0, reports=0, reported=averages())
    for debug in (True, False):
        stats.reports = 0
        companion = Companion(Drafter(), lambda: stats, debug=debug)
        companion.start()
        for count in (1, 2):
            stats.reported, stats.reports = averages(num_iters=count), count
            if debug:
                wait_until(lambda: f"num_iters: {count}.0000" in caplog.text)  # noqa: B023
        companion.stop()
    assert len(caplog.records) == 2


# --- the file


def test_saves_now_and_then_and_at_the_end_in_its_own_thread(fast: None, tmp_path: Path) -> None:
    drafter, stats = Drafter(), SimpleNamespace(iterations=0, reports=0)
    companion = Companion(drafter, lambda: stats, path="where", minutes=0.01 / 60, debug=True)
    companion.start()
    stats.iterations = 1
    wait_until(lambda: len(drafter.saves) == 1)
    time.sleep(0.05)
    assert len(drafter.saves) == 1  # nothing is new
    stats.iterations = 2
    wait_until(lambda: len(drafter.saves) == 2)
    companion._seconds = 1000.0
    time.sleep(0.05)
    saved = len(drafter.saves)
    stats.iterations = 3
    companion.stop()
    companion.stop()
    assert len(drafter.saves) == saved + 1
    assert set(drafter.saves) == {("where", "taco-lookahead")}


def test_saves_at_the_end_only_where_the_interval_is_0() -> None:
    drafter, stats = Drafter(), SimpleNamespace(iterations=0, reports=0)
    companion = Companion(drafter, lambda: stats, path="where", minutes=0)
    companion.start()
    stats.iterations = 5
    companion.stop()
    assert len(drafter.saves) == 1
    companion = Companion(drafter, lambda: stats, path="where", minutes=0)
    companion.start(unsaved=True)  # a warm-up
    companion.stop()
    assert len(drafter.saves) == 2
    companion = Companion(drafter, lambda: stats, path="where", minutes=0)
    companion.start()
    companion.stop()
    assert len(drafter.saves) == 2  # nothing was learnt


def test_a_failed_save_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    drafter, stats = Drafter(), SimpleNamespace(iterations=0, reports=0)
    drafter.failure = RuntimeError("no space left on device")
    companion = Companion(drafter, lambda: stats, path="where")
    companion.start(unsaved=True)
    companion.stop()
    assert [(r.levelname, r.getMessage(), r.exc_info) for r in caplog.records] == [
        ("ERROR", "the lookahead cache could not be saved to where: no space left on device", None)
    ]


def test_restoring(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "drafts.bin"
    file.write_bytes(b"old")
    drafter = Drafter()
    restore(drafter, str(file))
    assert "42 entries" in caplog.text and file.exists()
    drafter.failure = KeyError("no file")
    restore(drafter, str(file))
    assert "does not exist yet" in caplog.text and file.exists()
    drafter.failure = RuntimeError("permission denied")
    restore(drafter, str(file))
    assert "cannot be read: permission denied" in caplog.text and file.exists()
    drafter.failure = ValueError("it is for a vocabulary of 7 tokens")
    restore(drafter, str(file))
    assert "it is for a vocabulary of 7 tokens" in caplog.text
    assert not file.exists() and (tmp_path / "drafts.bin.unusable").read_bytes() == b"old"
    restore(drafter, str(file))  # and it is not there any more
    assert len(caplog.records) == 5 and all(record.exc_info is None for record in caplog.records)


# --- warm-up


def texts_file(folder: Path, content: object) -> str:
    file = folder / "texts.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def test_each_text_is_a_sequence_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                            capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    path = texts_file(tmp_path, [{"prompt": [1, 2], "output": [3]}, {"output": [4, 5]}])
    drafter = Drafter()
    assert warm_up(drafter, path, vocab_size=10, memory_bytes=0) == 5
    (_, first, *_), (_, second, *_) = drafter.told[0], drafter.told[3]
    assert drafter.told == [
        ("begin", first, [1, 2], 0), ("commit", first, [3]), ("end", first),
        ("begin", second, [], 0), ("commit", second, [4, 5]), ("end", second),
    ]  # fmt: skip
    assert first != second
    assert "5 tokens of 2 texts" in caplog.text
    assert "Lookahead warm-up: 100%" in capsys.readouterr().err


def test_it_stops_when_the_memory_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = texts_file(tmp_path, [{"output": [1]}] * 50)
    drafter = Drafter()
    assert warm_up(drafter, path, vocab_size=10, memory_bytes=1000) == 10
    assert "10 texts" in caplog.text and "memory is full" in caplog.text


@pytest.mark.parametrize("content, words", [
    ([{"prompt": [1]}], r"text 0 \(from 0\) should be"),
    ([{"output": [1]}, [1]], r"text 1 \(from 0\) should be"),
    ([{"output": [1], "text": "x"}], "should be"),
    ([{"output": "abc"}], "output should be a list of token ids"),
    ([{"prompt": [1.0], "output": []}], "prompt should be a list of token ids"),
    ([{"output": [True]}], "output should be a list of token ids"),
    ([{"output": [1, 10]}], "has the token id 10, and the vocabulary has 10; .* another model"),
    ([{"output": [-1]}], "has the token id -1"), ([{"output": [10**30]}], "has the token id 1000"),
    ("{}", "should be a JSON list of texts"), ("", "should be a JSON list of texts"),
    ('[{"output": [1]}', "a comma or ] is missing"),
    ('[{"output": [1]} {"output": [1]}]', "a comma or ] is missing"),
    ('[{"output": [1]},]', "is not JSON"), ('[{"output": [1', "is not JSON"),
    ("[] []", "goes on after the end"),
    ('[{"output": ' + "[" * 100000, "nested too deeply"),
])  # fmt: skip
def test_a_wrong_file_is_an_error(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        warm_up(Drafter(), texts_file(tmp_path, content), vocab_size=10, memory_bytes=0)
    assert "texts.json" in str(error.value) and len(str(error.value)) < 500


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b'[{"output": "\xff"}]')
    with pytest.raises(ValueError, match="not UTF-8"):
        list(read_texts(str(tmp_path / "x")))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
def test_texts_are_read_in_any_chunks(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookahead, "_CHUNK", chunk)
    texts = [{"prompt": list(range(n)), "output": ["é☃"] * n} for n in (0, 5, 1, 300)]
    path = tmp_path / "x"
    for spaced in (json.dumps(texts, ensure_ascii=False), json.dumps(texts, indent=3) + "\n\n"):
        path.write_text(spaced)
        assert [text for text, _ in read_texts(str(path))] == texts
        assert [read for _, read in read_texts(str(path))][-1] <= path.stat().st_size
    path.write_text(" [ \n ] ")
    assert list(read_texts(str(path))) == []


def test_one_text_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookahead, "_CHUNK", 100)
    (tmp_path / "x").write_text(json.dumps([{"output": [1] * 1000}]))
    assert len(list(read_texts(str(tmp_path / "x"), longest=4000))) == 1
    with pytest.raises(ValueError, match="more than 500 characters"):
        list(read_texts(str(tmp_path / "x"), longest=500))


def test_reading_holds_little_at_a_time(tmp_path: Path) -> None:
    """30 MB of texts pass through a few MB."""
    import tracemalloc

    with open(tmp_path / "x", "w") as file:
        file.write("[")
        for n in range(300):
            file.write(("," if n else "") + json.dumps({"output": [n] * 20000}))
        file.write("]")
    size = (tmp_path / "x").stat().st_size
    assert size > 25e6
    tracemalloc.start()
    assert sum(1 for _ in read_texts(str(tmp_path / "x"))) == 300
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
