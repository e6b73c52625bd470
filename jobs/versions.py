"""Versions of everything that can shape bytes."""

from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str | None]:
    """Versions by package; None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in ("qkvmill", "torch", "triton", "tiktoken", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
