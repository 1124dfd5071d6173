"""API keys: where they come from, how they are compared."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

from aiohttp import web

logger = logging.getLogger("taco_llm.server")

ENVIRONMENT = ("TACO_LLM_API_KEY", "TACO_API_KEY", "VLLM_API_KEY")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def tenant(keys: Keys, request: web.Request) -> bytes:
    """Digest of the request's key (32 bytes) where there are several; else empty."""
    if not keys.several:
        return b""
    return _digest(request.headers.get("Authorization", "").partition(" ")[2].strip())


def name_space(tenant: bytes, salt: str) -> int:
    """A number (64 bits) that requests share if they are of the same tenant and have the same salt.

    0 where there is no salt and only one tenant. It does not change over restarts."""
    if not tenant and not salt:
        return 0
    hashed = hashlib.blake2b(tenant, digest_size=8, person=b"taco_namespace")
    hashed.update(salt.encode("utf-8", "surrogateescape"))
    return int.from_bytes(hashed.digest(), "big")


class Keys:
    """Keys of the flag, the environment and a file (looked at again at most once a second, when it changes).

    Only digests are kept: comparing them takes the same time wherever they differ, and whatever their number.
    Without any key everybody may come in; a key file makes keys necessary even while it is empty.
    """

    def __init__(self, flags: Iterable[str] = (), file: str | None = None) -> None:
        keys = [key.strip() for key in flags]
        keys += [os.environ[name].strip() for name in ENVIRONMENT if os.environ.get(name, "").strip()]
        self._fixed = [_digest(key) for key in keys]
        self._file = Path(file) if file else None
        self._from_file: list[bytes] = []
        self._stamp: tuple[int, int] | None = None
        self._next_look = 0.0
        if self._file is not None:
            self._from_file = self._read(self._file)  # a file that cannot be read stops the start
            self._stamp = self._stat(self._file)

    @property
    def required(self) -> bool:
        return bool(self._fixed) or self._file is not None

    @property
    def several(self) -> bool:
        """Whether there are, or may come to be, several tenants."""
        return self._file is not None or len(set(self._fixed)) > 1

    def allows(self, request: web.Request) -> bool:
        """Whether the request carries `Authorization: Bearer <one of the keys>`."""
        if not self.required:
            return True
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        self._refresh()
        digest = _digest(given.strip())
        found = False
        for key in self._fixed + self._from_file:
            found |= hmac.compare_digest(digest, key)
        return found

    def _refresh(self) -> None:
        if self._file is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + 1.0
        try:
            stamp = self._stat(self._file)
            if stamp != self._stamp:
                self._from_file = self._read(self._file)
                self._stamp = stamp
                logger.info("API keys read again: %d in the file", len(self._from_file))
        except (OSError, ValueError) as e:
            logger.warning("the API key file cannot be read, the old keys stay: %s", e)

    @staticmethod
    def _stat(path: Path) -> tuple[int, int]:
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size

    @staticmethod
    def _read(path: Path) -> list[bytes]:
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        return [_digest(line) for line in lines if line and not line.startswith("#")]
