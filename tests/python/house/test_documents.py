"""The documents name files, functions and make targets that exist.

Needs nothing but the standard library.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cpp/README.md", "docs/lookahead-cache.md",
             "docs/prefix-caching.md")  # fmt: skip
# Files that documents name before they exist, or that belong to a checkpoint, a cache or a user.
ELSEWHERE = {"config.json", "tokenizer.json", "generation_config.json"}
SUFFIXES = (".h", ".cc", ".def", ".py", ".pyi", ".md", ".sh", ".txt", ".toml", ".html")
# Documents name files from the top, from their own folder, or from python/taco_llm.
BASES = ("", "cpp", "python/taco_llm")


def prose(name: str) -> str:
    """The document without its fenced blocks."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def code_spans(name: str) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(name))]


def find(path: str) -> Path | None:
    return next((ROOT / base / path for base in BASES if (ROOT / base / path).exists()), None)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_exist(name: str) -> None:
    missing = []
    for span in code_spans(name):
        is_path = re.fullmatch(r"[\w./-]+", span) and (span.endswith(SUFFIXES) or (span.endswith("/")))
        if is_path and "..." not in span and span not in ELSEWHERE and not span.startswith("./"):
            by_name = list(ROOT.glob(f"cpp/**/{span}")) if "/" not in span.rstrip("/") else []
            if find(span) is None and not by_name:
                missing.append(span)
    reserved = {"spec/", "dist/", "backend/cuda/", "third_party/", "model/layers/", "isa/avx512_bf16/"}
    assert [path for path in missing if path not in reserved] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)", prose(name))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not ((ROOT / name).parent / link).exists()] == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "cpp/README.md"])
def test_named_functions_exist(name: str) -> None:
    """`Class::function` and `Class.function` in C++ and Python."""
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "cpp").rglob("*") if p.suffix in {".h", ".cc"}]
    sources += [p.read_text(encoding="utf-8") for p in (ROOT / "python").rglob("*.py*") if p.suffix != ".pyc"]
    text = "\n".join(sources)
    missing = []
    for span in code_spans(name):
        match = re.fullmatch(r"(?:_core\.)?([A-Z]\w+)(?:::|\.)(\w+)", span)
        if match and not re.search(rf"\b{match[1]}\b", text):
            missing.append(span)
        elif match and not re.search(rf"\b{match[2]}\(", text):
            missing.append(span)
    assert missing == []


def test_named_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = set()
    for name in DOCUMENTS:
        named |= set(re.findall(r"\bmake ([a-z][a-z-]*)\b", (ROOT / name).read_text(encoding="utf-8")))
    assert named - targets <= {"the"}  # "make the ..." is prose
    assert {"demo", "test", "serve", "lint"} <= named
