"""Windows by lists and loops, as the options are described; shares no code with the project."""

from collections.abc import Sequence


def plain_windows(
    lengths: Sequence[int],
    context_length: int,
    stride: int,
    boundaries: str,
    tail: str,
    most: int | None = None,
) -> list[tuple[int, int]]:
    """(start, real pairs) of each window of documents of so many tokens, separators included."""
    spans = lengths if boundaries == "split" else [sum(lengths)]
    windows: list[tuple[int, int]] = []
    begun = 0
    for tokens in spans:
        waiting = set(range(tokens - 1))  # pairs that no window holds, by the place of their input
        start = 0
        while start + context_length + 1 <= tokens:
            windows.append((begun + start, context_length))
            waiting -= set(range(start, start + context_length))
            start += stride
        if tail == "pad" and waiting and start < tokens - 1:
            windows.append((begun + start, tokens - 1 - start))
        begun += tokens
    return windows[:most]


def plain_random(lengths: Sequence[int], context_length: int, draws: Sequence[int]) -> list[int]:
    """Starts of random windows within documents; draws are of the places where one may begin."""
    valid = []
    begun = 0
    for tokens in lengths:
        valid += [begun + place for place in range(tokens) if place + context_length + 1 <= tokens]
        begun += tokens
    return [valid[number] for number in draws]


def plain_held(windows: Sequence[tuple[int, int]]) -> int:
    """How many tokens are in windows, as input or as target."""
    return len({place for start, pairs in windows for place in range(start, start + pairs + 1)})


def plain_tensors(
    ids: Sequence[int],
    starts: Sequence[int],
    window: tuple[int, int],
    context_length: int,
    padding: int,
) -> dict[str, list[int] | list[bool]]:
    """input_ids, target_ids, document_ids and mask of a window of a stream.

    Args:
        starts: where documents begin.
    """
    start, pairs = window
    filled = context_length - pairs
    owners = [max(i for i, s in enumerate(starts) if s <= start + at) for at in range(pairs)]
    return {
        "input_ids": [*ids[start : start + pairs], *[padding] * filled],
        "target_ids": [*ids[start + 1 : start + pairs + 1], *[padding] * filled],
        "document_ids": [*owners, *owners[-1:] * filled],
        "mask": [True] * pairs + [False] * filled,
    }
