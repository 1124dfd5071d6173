"""What a block of KV on disk belongs to: a digest of all that its numbers depend on besides the tokens."""

from __future__ import annotations

import hashlib
import json
from typing import Any

FORMAT_VERSION = 1
"""Of what a block's bytes mean. To be raised whenever a backend orders the elements of a block in another
way, or computes K or V differently (a kernel that only rounds differently is no such change)."""


def cache_identity(weights: bytes, **facts: Any) -> bytes:
    """32 bytes: SHA-256 over the weights' digest (loading/weights_digest.py) and the facts (texts and
    numbers) that shape a block."""
    text = json.dumps({**facts, "format": FORMAT_VERSION}, sort_keys=True)
    return hashlib.sha256(b"taco_llm prefix cache identity" + weights + text.encode()).digest()
