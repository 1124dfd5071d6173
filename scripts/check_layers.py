"""Reject includes and imports that run the wrong way, and code that the house forbids.

    python scripts/check_layers.py [ROOT]      prints `path:line: what` for each finding; exit status 1 if any

The tables below are the map; cpp/README.md draws and explains it. Nothing is imported or executed:
C++ is read by line, Python by its syntax tree.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# --- C++: folder of cpp/ -> the folders whose headers it may include (its own are always allowed).
# A value may name one header instead of a folder.
BELOW_EXEC = ("base", "cache", "spec/draft_tree.h", "sched/step_plan.h", "sched/sequence.h",
              "sched/sampling_params.h", "backend", "model", "dist")  # fmt: skip
CPP_LAYERS: dict[str, tuple[str, ...]] = {
    "base": (),
    "cache": ("base",),
    "spec": ("base",),
    "sched": ("base", "cache", "spec"),
    "backend": ("base",),
    "backend/cpu": ("base", "backend"),
    "backend/cuda": ("base", "backend"),
    "model": ("base", "backend"),
    "dist": ("base",),
    "exec": BELOW_EXEC,
    "engine": (*BELOW_EXEC, "sched", "spec", "exec"),
    "bindings": (*BELOW_EXEC, "sched", "spec", "backend/cpu", "exec", "engine"),
}
PYTHON_HEADER = re.compile(r"^(Python\.h|nanobind/|pybind11/|numpy/)")
CUDA_HEADER = re.compile(
    r"^(cuda|cublas|cudnn|cusparse|curand|nvrtc|nvml|nccl|cutlass|cute|cub|thrust|mma\.h)"
)
TORCH_HEADER = re.compile(r"^(torch|ATen|c10)/")

# Families that the product serves, whether or not they are registered yet. Words that are English or a
# variable's name in another case (opt, phi) count in the spelling of the architecture only.
FAMILIES = (
    "llama baichuan bloom chatglm falcon gemma gptbigcode gpt_big_code gpt_neox gptneox gptj gpt2 internlm "
    "mistral mixtral nemotron qwen stablelm starcoder xverse deepseek pixtral paligemma smollm "
    "olmo gptoss gpt_oss phimoe chat_glm"
).split()
CASED_FAMILIES = ("OPT", "Phi", "Phi3", "PhiMoE", "QWen")
# Programs and file formats that merely share a name with a family.
NOT_ARCHITECTURES = re.compile(r"llama\.cpp|llama-cpp|llama-bench", re.IGNORECASE)

# --- Python: the parts of the package (the first name below taco_llm), from the lowest floor to the highest.
# A part may import those of lower floors; not its neighbours and nothing above.
PYTHON_FLOORS: tuple[tuple[str, ...], ...] = (
    ("_core", "logging", "flag_table", "cache_root", "cache_identity"),
    (
        "archs",
        "sampling_params",
        "outputs",
        "output_hub",
        "default_model",
        "refusal_reasons",
        "memory",
        "cuda",
    ),
    ("loading", "device_memory", "lookahead_config"),
    ("tokenizer", "speculation", "lookahead", "prefix_cache"),
    ("engine_args",),
    ("null_model", "prompts", "collect"),
    ("engine",),
    ("llm", "async_engine", "server", "doctor", "plan"),
)
FLOOR = {part: number for number, parts in enumerate(PYTHON_FLOORS) for part in parts}
DOORS = ("__init__", "__main__", "cli")  # may import everything; nothing below may import them
# Slow to import or not installed with the package: inside the function that needs them, not at module level.
HEAVY = ("torch", "transformers", "openai", "gguf")
UNPICKLERS = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")


@dataclass(frozen=True)
class Finding:
    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


# --- C++

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def cpp_layer(parts: tuple[str, ...]) -> str | None:
    """The layer of a file by its folders below cpp/; None for a folder that the map does not have."""
    if len(parts) > 2 and "/".join(parts[:2]) in CPP_LAYERS:
        return "/".join(parts[:2])
    return parts[0] if parts and parts[0] in CPP_LAYERS else None


def allowed_include(layer: str, target: str) -> bool:
    there = cpp_layer(tuple(target.split("/")))
    return there == layer or target in CPP_LAYERS[layer] or there in CPP_LAYERS[layer]


def family_pattern(root: Path) -> re.Pattern[str]:
    """Architecture names: the families above and every class name that python/taco_llm/archs mentions."""
    cased = set(CASED_FAMILIES)
    for file in sorted((root / "python/taco_llm/archs").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        cased |= set(re.findall(r"[\"'](\w+?)(?:For\w+|LMHeadModel|Model)[\"']", text))
    others = sorted((w for w in cased if w.lower() not in FAMILIES), key=lambda w: (-len(w), w))
    words = "|".join(map(re.escape, others))
    families = "|".join(FAMILIES)
    # A family's name counts inside an identifier too (kLlama, llama_rope); not inside a longer word (OPTION).
    return re.compile(rf"(?i:{families})|\bk?(?:{words})(?![A-Za-z_])")


def check_cpp(root: Path) -> Iterator[Finding]:
    cpp = root / "cpp"
    families = family_pattern(root)
    for path in sorted(p for p in cpp.rglob("*") if p.suffix in {".h", ".cc", ".def", ".cu", ".cuh", ".inc"}):
        inside = path.relative_to(cpp)
        shown = path.relative_to(root)
        layer = cpp_layer(inside.parts)
        if layer is None:
            yield Finding(shown, 1, f"cpp/{inside.parts[0]} is not in the layer map (check_layers.py)")
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            name = families.search(NOT_ARCHITECTURES.sub("", line))
            if name:
                yield Finding(shown, number, f"names the architecture {name.group()!r}: say what it does")
            match = INCLUDE.match(line)
            if not match:
                continue
            target = match.group(2)
            if PYTHON_HEADER.match(target) and layer != "bindings":
                yield Finding(shown, number, f"{target}: Python headers belong in cpp/bindings only")
            elif CUDA_HEADER.match(target) and layer != "backend/cuda":
                yield Finding(shown, number, f"{target}: CUDA headers belong in cpp/backend/cuda only")
            elif TORCH_HEADER.match(target):
                yield Finding(shown, number, f"{target}: nothing here is built on torch")
            elif match.group(1) == "<":
                continue
            elif ".." in target.split("/"):
                yield Finding(shown, number, f"{target}: write includes from cpp/, without ..")
            elif not (cpp / target).is_file():
                beside = path.parent / target
                hint = f', write "{beside.relative_to(cpp)}"' if beside.is_file() else ""
                yield Finding(shown, number, f"{target}: no such file below cpp/{hint}")
            elif not allowed_include(layer, target):
                message = f"cpp/{layer} may not include {target} (allowed: {allowed(layer)})"
                yield Finding(shown, number, message)


def allowed(layer: str) -> str:
    return ", ".join((layer, *CPP_LAYERS[layer]))


# --- Python


def python_part(module: str) -> str | None:
    """The part of the package that a dotted module name lies in; None for other packages."""
    names = module.split(".")
    if names[0] != "taco_llm":
        return None
    return names[1] if len(names) > 1 else "__init__"


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


class PythonFile(ast.NodeVisitor):
    """Collects the findings of one file of the package."""

    def __init__(self, shown: Path, module: str, is_package: bool, known: set[str]) -> None:
        self.shown, self.module, self.is_package, self.known = shown, module, is_package, known
        self.part = python_part(module) or ""
        self.depth = 0  # of functions around the node
        self.typing_only = False
        self.findings: list[Finding] = []

    def add(self, node: ast.stmt | ast.expr, message: str) -> None:
        self.findings.append(Finding(self.shown, node.lineno, message))

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if not is_type_checking(node):
            return self.generic_visit(node)
        self.typing_only = True
        for child in node.body:
            self.visit(child)
        self.typing_only = False
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.imported(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            package = self.module.split(".") if self.is_package else self.module.split(".")[:-1]
            package = package[: len(package) - (node.level - 1)]
            base = ".".join([*package, base]) if base else ".".join(package)
        if base == "taco_llm":  # from taco_llm import x: x is a part, or a name of the package itself
            for alias in node.names:
                self.imported(node, f"taco_llm.{alias.name}" if alias.name in self.known else "taco_llm")
        else:
            self.imported(node, base)

    def imported(self, node: ast.stmt, module: str) -> None:
        top = module.split(".")[0]
        if top in UNPICKLERS:
            self.add(node, f"imports {top}: nothing from outside is unpickled")
        if top == "tests":
            self.add(node, "the package may not import its tests")
        if self.typing_only:
            return
        if top in HEAVY and self.depth == 0:
            self.add(node, f"imports {top} at module level: import it inside the function that needs it")
        part = python_part(module)
        if part is None or part == self.part or self.part in DOORS:
            return
        if part in DOORS or FLOOR.get(part, len(FLOOR)) >= FLOOR[self.part]:
            below = [name for parts in PYTHON_FLOORS[: FLOOR[self.part]] for name in parts]
            permitted = ", ".join(below) or "nothing of the package"
            self.add(node, f"taco_llm.{self.part} may not import {module} (allowed: {permitted})")

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        keywords = {k.arg: k.value for k in node.keywords if k.arg}

        def is_true(argument: str) -> bool:
            value = keywords.get(argument)
            return isinstance(value, ast.Constant) and value.value is True

        if name in {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"}:
            self.add(node, f"calls {name}(): nothing from outside is evaluated")
        elif name == "torch.load" and not is_true("weights_only"):
            self.add(node, "torch.load without weights_only=True unpickles what it reads")
        elif name in {"np.load", "numpy.load"} and is_true("allow_pickle"):
            self.add(node, f"{name} with allow_pickle=True unpickles what it reads")
        elif name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}:
            self.add(node, f"{name}: use yaml.safe_load")
        elif name in {"os.system", "os.popen"} or (name.startswith("subprocess.") and is_true("shell")):
            self.add(node, f"{name} hands a string to a shell")
        elif name in {"jinja2.Environment", "Environment", "jinja2.Template"}:
            self.add(node, f"{name}: chat templates come from outside, use ImmutableSandboxedEnvironment")
        self.generic_visit(node)


def check_python(root: Path) -> Iterator[Finding]:
    package = root / "python/taco_llm"
    files = sorted(package.rglob("*.py"))
    known = {"_core", *(p.stem for p in package.iterdir() if p.is_dir() or p.suffix == ".py")}
    for path in files:
        inside = path.relative_to(package)
        shown = path.relative_to(root)
        is_package = path.name == "__init__.py"
        module = ".".join(["taco_llm", *inside.with_suffix("").parts[: -1 if is_package else None]])
        part = python_part(module) or ""
        if part not in FLOOR and part not in DOORS:
            yield Finding(shown, 1, f"taco_llm.{part} is not in the layer map (scripts/check_layers.py)")
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:
            yield Finding(shown, error.lineno or 1, f"not Python: {error.msg}")
            continue
        visitor = PythonFile(shown, module, is_package, known)
        visitor.visit(tree)
        yield from visitor.findings


def check(root: Path) -> list[Finding]:
    """All findings in the tree at `root`, C++ first, by path and line."""
    return [*check_cpp(root), *check_python(root)]


def main(argv: list[str]) -> int:
    root = Path(argv[0]) if argv else Path(__file__).resolve().parent.parent
    findings = check(root)
    for finding in findings:
        print(finding)
    if findings:
        print(f"{len(findings)} finding(s); the map is at the top of scripts/check_layers.py")
        return 1
    print("layers: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
