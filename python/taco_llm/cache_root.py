"""Whose cached blocks are whose: the digest under which the prefix cache keeps a request's blocks."""

from __future__ import annotations

import hashlib

NO_ROOT = bytes(32)
"""The root of requests that all may share one cache."""

LONGEST_SALT = 256  # characters


def cache_root(tenant: bytes = b"", salt: str = "", adapter: bytes = b"") -> bytes:
    """32 bytes that requests share if they may use each other's blocks: those of the same tenant (digest of
    an API key; empty where all are one), the same `cache_salt` and the same adapter (digest of its content).

    NO_ROOT where all three are empty. It does not change over restarts, and nobody gets from it to a key."""
    if not (tenant or salt or adapter):
        return NO_ROOT
    hashed = hashlib.sha256(b"taco_llm prefix cache root v1")
    for part in (tenant, salt.encode("utf-8", "surrogateescape"), adapter):
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.digest()
