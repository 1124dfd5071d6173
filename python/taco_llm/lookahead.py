"""The lookahead cache beside the engine: its memory on disk, its warm-up texts and its log line.

What takes time or touches files happens in a thread of its own, never in the engine's or an event loop's.
"""

from __future__ import annotations

import codecs
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from taco_llm.logging import get_logger

if TYPE_CHECKING:
    from taco_llm import _core

logger = get_logger(__name__)

_CHUNK = 1 << 20
_LONGEST_TEXT = 64 << 20  # bytes of one text in a warm-up file
_LOOK_SECONDS = 0.5
_DECODE = json.JSONDecoder().raw_decode
_WARM_UP_SEQUENCES = 1 << 62  # from here on up; the engine's are smaller


class Companion:
    """Keeps a drafter's memory in a file and writes its log line, in a thread of its own.

    stats: the engine's, to be called until stop(). path: where the memory is kept, or None. minutes: between
    two writes; 0: in stop() only. debug: log a line at every multiple of the log interval.
    """

    def __init__(
        self,
        drafter: _core.Drafter,
        stats: Callable[[], _core.SpeculationStats],
        *,
        path: str | None = None,
        minutes: float = 10,
        debug: bool = False,
    ) -> None:
        self._drafter = drafter
        self._stats = stats
        self._path = path
        self._seconds = minutes * 60
        self._debug = debug
        self._reports = 0
        self._seen = self._stats().iterations
        self._unsaved = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, *, unsaved: bool = False) -> None:
        """unsaved: the drafter has learnt something already (a warm-up) that its file does not have."""
        self._unsaved = unsaved
        if self._debug or self._path is not None:
            self._thread = threading.Thread(target=self._run, name="taco-lookahead", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Saves what is new and ends the thread. To be called when the engine has stopped. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            thread.join()

    def _run(self) -> None:
        next_save = time.monotonic() + self._seconds
        while not self._stopping.wait(_LOOK_SECONDS if self._debug else min(self._seconds or 60, 60)):
            self._look()
            if self._seconds > 0 and time.monotonic() >= next_save:
                self._save()
                next_save = time.monotonic() + self._seconds
        self._look()
        self._save()

    def _look(self) -> None:
        stats = self._stats()
        if stats.iterations != self._seen:
            self._seen, self._unsaved = stats.iterations, True
        if self._debug and stats.reports != self._reports:
            self._reports = stats.reports
            logger.info("%s", hit_line(stats.reported))

    def _save(self) -> None:
        if self._path is None or not self._unsaved:
            return
        started = time.monotonic()
        try:
            size = self._drafter.save(self._path)
        except Exception as error:
            logger.error("the lookahead cache could not be saved to %s: %s", self._path, error)
            return
        self._unsaved = False
        spent = time.monotonic() - started
        logger.info("Lookahead cache: saved %.1f MB to %s in %.2f s", size / 1e6, self._path, spent)


def hit_line(averages: _core.HitAverages) -> str:
    """The figures as dashboards and scripts know them, the space that is missing after hit_iters included."""
    a = averages
    return (
        f"num_iters: {a.num_iters:.4f}, hit_iters:{a.hit_iters:.4f}, hit_len: {a.hit_len:.4f}, "
        f"invalid_len: {a.invalid_len:.4f}, hit_rate: {a.hit_rate:.4f}, "
        f"global_average_hit_len: {a.global_average_hit_len:.4f}, "
        f"valid_average_hit_len: {a.valid_average_hit_len:.4f}, hit_valid_rate: {a.hit_valid_rate:.4f}"
    )


def restore(drafter: _core.Drafter, path: str) -> None:
    """Gives the drafter what was saved to `path`. A file that cannot be used is put aside as PATH.unusable:
    the next save does not overwrite it."""
    started = time.monotonic()
    try:
        count = drafter.load(path)
    except KeyError:
        logger.info("Lookahead cache: %s does not exist yet", path)
        return
    except ValueError as error:
        aside = path + ".unusable"
        try:
            os.replace(path, aside)
        except OSError as problem:
            logger.warning(
                "the lookahead cache starts empty, %s is unusable (%s) and stays (%s)", path, error, problem
            )
            return
        logger.warning("the lookahead cache starts empty, %s is unusable (%s): now %s", path, error, aside)
        return
    except Exception as error:
        logger.error("the lookahead cache starts empty, %s cannot be read: %s", path, error)
        return
    spent = time.monotonic() - started
    logger.info("Lookahead cache: %s entries from %s in %.2f s", f"{count:,}", path, spent)


# --- warm-up


def warm_up(drafter: _core.Drafter, path: str, *, vocab_size: int, memory_bytes: int) -> int:
    """Teaches the drafter the texts of a file [{"prompt": [ids], "output": [ids]}, ...], with a progress bar,
    for as long as its memory has room. Returns the tokens taken. ValueError for a file that is wrong."""
    from tqdm import tqdm

    size = os.path.getsize(path)
    texts = tokens = 0
    started = time.monotonic()
    full = False
    with tqdm(total=size, desc="Lookahead warm-up", unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        for text, read in read_texts(path):
            prompt, output = check_text(text, texts, path, vocab_size)
            full = memory_bytes > 0 and drafter.memory_bytes >= 0.95 * memory_bytes
            if full:
                break
            sequence = _WARM_UP_SEQUENCES + texts
            drafter.begin(sequence, prompt)
            drafter.commit(sequence, output)
            drafter.end(sequence)
            texts += 1
            tokens += len(prompt) + len(output)
            bar.update(read - bar.n)
    logger.info(
        "Lookahead cache: %s tokens of %s texts from %s in %.2f s%s",
        f"{tokens:,}",
        f"{texts:,}",
        path,
        time.monotonic() - started,
        "; its memory is full, the rest was left out" if full else "",
    )
    return tokens


def check_text(text: Any, number: int, path: str, vocab_size: int) -> tuple[list[int], list[int]]:
    """(prompt, output) of one text of a warm-up file; ValueError with its number if it is wrong."""
    where = f"{path}: text {number} (from 0)"
    if not isinstance(text, dict) or not set(text) <= {"prompt", "output"} or "output" not in text:
        raise ValueError(f'{where} should be {{"prompt": [token ids], "output": [token ids]}}')
    lists = []
    for name in ("prompt", "output"):
        ids = text.get(name, [])
        if not isinstance(ids, list) or not all(type(one) is int for one in ids):
            raise ValueError(f"{where}: {name} should be a list of token ids")
        if ids and not (0 <= min(ids) and max(ids) < vocab_size):
            wrong = next(one for one in ids if not 0 <= one < vocab_size)
            raise ValueError(
                f"{where}: {name} has the token id {wrong}, and the vocabulary has {vocab_size}; was it made "
                "with the tokenizer of another model?"
            )
        lists.append(ids)
    return lists[0], lists[1]


def read_texts(path: str, longest: int = _LONGEST_TEXT) -> Iterator[tuple[Any, int]]:
    """The elements of a JSON list, one at a time, each with the number of bytes read so far.

    Holds one element and a chunk in memory. ValueError for a file that is no JSON list, and for an element of
    more than `longest` characters."""
    with open(path, "rb") as file:
        stream = _Stream(file, path)
        if stream.next_character() != "[":
            raise ValueError(f"{path} should be a JSON list of texts")
        stream.at += 1
        separator = stream.next_character()
        stream.at += separator == "]"
        while separator != "]":
            yield stream.element(longest), stream.read
            separator = stream.next_character()
            stream.at += 1
            if separator not in ("]", ","):
                raise ValueError(f"{path} is not JSON: a comma or ] is missing near its byte {stream.read}")
        if stream.next_character():
            raise ValueError(f"{path} goes on after the end of its list")


class _Stream:
    """A text file read in chunks: `text` from `at` on is what has not been used."""

    def __init__(self, file: Any, path: str) -> None:
        self.text, self.at, self.read = "", 0, 0
        self._file, self._path = file, path
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def more(self, size: int) -> bool:
        """Reads on; False at the end."""
        data = self._file.read(size)
        self.read += len(data)
        try:
            self.text += self._decoder.decode(data, final=not data)
        except UnicodeDecodeError:
            raise ValueError(f"{self._path} is not UTF-8 text, near its byte {self.read}") from None
        return bool(data)

    def next_character(self) -> str:
        """Skips white space; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            self.text, self.at = "", 0
            if not self.more(_CHUNK):
                return ""

    def element(self, longest: int) -> Any:
        """The JSON value that comes next."""
        self.next_character()
        if self.at > _CHUNK:  # what was used is forgotten
            self.text, self.at = self.text[self.at :], 0
        while True:
            try:
                value, self.at = _DECODE(self.text, self.at)
                return value
            except RecursionError:
                raise ValueError(f"{self._path} is nested too deeply") from None
            except json.JSONDecodeError as error:
                # It is cut off here, or wrong: what is still to be read tells.
                if len(self.text) - self.at > longest:
                    raise ValueError(
                        f"{self._path}: a text of more than {longest} characters, near its byte {self.read}"
                    ) from None
                if not self.more(max(_CHUNK, len(self.text))):
                    raise ValueError(
                        f"{self._path} is not JSON: {error.msg}, near its byte {self.read}"
                    ) from None
