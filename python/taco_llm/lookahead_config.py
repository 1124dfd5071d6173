"""lookahead_cache_config.json: its keys, and reading it strictly."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taco_llm.flag_table import nearest

FILE_NAME = "lookahead_cache_config.json"
_MOST_BYTES = 1 << 16
_MOST = 2**30


@dataclass(frozen=True)
class Key:
    """A key of the file. default: what the core takes when the key is absent; token_paths_top_k: see read."""

    kind: str  # "int", "float", "bool", "str", "ids" (an id or a list of them)
    default: Any
    low: float = 0
    high: float = 0
    help: str = ""

    def problem(self, value: Any) -> str | None:
        """What a value should be instead, as the end of a sentence; None: it is fine."""
        if self.kind == "bool":
            return None if isinstance(value, bool) else "true or false"
        if self.kind == "str":
            return None if isinstance(value, str) and value and "\0" not in value else "the path of a file"
        if self.kind == "ids":
            ids = value if isinstance(value, list) else [value]
            fine = ids and all(_is_int(one) and 0 <= one <= self.high for one in ids)
            return None if fine else "a token id, or a list of token ids"
        if self.kind == "int":
            fine = _is_int(value) and self.low <= value <= self.high
            return None if fine else f"a whole number from {self.low:.0f} to {self.high:.0f}"
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return (
            None
            if number and self.low <= value <= self.high
            else f"a number from {self.low:g} to {self.high:g}"
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# The ranges are wide: they catch mistakes, not bad taste.
KEYS: dict[str, Key] = {
    "cache_mode": Key("int", 2, 0, 2, "0: Raw, 1: Turbo, 2: Turbo, and Raw where Turbo proposes nothing"),
    "cache_size": Key(
        "int", 0, 0, 2**40, "contexts kept at most; 0: as many as --cpu-decoding-memory-utilization holds"
    ),
    "copy_length": Key("int", 7, 1, 63, "longest draft, in tokens"),
    "match_length": Key("int", 2, 1, 16, "Raw: last tokens that must match"),
    "turbo_match_length": Key("int", 7, 1, 16, "Turbo: longest context looked up"),
    "min_match_length": Key("int", 2, 1, 16, "Turbo: shortest context looked up"),
    "cell_max_size": Key("int", 16, 1, 64, "continuations kept for one context"),
    "voc_size": Key("int", 0, 0, _MOST, "ids from here on are never cached; 0: the model's vocabulary"),
    "max_seq_len": Key("int", 0, 0, _MOST, "nothing is drafted beyond; 0: the server's longest sequence"),
    "eos_token_id": Key("ids", [], 0, _MOST, "ends a text, no context spans it; absent: the model's"),
    "top_k": Key("int", 1, 1, 16, "Raw: continuations of one context that are proposed together"),
    "threshold": Key("float", 2.0, 0, 4000, "a full cell evicts among continuations rarer than this"),
    "decay": Key("float", 0.5, 0, 0.999, "and multiplies its counts by this where there is none"),
    "is_hybrid": Key("bool", True, help="Raw: try shorter matches, too"),
    "is_debug": Key("bool", False, help="log a line of hit figures every log_interval iterations"),
    "log_interval": Key("int", 3000, 1, _MOST, "iterations (of one sequence each) between two such lines"),
    "target_parallelism": Key(
        "int", 512, 1, _MOST, "cache_mode 0 with one path: in steps of more rows drafts get shorter"
    ),
    "top_k_in_cell": Key("int", 16, 1, 64, "Turbo: continuations read from one cell"),
    "token_paths_top_k": Key(
        "int", 2, 1, 8, "drafts at each depth, 4 at most advised; absent: 1 if cache_mode is set, else 2"
    ),
    "start_freq": Key(
        "float", 10.0, 0.001, 1e6, "weight of what the request itself has shown, where token_paths_top_k > 1"
    ),
    "num_threads": Key("int", 8, 1, 1024, "threads that draft where a GPU computes the steps"),
    "global_cache_switch": Key("bool", True, help="false: requests learn nothing from each other"),
    "ignore_prompt": Key("bool", False, help="learn from answers only"),
    "warmup_file": Key(
        "str", "", help='JSON of texts to learn at start: [{"prompt": [ids], "output": [ids]}, ...]'
    ),
    "cost_model": Key(
        "bool", True, help="taco_llm's own: false verifies every draft, whether or not it is worth its time"
    ),
}  # fmt: skip


def read(folder: str) -> dict[str, Any]:
    """What the settings file in `folder` says; a warmup_file comes as an absolute path that exists.

    Without a file the result is empty, which stands for all defaults. Where the file has a cache_mode and no
    token_paths_top_k, the latter is 1, as its documentation says; else its default is 2.
    ValueError for a folder that does not exist and for a file with anything wrong in it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"--lookahead-cache-config-dir {folder}: "
            + ("is a file; name its folder" if root.exists() else "there is no such folder; make it")
            + f" (it need not hold a {FILE_NAME}: without one the defaults apply)"
        )
    path = root / FILE_NAME
    try:
        if not path.is_file():
            if os.path.lexists(path):
                raise ValueError(f"{path} is not a file")
            return {}
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path} is larger than {_MOST_BYTES} bytes: that is no settings file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"{path}: {reason}") from None
    return check(_parse(path, text), path)


def _parse(path: Path, text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"{path}: {key} stands there twice; keep one")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def check(given: Any, path: Path) -> dict[str, Any]:
    """The settings of a parsed file. ValueError as for read."""
    if not isinstance(given, dict):
        raise ValueError(f'{path} should be an object in braces, such as {{"copy_length": 7}}')
    for name, value in given.items():
        key = KEYS.get(name)
        if key is None:
            near = nearest(name, KEYS)
            raise ValueError(
                f"{path} has no key {name!r}"
                + (f"; did you mean {near!r}?" if near else ".")
                + f" The keys are {', '.join(KEYS)}."
            )
        if (wanted := key.problem(value)) is not None:
            raise ValueError(f"{path}: {name} should be {wanted}, not {json.dumps(value)[:80]}")
    settings = dict(given)
    if "cache_mode" in settings:
        settings.setdefault("token_paths_top_k", 1)
    shortest = settings.get("min_match_length", KEYS["min_match_length"].default)
    longest = settings.get("turbo_match_length", KEYS["turbo_match_length"].default)
    if shortest > longest:
        raise ValueError(
            f"{path}: min_match_length is {shortest} and turbo_match_length {longest}; the shortest match "
            "should not be longer than the longest"
        )
    if "warmup_file" in settings:
        # An absolute path stays as it is.
        file = path.parent / Path(settings["warmup_file"]).expanduser()
        if not file.is_file():
            raise ValueError(f"{path}: warmup_file {file} does not exist, or is no file")
        settings["warmup_file"] = str(file.resolve())
    return settings
