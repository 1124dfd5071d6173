"""The layer checker finds each kind of wrong include, import, name and call, and nothing in a clean tree.

Needs nothing but the standard library.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts/check_layers.py"
spec = importlib.util.spec_from_file_location("check_layers", SCRIPT)
assert spec and spec.loader
check_layers = importlib.util.module_from_spec(spec)
sys.modules["check_layers"] = check_layers
spec.loader.exec_module(check_layers)

# ruff: noqa: E501  (one case a line)

# A small tree in which everything is as it should be.
CLEAN = {
    "cpp/base/dtype.h": "#pragma once\n#include <vector>\n",
    "cpp/cache/block_pool.h": '#include "base/dtype.h"\n',
    "cpp/sched/scheduler.h": '#include "cache/block_pool.h"\n#include "sched/step_plan.h"\n',
    "cpp/sched/step_plan.h": "",
    "cpp/backend/ops.h": '#include "base/dtype.h"\n',
    "cpp/backend/cpu/cpu_backend.h": '#include "backend/ops.h"\n',
    "cpp/backend/cpu/isa/avx2/linear.cc": '#include <immintrin.h>\n#include "backend/cpu/cpu_backend.h"\n',
    "cpp/backend/cuda/gemm.cu": '#include <cuda_runtime.h>\n#include "backend/ops.h"\n',
    "cpp/model/decoder.h": '#include "backend/ops.h"\n',
    "cpp/exec/executor.h": '#include "model/decoder.h"\n#include "sched/step_plan.h"\n',
    "cpp/engine/engine.h": '#include "exec/executor.h"\n#include "sched/scheduler.h"\n',
    "cpp/bindings/module.cc": '#include <nanobind/nanobind.h>\n#include "engine/engine.h"\n',
    "python/taco_llm/__init__.py": "from taco_llm.llm import LLM\n",
    "python/taco_llm/llm.py": "from .engine import build\n\n\ndef load():\n    import torch\n\n    return torch\n",
    "python/taco_llm/engine/__init__.py": "from .builder import build\n",
    "python/taco_llm/engine/builder.py": "from taco_llm import _core\nfrom ..loading import resolve\n",
    "python/taco_llm/loading/__init__.py": "from taco_llm.archs import build_spec\n",
    "python/taco_llm/archs/__init__.py": (
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from taco_llm.engine import build\n\n"
        'REGISTRY = {"NewtonForCausalLM": None}\n'
    ),
    "python/taco_llm/server/app.py": "import re\n\nfrom taco_llm.engine import build\n\nre.compile('x')\n",
    "python/taco_llm/cli/main.py": "import taco_llm.server.app\nfrom taco_llm import llm\n",
}


def findings(root: Path, changes: dict[str, str]) -> list[str]:
    for name, text in {**CLEAN, **changes}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [str(finding) for finding in check_layers.check(root)]


def test_clean_tree(tmp_path: Path) -> None:
    assert findings(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        # C++: the direction of includes
        ("cpp/base/x.cc", '#include "cache/block_pool.h"\n', "cpp/base may not include cache/block_pool.h"),
        ("cpp/sched/x.cc", '#include "backend/ops.h"\n', "cpp/sched may not include backend/ops.h"),
        ("cpp/sched/x.cc", '#include "model/decoder.h"\n', "cpp/sched may not include model/decoder.h"),
        ("cpp/sched/x.cc", '#include "exec/executor.h"\n', "cpp/sched may not include exec/executor.h"),
        ("cpp/cache/x.cc", '#include "sched/step_plan.h"\n', "cpp/cache may not include sched/step_plan.h"),
        ("cpp/model/x.cc", '#include "backend/cpu/cpu_backend.h"\n', "cpp/model may not include backend/cpu/"),
        ("cpp/backend/x.cc", '#include "backend/cpu/cpu_backend.h"\n', "cpp/backend may not include backend/cpu/"),
        ("cpp/backend/cpu/x.cc", '#include "model/decoder.h"\n', "cpp/backend/cpu may not include model/"),
        ("cpp/exec/x.cc", '#include "sched/scheduler.h"\n', "cpp/exec may not include sched/scheduler.h"),
        ("cpp/exec/x.cc", '#include "engine/engine.h"\n', "cpp/exec may not include engine/engine.h"),
        ("cpp/base/x.cc", '#include "../cache/block_pool.h"\n', "write includes from cpp/, without .."),
        ("cpp/sched/x.cc", '#include "step_plan.h"\n', 'write "sched/step_plan.h"'),
        ("cpp/novel/x.cc", "", "cpp/novel is not in the layer map"),
        # C++: headers that belong to one folder
        ("cpp/engine/x.cc", "#include <Python.h>\n", "Python headers belong in cpp/bindings only"),
        ("cpp/model/x.cc", "# include <nanobind/ndarray.h>\n", "Python headers belong in cpp/bindings only"),
        ("cpp/exec/x.cc", "#include <cuda_fp16.h>\n", "CUDA headers belong in cpp/backend/cuda only"),
        ("cpp/bindings/x.cc", "#include <nccl.h>\n", "CUDA headers belong in cpp/backend/cuda only"),
        ("cpp/model/x.cc", "#include <torch/torch.h>\n", "nothing here is built on torch"),
        # C++: names of architectures; the last comes from the registry of the tree itself
        ("cpp/model/x.cc", "if (name == LLAMA) {\n", "names the architecture 'LLAMA'"),
        ("cpp/model/x.cc", "// as in Gemma2\n", "names the architecture 'Gemma'"),
        ("cpp/model/x.def", "enum { kOPT };\n", "names the architecture 'kOPT'"),
        ("cpp/model/x.cc", 'auto n = "Newton";\n', "names the architecture 'Newton'"),
        # Python: the direction of imports
        ("python/taco_llm/archs/x.py", "import taco_llm.loading\n", "taco_llm.archs may not import taco_llm.loading"),
        ("python/taco_llm/archs/x.py", "from ..cli import main\n", "taco_llm.archs may not import taco_llm.cli"),
        ("python/taco_llm/loading/x.py", "from taco_llm import llm\n", "taco_llm.loading may not import taco_llm.llm"),
        ("python/taco_llm/loading/x.py", "import taco_llm\n", "taco_llm.loading may not import taco_llm "),
        ("python/taco_llm/tokenizer/x.py", "def f():\n    from ..server import app\n", "may not import taco_llm.server"),
        ("python/taco_llm/engine/x.py", "from ..server.app import run\n", "may not import taco_llm.server.app"),
        ("python/taco_llm/novel.py", "", "taco_llm.novel is not in the layer map"),
        ("python/taco_llm/llm.py", "import tests.helpers\n", "may not import its tests"),
        # Python: heavy modules at module level
        ("python/taco_llm/llm.py", "import torch\n", "imports torch at module level"),
        ("python/taco_llm/llm.py", "try:\n    from transformers import x\nexcept ImportError:\n    x = 0\n",
         "imports transformers at module level"),
        ("python/taco_llm/llm.py", "class A:\n    import torch.nn\n", "imports torch at module level"),
        # Python: what reads or runs foreign data
        ("python/taco_llm/llm.py", "import pickle\n", "imports pickle"),
        ("python/taco_llm/llm.py", "def f():\n    from marshal import loads\n", "imports marshal"),
        ("python/taco_llm/llm.py", "eval('1')\n", "calls eval()"),
        ("python/taco_llm/llm.py", "def f(s):\n    exec(s)\n", "calls exec()"),
        ("python/taco_llm/llm.py", "def f(torch, p):\n    torch.load(p)\n", "torch.load without weights_only"),
        ("python/taco_llm/llm.py", "def f(torch, p):\n    torch.load(p, weights_only=False)\n",
         "torch.load without weights_only"),
        ("python/taco_llm/llm.py", "def f(np, p):\n    np.load(p, allow_pickle=True)\n", "allow_pickle"),
        ("python/taco_llm/llm.py", "def f(yaml, s):\n    yaml.load(s)\n", "use yaml.safe_load"),
        ("python/taco_llm/llm.py", "import subprocess\n\nsubprocess.run('x', shell=True)\n", "hands a string to a shell"),
        ("python/taco_llm/llm.py", "def f(jinja2, s):\n    jinja2.Environment()\n", "ImmutableSandboxedEnvironment"),
        ("python/taco_llm/llm.py", "def (:\n", "not Python"),
    ],
)  # fmt: skip
def test_finds(tmp_path: Path, path: str, text: str, expected: str) -> None:
    found = findings(tmp_path, {path: text})
    assert len(found) == 1, found
    assert found[0].startswith(path + ":")
    assert expected in found[0]


@pytest.mark.parametrize(
    "text",
    [
        "int OPTION = 0;\n",
        "#define X(...) __VA_OPT__(1)\n",
        "float phi = 0.5f;  // an angle\n",
        "// the block format of llama.cpp\n",
    ],
)
def test_words_that_only_look_like_architectures(tmp_path: Path, text: str) -> None:
    assert findings(tmp_path, {"cpp/model/x.cc": text}) == []


def test_weights_only_load_is_allowed(tmp_path: Path) -> None:
    text = "def f(p):\n    import torch\n\n    return torch.load(p, weights_only=True)\n"
    assert findings(tmp_path, {"python/taco_llm/llm.py": text}) == []


def test_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings(tmp_path, {})
    assert check_layers.main([str(tmp_path)]) == 0
    assert "ok" in capsys.readouterr().out
    findings(tmp_path, {"cpp/base/x.cc": "#include <cuda.h>\n"})
    assert check_layers.main([str(tmp_path)]) == 1
    assert "cpp/base/x.cc:1: cuda.h" in capsys.readouterr().out


def test_this_tree() -> None:
    assert [str(f) for f in check_layers.check(SCRIPT.parent.parent)] == []
