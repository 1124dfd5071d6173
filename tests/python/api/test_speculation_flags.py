"""Speculation by its flags: what belongs together, what contradicts, and the core's settings that follow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from taco_llm import AsyncEngineArgs, EngineArgs, speculation
from taco_llm.engine_args import NotBuiltError
from taco_llm.memory import GIB, total_bytes

NGRAM = {"speculative_model": "[ngram]", "num_speculative_tokens": 5, "ngram_prompt_lookup_max": 4}
FACTS = {"vocab_size": 1000, "max_model_len": 512, "eos_token_ids": [2, 7]}


def settings(**given):
    args = EngineArgs(**given)
    args.check()
    return speculation.settings(args, **FACTS)


def write(folder: Path, **keys) -> str:
    (folder / "lookahead_cache_config.json").write_text(json.dumps(keys))
    return str(folder)


def test_nothing_is_drafted_unless_asked_for() -> None:
    assert settings() is None


@pytest.mark.parametrize("name", ["[ngram]", "ngram"])
def test_ngram(name: str) -> None:
    config = settings(**NGRAM | {"speculative_model": name})
    assert config.method == "ngram"
    assert (config.num_speculative_tokens, config.ngram_max, config.ngram_min) == (5, 4, 1)
    assert config.cost_model and not config.typical_acceptance and config.disable_by_batch_size == 0
    config = settings(**NGRAM, ngram_prompt_lookup_min=3, speculative_disable_by_batch_size=8)
    assert (config.ngram_min, config.disable_by_batch_size) == (3, 8)


def test_async_engine_args_have_the_same() -> None:
    args = AsyncEngineArgs(**NGRAM)
    args.check()
    assert speculation.settings(args, **FACTS).method == "ngram"


def test_lookahead_without_a_file_has_the_documented_defaults(tmp_path: Path) -> None:
    config = settings(lookahead_cache_config_dir=str(tmp_path))
    assert config.method == "lookahead" and config.cost_model
    keys = config.lookahead
    assert (keys.cache_mode, keys.copy_length, keys.token_paths_top_k) == (2, 7, 2)
    assert (keys.match_length, keys.turbo_match_length, keys.min_match_length) == (2, 7, 2)
    assert (keys.voc_size, keys.max_seq_len, keys.eos_token_id) == (1000, 512, [2, 7])  # the model's
    assert keys.global_cache_switch and not keys.ignore_prompt and not keys.is_debug
    assert 0 < config.memory_bytes <= 0.15 * total_bytes()


@pytest.mark.parametrize("keys, paths", [
    ({"copy_length": 5}, 2), ({"cache_mode": 2}, 1), ({"cache_mode": 1}, 1),
    ({"cache_mode": 0, "token_paths_top_k": 3}, 3), ({"token_paths_top_k": 1}, 1),
])  # fmt: skip
def test_paths_are_two_unless_the_mode_or_they_are_set(tmp_path: Path, keys: dict, paths: int) -> None:
    assert settings(lookahead_cache_config_dir=write(tmp_path, **keys)).lookahead.token_paths_top_k == paths


def test_keys_reach_the_core(tmp_path: Path) -> None:
    folder = write(
        tmp_path, copy_length=5, cost_model=False, voc_size=600, max_seq_len=100, eos_token_id=[7, 2],
        start_freq=1, decay=0.1, is_debug=True, log_interval=300,
    )  # fmt: skip
    config = settings(lookahead_cache_config_dir=folder)
    keys = config.lookahead
    assert not config.cost_model
    assert (keys.copy_length, keys.voc_size, keys.max_seq_len, keys.eos_token_id) == (5, 600, 100, [7, 2])
    assert (keys.start_freq, keys.is_debug, keys.log_interval) == (1.0, True, 300)
    assert keys.decay == pytest.approx(0.1)


def test_the_file_cannot_outgrow_the_model(tmp_path: Path) -> None:
    folder = write(tmp_path, voc_size=200000, max_seq_len=32768)
    keys = settings(lookahead_cache_config_dir=folder).lookahead
    assert (keys.voc_size, keys.max_seq_len) == (1000, 512)


def test_a_foreign_end_of_text_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = settings(lookahead_cache_config_dir=write(tmp_path, eos_token_id=5)).lookahead
    assert keys.eos_token_id == [5] and "not the model's (2, 7)" in caplog.text


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("key", [False, True])
def test_either_way_of_ignoring_prompts_is_enough(tmp_path: Path, flag: bool, key: bool) -> None:
    config = settings(
        lookahead_cache_config_dir=write(tmp_path, ignore_prompt=key), ignore_prompt_for_lookahead_cache=flag
    )
    assert config.lookahead.ignore_prompt == (flag or key)


def test_typical_acceptance_is_called_lossy(caplog: pytest.LogCaptureFixture) -> None:
    config = settings(**NGRAM, spec_decoding_acceptance_method="typical_acceptance_sampler")
    assert config.typical_acceptance
    assert (config.typical_threshold, config.typical_alpha) == (pytest.approx(0.09), pytest.approx(0.3))
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "lossy" in caplog.text
    config = settings(
        **NGRAM,
        spec_decoding_acceptance_method="typical_acceptance_sampler",
        typical_acceptance_sampler_posterior_threshold=0.2,
        typical_acceptance_sampler_posterior_alpha=0.5,
    )
    assert (config.typical_threshold, config.typical_alpha) == (pytest.approx(0.2), pytest.approx(0.5))


@pytest.mark.parametrize("given, words", [
    (NGRAM | {"lookahead_cache_config_dir": "."}, "two ways to draft"),
    ({"speculative_model": "[ngram]", "ngram_prompt_lookup_max": 4}, "needs --num-speculative-tokens"),
    ({"speculative_model": "[ngram]", "num_speculative_tokens": 4}, "needs --ngram-prompt-lookup-max"),
    ({"num_speculative_tokens": 4}, r"add --speculative-model \[ngram\]"),
    ({"ngram_prompt_lookup_max": 4}, r"add --speculative-model \[ngram\]"),
    ({"ngram_prompt_lookup_min": 4}, r"add --speculative-model \[ngram\]"),
    ({"lookahead_cache_config_dir": ".", "num_speculative_tokens": 4}, "copy_length"),
    ({"lookahead_cache_config_dir": ".", "ngram_prompt_lookup_max": 4}, "turbo_match_length"),
    (NGRAM | {"num_speculative_tokens": 0}, "from 1 to 63"),
    (NGRAM | {"num_speculative_tokens": 64}, "from 1 to 63"),
    (NGRAM | {"ngram_prompt_lookup_max": 0}, "1 or more"),
    (NGRAM | {"ngram_prompt_lookup_min": 5}, "from 1 to ngram_prompt_lookup_max=4"),
    (NGRAM | {"ngram_prompt_lookup_min": 0}, "from 1 to ngram_prompt_lookup_max=4"),
    (NGRAM | {"speculative_disable_by_batch_size": 1}, "2 or more"),
    (NGRAM | {"typical_acceptance_sampler_posterior_alpha": -0.1}, "from 0 to 1"),
    (NGRAM | {"lookahead_cache_save": "x"}, "needs the lookahead cache"),
    ({"lookahead_cache_save": "x"}, "add --lookahead-cache-config-dir"),
    ({"lookahead_cache_config_dir": ".", "lookahead_cache_save": "."}, "is a folder"),
    ({"lookahead_cache_config_dir": ".", "lookahead_cache_save": "no/such/file"}, "no folder no/such"),
    ({"lookahead_cache_config_dir": ".", "lookahead_cache_save_interval": -1}, "minutes"),
    ({"lookahead_cache_config_dir": ".", "cpu_decoding_memory_utilization": 0}, "above 0"),
    ({"lookahead_cache_config_dir": ".", "cpu_decoding_memory_utilization": 1.5}, "at most 1"),
    ({"lookahead_cache_config_dir": "no/such/folder"}, "there is no such folder"),
])  # fmt: skip
def test_what_does_not_fit_together(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EngineArgs(**given).check()


@pytest.mark.parametrize("given", [
    {"speculative_model": "some/draft-model", "num_speculative_tokens": 5},
    {"speculative_draft_tensor_parallel_size": 2}, {"speculative_model_quantization": "fp8"},
    {"cpu_draft_worker": True},
])  # fmt: skip
def test_draft_models_are_refused_with_what_there_is_instead(given: dict) -> None:
    with pytest.raises(
        NotBuiltError, match="draft model, which is not built yet; --lookahead-cache-config-dir"
    ):
        EngineArgs(**given).check()


@pytest.mark.parametrize("given, flag", [
    ({"ignore_prompt_for_lookahead_cache": True}, "--ignore-prompt-for-lookahead-cache"),
    ({"cpu_decoding_memory_utilization": 0.3}, "--cpu-decoding-memory-utilization"),
    (NGRAM | {"ignore_prompt_for_lookahead_cache": True}, "--ignore-prompt-for-lookahead-cache"),
    ({"speculative_disable_by_batch_size": 4}, "--speculative-disable-by-batch-size"),
    ({"spec_decoding_acceptance_method": "typical_acceptance_sampler"}, "--spec-decoding-acceptance-method"),
    (NGRAM | {"typical_acceptance_sampler_posterior_alpha": 0.3},
     "--typical-acceptance-sampler-posterior-alpha"),
])  # fmt: skip
def test_what_changes_nothing_says_so(given: dict, flag: str) -> None:
    args = EngineArgs(**given)
    args.check()
    assert [note.partition(" ")[0].rstrip(":") for note in args.notes("cpu")] == [flag]


def test_memory_is_a_part_of_all_and_not_more_than_half_of_what_is_free(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert speculation.memory_bound(0.15, 100 * GIB, 60 * GIB) == 15 * GIB
    assert caplog.text == ""
    assert speculation.memory_bound(0.15, 100 * GIB, 20 * GIB) == 10 * GIB
    assert "10.00 GiB" in caplog.text and "15.00 GiB" in caplog.text
    with pytest.raises(MemoryError, match="--cpu-decoding-memory-utilization"):
        speculation.memory_bound(0.15, 100 * GIB, 0)
    with pytest.raises(MemoryError):
        speculation.memory_bound(0.15, 100 * GIB, -5 * GIB)


def test_total_memory_is_the_containers_where_it_is_less(tmp_path: Path) -> None:
    meminfo, own = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n")
    own.write_text("0::/inner\n")
    root = tmp_path / "fs"
    (root / "inner").mkdir(parents=True)
    where = {"meminfo": meminfo, "cgroup_root": root, "own_cgroup": own}
    assert total_bytes(**where) == 16 * GIB
    (root / "inner/memory.max").write_text("max\n")
    assert total_bytes(**where) == 16 * GIB
    (root / "inner/memory.max").write_text(f"{4 * GIB}\n")
    assert total_bytes(**where) == 4 * GIB
