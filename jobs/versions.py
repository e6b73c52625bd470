"""Versions of everything that can shape bytes."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str | None]:
    """Versions by package; None for what is not installed."""
    return {
        name: _version(name) for name in ("qkvmill", "torch", "triton", "tiktoken", "safetensors")
    }


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
