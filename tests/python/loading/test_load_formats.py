"""resolve(), and the formats .bin, npcache and dummy."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from taco_llm.loading import LoadError, resolve
from tiny_checkpoint import logits

Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def write_bin(torch, folder, name="pytorch_model.bin", dtype=None, **options):
    state = {n: torch.from_numpy(t.copy()).to(dtype or torch.float32) for n, t in folder.tensors.items()}
    torch.save(state, folder.path / name, **options)


def test_bin_equals_safetensors(torch, folder):
    folder.write()
    expected = logits(folder.load())
    (folder.path / "model.safetensors").unlink()
    write_bin(torch, folder)
    (folder.path / "training_args.bin").write_bytes(b"not weights")
    assert resolve(str(folder.path)).format == "pt"
    np.testing.assert_array_equal(logits(folder.load()), expected)
    write_bin(torch, folder, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(logits(folder.load("pt")), expected)


def test_safetensors_are_preferred(torch, folder):
    folder.write()
    write_bin(torch, folder)
    assert resolve(str(folder.path)).format == "safetensors"
    assert resolve(str(folder.path), load_format="pt").format == "pt"


def test_bin_shards(torch, folder):
    folder.write()
    expected = logits(folder.load())
    (folder.path / "model.safetensors").unlink()
    tensors, names = folder.tensors, list(folder.tensors)
    files = {"pytorch_model-00001-of-00002.bin": names[:7], "pytorch_model-00002-of-00002.bin": names[7:]}
    for file, part in files.items():
        folder.tensors = {n: tensors[n] for n in part}
        write_bin(torch, folder, file)
    weight_map = {n: file for file, part in files.items() for n in part}
    (folder.path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    np.testing.assert_array_equal(logits(folder.load()), expected)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_pickle_is_not_run(torch, folder, capfd):
    (folder.path / "pytorch_model.bin").write_bytes(pickle.dumps({Q0: Evil()}))
    with pytest.raises(LoadError, match="pytorch_model.bin: not a file of tensors"):
        folder.load()
    torch.save({Q0: Evil()}, folder.path / "pytorch_model.bin")
    with pytest.raises(LoadError, match="pytorch_model.bin: not a file of tensors"):
        folder.load()
    assert "executed" not in capfd.readouterr().out


def test_bad_bin_files(torch, folder):
    path = folder.path / "pytorch_model.bin"
    write_bin(torch, folder)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(LoadError, match="pytorch_model.bin"):
        folder.load()
    torch.save({"model": {Q0: torch.zeros(2)}}, path)
    with pytest.raises(LoadError, match="entry 'model' is dict, not a tensor"):
        folder.load()
    torch.save([torch.zeros(2)], path)
    with pytest.raises(LoadError, match="expected a dictionary of tensors, found list"):
        folder.load()
    folder.tensors[Q0] = folder.tensors[Q0].astype(np.int32)
    torch.save({n: torch.from_numpy(t) for n, t in folder.tensors.items()}, path)
    with pytest.raises(LoadError, match=f"tensor '{Q0}' is stored as int32"):
        folder.load()


def test_bin_without_torch_says_what_to_install(folder):
    (folder.path / "pytorch_model.bin").write_bytes(b"anything")
    code = f"""
import sys
sys.modules["torch"] = None
from taco_llm.loading.torch_files import read_torch
from pathlib import Path
try:
    read_torch(Path({str(folder.path / "pytorch_model.bin")!r}))
except ValueError as e:
    assert "pip install taco_llm[torch]" in str(e), e
    print("refused")
"""
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "refused", done.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_npcache(torch, folder, dtype):
    write_bin(torch, folder, dtype=getattr(torch, dtype))
    expected = logits(folder.load("pt"))
    np.testing.assert_array_equal(logits(folder.load("npcache")), expected)
    cache = folder.path / "np"
    assert set(json.loads((cache / "weight_names.json").read_text())) == set(folder.tensors)
    (folder.path / "pytorch_model.bin").write_bytes(b"")  # the second load reads the cache alone
    np.testing.assert_array_equal(logits(folder.load("np-cache")), expected)

    (cache / Q0).write_bytes(b"\x80\x04.")
    with pytest.raises(LoadError, match=f"tensor '{Q0}' cannot be read"):
        folder.load("npcache")
    np.save(open(cache / Q0, "wb"), np.array([Evil()], dtype=object))
    with pytest.raises(LoadError, match=f"tensor '{Q0}' cannot be read"):
        folder.load("npcache")
    (cache / "weight_names.json").write_text(json.dumps(["../config.json"]))
    with pytest.raises(LoadError, match="cannot be a file name"):
        folder.load("npcache")


def test_npcache_refuses_names_that_are_paths(torch, folder):
    torch.save({"../escape": torch.zeros(4)}, folder.path / "pytorch_model.bin")
    with pytest.raises(LoadError, match="'../escape' cannot be a file name"):
        folder.load("npcache")
    assert not (folder.path / "np").exists() and not (folder.path.parent / "escape").exists()
    assert not list(folder.path.glob(".np-*"))


def test_dummy_needs_no_weights(folder):
    out = logits(folder.load("dummy", seed=3))
    assert np.isfinite(out).all() and np.abs(out).max() > 0
    np.testing.assert_array_equal(out, logits(folder.load("dummy", seed=3)))
    assert not np.array_equal(out, logits(folder.load("dummy", seed=4)))


def test_dummy_values():
    from pathlib import Path

    from taco_llm.loading.dummy import dummy_tensors

    start = time.process_time()
    tensors = dummy_tensors({"a": (2000, 3000), "b": (7,)}, "bfloat16", 0, Path("x"))
    a = (tensors["a"].read().view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert time.process_time() - start < 2
    assert a.size == 6_000_000 and 9e-4 < a.max() <= 1.01e-3 and -9e-4 > a.min() >= -1.01e-3
    assert abs(a.mean()) < 1e-5 and len(np.unique(a)) > 1000
    assert tensors["b"].format == "BF16" and tensors["b"].read().size == 14


def test_resolve_messages(folder, tmp_path, monkeypatch):
    def refused(message, *args, **options):
        with pytest.raises(LoadError, match=message):
            resolve(*args, **options)

    refused("no weight files", str(folder.path))
    refused("expected one .gguf file, found none", str(folder.path), load_format="gguf")
    refused(
        "load format 'tensorizer' is not supported; supported: auto, safetensors",
        "x",
        load_format="tensorizer",
    )
    refused("no such file or folder", "./not/there/at/all")
    refused("no such file or folder", "/tmp/not-there.gguf")
    (tmp_path / "file.txt").write_text("x")
    refused("not a .gguf file", str(tmp_path / "file.txt"))
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("config.json is missing", str(empty))
    (empty / "config.json").write_text("[1]")
    refused("config.json: expected a JSON object, found list", str(empty))
    (empty / "config.json").write_text("{" * 100_000)
    refused("config.json: not valid JSON", str(empty))
    (empty / "config.json").write_bytes(b"\xff\xfe")
    refused("config.json: not valid JSON", str(empty))


def test_hub_offline_says_what_to_do(tmp_path):
    code = """
from taco_llm.loading import resolve
try:
    resolve("nobody/no-such-model")
except ValueError as e:
    print(e)
"""
    env = {
        "PYTHONPATH": ":".join(sys.path),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "HOME": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "HF_HUB_OFFLINE is set, and the model is not in the cache" in done.stdout, done.stderr


def test_hub_cache_is_used_offline(folder, tmp_path):
    # The layout of the hub's cache: blobs left out, the snapshot holds the files.
    folder.write()
    repo = tmp_path / "cache" / "models--some--model"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    folder.path.rename(snapshot)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    code = f"""
from taco_llm.loading import resolve
c = resolve("some/model", download_dir={str(tmp_path / "cache")!r})
print(c.format, c.path.name)
"""
    env = {"PYTHONPATH": ":".join(sys.path), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["safetensors", "0" * 40], done.stderr


def test_rope_overrides(folder):
    folder.write()
    plain = logits(folder.load())
    scaling = {"type": "linear", "factor": 8.0}
    scaled = folder.load(rope_scaling=scaling)
    assert scaled.spec.max_positions == 512
    assert not np.allclose(logits(scaled), plain)
    theta = folder.load(rope_theta=100.0)
    assert theta.spec.ropes[0].inv_freq[1] == pytest.approx(100 ** -(2 / 8), rel=1e-6)
    with pytest.raises(LoadError, match="needs a number for 'factor'"):
        folder.load(rope_scaling={"type": "linear"})


def test_progress_bar_only_on_a_terminal(folder, capfd, monkeypatch):
    folder.write()
    folder.load(show_progress=True)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    folder.load(show_progress=False)
    assert capfd.readouterr().err == ""
    folder.load(show_progress=True)
    shown = capfd.readouterr().err
    assert "Loading weights" in shown and "100%" in shown
