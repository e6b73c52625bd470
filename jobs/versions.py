"""Versions of everything that can shape bytes."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


def versions(*libraries: str) -> dict[str, str | None]:
    """Versions by package, of what always shapes bytes and of more; None for what is absent."""
    always = ("qkvmill", "torch", "triton", "safetensors")
    return {name: _version(name) for name in (*always, *libraries)}


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
