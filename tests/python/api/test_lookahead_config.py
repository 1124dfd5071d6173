"""lookahead_cache_config.json is read strictly."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from taco_llm import _core
from taco_llm.lookahead_config import FILE_NAME, KEYS, read

DOCUMENT = Path(__file__).parents[3] / "docs/lookahead-cache.md"

# The file of the product's documentation, word for word.
DOCUMENTED = """
{
  "cache_mode": 2,
  "cache_size": 5000000,
  "copy_length": 7,
  "match_length": 2,
  "turbo_match_length": 7,
  "min_match_length": 2,
  "cell_max_size": 16,
  "voc_size": 200000,
  "max_seq_len": 32768,
  "eos_token_id": 2,
  "top_k": 1,
  "threshold": 2.0,
  "decay": 0.5,
  "is_hybrid": true,
  "is_debug": true,
  "log_interval": 3000,
  "target_parallelism": 512,
  "top_k_in_cell": 16,
  "token_paths_top_k": 2,
  "start_freq": 10.0,
  "num_threads": 8,
  "global_cache_switch": true
}
"""


def write(folder: Path, text: str) -> str:
    (folder / FILE_NAME).write_text(text)
    return str(folder)


def test_the_keys_are_the_cores_and_cost_model() -> None:
    fields = {name for name in dir(_core.LookaheadConfig) if not name.startswith("_")}
    assert set(KEYS) == fields | {"cost_model"}


def test_the_defaults_are_the_cores() -> None:
    core = _core.LookaheadConfig()
    for name, key in KEYS.items():
        if name != "cost_model":
            assert getattr(core, name) == key.default, name
    assert _core.SpeculationConfig().cost_model == KEYS["cost_model"].default


def test_the_core_takes_the_ends_of_every_range() -> None:
    """So that a file is refused when it is read, not when the model has been loaded."""
    base = {"voc_size": 1 << 20, "turbo_match_length": 16}
    for name, key in KEYS.items():
        if name == "cost_model":
            continue
        ends = {
            "int": [key.low, key.high],
            "float": [key.low, key.high],
            "ids": [[0], [999, 0]],
            "bool": [True, False],
        }
        for value in ends.get(key.kind, []):
            if name == "turbo_match_length" and value == 1:
                keys = {name: 1, "min_match_length": 1}
            else:
                keys = {name: max(value, 1) if name == "voc_size" else value}
            config = _core.LookaheadConfig(**base | keys)
            _core.make_drafter(
                _core.SpeculationConfig(method="lookahead", lookahead=config, memory_bytes=16 << 20)
            )


def test_no_file_is_all_defaults(tmp_path: Path) -> None:
    assert read(str(tmp_path)) == {}


def test_the_documented_file(tmp_path: Path) -> None:
    assert read(write(tmp_path, DOCUMENTED)) == json.loads(DOCUMENTED)


@pytest.mark.parametrize("text, words", [
    ('{"copy_lenght": 7}', r"no key 'copy_lenght'; did you mean 'copy_length'\? The keys are cache_mode"),
    ('{"zzz": 7}', r"no key 'zzz'\. The keys are cache_mode, .*, cost_model\."),
    ('{"copy_length": 7, "copy_length": 8}', "copy_length stands there twice"),
    ('{"copy_length": "7"}', 'copy_length should be a whole number from 1 to 63, not "7"'),
    ('{"copy_length": 7.0}', "copy_length should be a whole number from 1 to 63, not 7.0"),
    ('{"copy_length": true}', "copy_length should be a whole number"),
    ('{"copy_length": null}', "copy_length should be a whole number"),
    ('{"copy_length": 0}', "copy_length should be a whole number from 1 to 63, not 0"),
    ('{"copy_length": 64}', "from 1 to 63, not 64"),
    ('{"cache_mode": 3}', "cache_mode should be a whole number from 0 to 2"),
    ('{"is_debug": 1}', "is_debug should be true or false, not 1"),
    ('{"is_debug": "true"}', "is_debug should be true or false"),
    ('{"decay": 1.5}', "decay should be a number from 0 to 0.999"),
    ('{"decay": NaN}', "decay should be a number"),
    ('{"threshold": Infinity}', "threshold should be a number"),
    ('{"start_freq": false}', "start_freq should be a number"),
    ('{"eos_token_id": -1}', "eos_token_id should be a token id, or a list"),
    ('{"eos_token_id": []}', "eos_token_id should be a token id, or a list"),
    ('{"eos_token_id": [1, "2"]}', "eos_token_id should be a token id, or a list"),
    ('{"min_match_length": 8}', "min_match_length is 8 and turbo_match_length 7"),
    ('{"turbo_match_length": 1}', "min_match_length is 2 and turbo_match_length 1"),
    ('{"warmup_file": 3}', "warmup_file should be the path of a file"),
    ('{"warmup_file": ""}', "warmup_file should be the path of a file"),
    ('{"warmup_file": "texts.json"}', "texts.json does not exist"),
    ("[]", "an object in braces"), ("7", "an object in braces"),
    ('{"copy_length": 7,}', "is not JSON: .* line 1, column"), ("", "is not JSON"),
    ("[" * 100000, "nested too deeply"),
])  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    if len(text) > 1 << 16:
        text = text[: 1 << 16]
    with pytest.raises(ValueError, match=words) as error:
        read(write(tmp_path, text))
    assert FILE_NAME in str(error.value) and len(str(error.value)) < 1000


def test_folders_and_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder; make it"):
        read(str(tmp_path / "nothing"))
    file = tmp_path / "file"
    file.write_text("{}")
    with pytest.raises(ValueError, match="is a file; name its folder"):
        read(str(file))
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ValueError, match="is not a file"):
        read(str(tmp_path))


def test_size_and_encoding(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no settings file"):
        read(write(tmp_path, " " * 70000))
    (tmp_path / FILE_NAME).write_bytes(b'{"is_debug": "\xff"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        read(str(tmp_path))


def test_a_warm_up_file_lies_beside_the_settings(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text("[]")
    assert read(write(tmp_path, '{"warmup_file": "texts.json"}'))["warmup_file"] == str(
        tmp_path / "texts.json"
    )
    elsewhere = tmp_path / "more"
    elsewhere.mkdir()
    folder = write(elsewhere, json.dumps({"warmup_file": str(tmp_path / "texts.json")}))
    assert read(folder)["warmup_file"] == str(tmp_path / "texts.json")


def test_the_documentation_has_every_key_with_its_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    words = {"eos_token_id": "the model's", "voc_size": "the model's", "max_seq_len": "the server's",
             "cache_size": "by memory", "warmup_file": "none"}  # fmt: skip
    wanted = [(name, words.get(name) or json.dumps(key.default), key.help) for name, key in KEYS.items()]
    assert rows == wanted
