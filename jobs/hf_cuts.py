"""Whether a tokenizer.json may be given a document in parts: begins a new piece at every SAFE_CUT.

That holds for tiktoken's patterns and for two that others publish, which tests hold for all of
them. Models see one piece at a time. NFC changes nothing across a safe cut: no line's end and no
space composes with what precedes it, nor does a Chinese comma or full stop. Added tokens are found
before the pieces, so they must not cross a cut either: white space alone has a visible character
on one side of each. Special tokens are not found in text at all.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from jobs.tokenizer import patterns

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = _CONTRACTIONS + r"\p{N}{1,3}" + _REST
QWEN_2 = _CONTRACTIONS + r"\p{N}" + _REST
NORMALIZERS = (None, {"type": "NFC"})


def keeps_cuts(document: Mapping[str, Any]) -> bool:
    """Whether no token crosses a SAFE_CUT.

    Args:
        document: a tokenizer.json that the library takes.
    """
    return (
        document.get("normalizer") in NORMALIZERS
        and document["model"].get("type") == "BPE"
        and _known_pieces(document.get("pre_tokenizer") or {})
        and all(map(_within_white_space, document.get("added_tokens") or []))
    )


@cache
def known_patterns() -> frozenset[str]:
    """The patterns that begin a new piece at every safe cut."""
    return patterns() | {LLAMA_3, QWEN_2}


def _known_pieces(part: Mapping[str, Any]) -> bool:
    """Whether a pre-tokenizer is GPT-2's, or a known pattern and then bytes."""
    if part.get("type") != "Sequence":
        return _byte_level(part, use_regex=True)
    parts = part["pretokenizers"]
    return len(parts) == 2 and _split(parts[0]) and _byte_level(parts[1], use_regex=False)


def _byte_level(part: Mapping[str, Any], *, use_regex: bool) -> bool:
    return (
        part.get("type") == "ByteLevel"
        and part.get("add_prefix_space") is False
        and part.get("use_regex", True) is use_regex
    )


def _split(part: Mapping[str, Any]) -> bool:
    return (
        part.get("type") == "Split"
        and part["pattern"].get("Regex") in known_patterns()
        and part["behavior"] == "Isolated"
        and part["invert"] is False
    )


def _within_white_space(token: Mapping[str, Any]) -> bool:
    widens = any(token[name] for name in ("lstrip", "rstrip", "single_word"))
    return bool(token["special"]) or (token["content"].isspace() and not widens)
