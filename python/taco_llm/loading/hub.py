"""Models from the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .tensors import LoadError

# Besides weights: config, tokenizer, chat template. No code is ever fetched.
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_WEIGHTS = {
    "safetensors": ["*.safetensors"],
    "pt": ["*.bin", "*.pt"],
    "npcache": ["*.bin", "*.pt"],
    "gguf": ["*.gguf"],
    "dummy": [],
}
_IGNORED = ["original/*", "onnx/*", "consolidated*", "training_args.bin", "optimizer.*", "scheduler.pt"]


def _patterns(load_format: str, names: Sequence[str] | None) -> list[str]:
    """What to download. names: the repository's files, None where they are not known (offline)."""
    if load_format != "auto":
        return _SMALL_FILES + _WEIGHTS[load_format]
    if names is None:
        return _SMALL_FILES + [p for patterns in _WEIGHTS.values() for p in patterns]
    for format, ends in (("safetensors", (".safetensors",)), ("pt", (".bin", ".pt")), ("gguf", (".gguf",))):
        if any(n.endswith(ends) and "/" not in n for n in names):
            return _SMALL_FILES + _WEIGHTS[format]
    return _SMALL_FILES


def download(
    model: str,
    *,
    revision: str | None,
    cache_dir: str | None,
    load_format: str,
    ignore_patterns: str | Sequence[str] | None,
    token: str | None,
) -> Path:
    """The folder of a hub model's snapshot; without a network, the one in the cache. Raises LoadError."""
    try:
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise LoadError(
            f"{model}: not a local path, and huggingface_hub is not installed to fetch it"
        ) from None

    extra = [ignore_patterns] if isinstance(ignore_patterns, str) else list(ignore_patterns or [])
    common: dict[str, Any] = dict(
        revision=revision, cache_dir=cache_dir, ignore_patterns=_IGNORED + extra, token=token
    )

    def fetch(names: Sequence[str] | None, **more: Any) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                model, allow_patterns=_patterns(load_format, names), **common, **more
            )
        )

    offline = constants.HF_HUB_OFFLINE
    reason = "HF_HUB_OFFLINE is set"
    if not offline:
        try:
            names = huggingface_hub.HfApi(token=token).list_repo_files(model, revision=revision)
            return fetch(names)
        except GatedRepoError:
            raise LoadError(
                f"{model}: access to this model must be asked for on its hub page; then set HF_TOKEN"
            ) from None
        except RevisionNotFoundError:
            raise LoadError(f"{model}: the hub has no revision {revision!r} of this model") from None
        except RepositoryNotFoundError:
            raise LoadError(
                f"{model}: no such local folder, and no such model on the hub "
                "(or it is private: set HF_TOKEN)"
            ) from None
        except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as e:
            reason = f"the hub cannot be reached ({type(e).__name__})"
        except (
            Exception
        ) as e:  # the HTTP library's own errors: their types differ between versions of the hub client
            if type(e).__module__.split(".")[0] not in ("httpx", "httpcore", "requests", "urllib3"):
                raise
            reason = f"the hub cannot be reached ({type(e).__name__})"
    try:
        return fetch(None, local_files_only=True)
    except (LocalEntryNotFoundError, OSError, ValueError):
        raise LoadError(
            f"{model}: no such local folder; {reason}, and the model is not in the cache. Either connect "
            f"to the network (and unset HF_HUB_OFFLINE), or copy the model's folder here and give its path"
        ) from None
