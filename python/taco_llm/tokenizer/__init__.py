"""Tokenizers and chat templates: from a Hugging Face folder (tokenizer.json, tokenizer.model, or vocab.json
with merges.txt) or from a GGUF file's metadata. No code of a checkpoint is run."""

from .load import TokenizerError, load_tokenizer
from .tokenizer import Tokenizer

__all__ = ["Tokenizer", "TokenizerError", "load_tokenizer"]
