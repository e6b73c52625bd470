"""Cuts the tokens of windows into blocks that stay in the caches of a CPU."""

from torch import Tensor


def blocks(ids: Tensor, rows: int) -> list[tuple[slice, slice]]:
    """Cut ids [W, T] into blocks of at most `rows` tokens: whole windows, or pieces of one."""
    window_count, context_length = ids.shape
    length = min(context_length, rows)
    windows = max(1, rows // context_length)
    return [
        (slice(w, min(w + windows, window_count)), slice(p, min(p + length, context_length)))
        for w in range(0, window_count, windows)
        for p in range(0, context_length, length)
    ]
