"""Builds the engine from its settings: checkpoint, backend, model, KV cache, tokenizer.

`builder.py` goes through the steps: read it first. `handle.py` is what comes out. What the steps decide is in
files of their own: `checkpoint.py` (which model), `device.py` (where it runs), `sizes.py` (lengths, a step's
tokens), `memory.py` (how much becomes KV cache), `drafting.py` (who drafts), `core.py` (the core's engine).
`null.py` builds the test model. `taco_llm plan` asks the same files, so that its plan is the engine's.
"""

from taco_llm.engine.builder import build
from taco_llm.engine.handle import EngineHandle

__all__ = ["EngineHandle", "build"]
