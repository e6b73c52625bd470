"""What manifest.json must hold for anything to be read from an export: section, key, check."""

from collections.abc import Callable
from typing import Any

from kernels.names import DTYPE_NAMES

Check = Callable[[Any], bool]


def is_text(value: object) -> bool:
    """Whether value is a string that UTF-8 can write: JSON can hold halves of characters."""
    return isinstance(value, str) and value.encode("utf-8", "replace") == value.encode(
        "utf-8", "surrogatepass"
    )


def is_count(value: object) -> bool:
    """Whether value is a whole number of 63 bits, not below 0."""
    return type(value) is int and 0 <= value < 2**63


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_positive(value: object) -> bool:
    return is_count(value) and value != 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # type: ignore[arg-type]


def is_list_of(check: Check) -> Check:
    """A check of lists, all of whose items pass a check."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _one_of(*values: str) -> Check:
    return lambda value: value in values


def _is_document(value: object) -> bool:
    return isinstance(value, dict) and all(
        check(value[key])
        for key, check in (
            ("name", is_text), ("bytes", is_count), ("sha256", is_text), ("tokens", is_count),
            ("documents", is_count),
        )
    )  # fmt: skip


def _is_bad_record(value: object) -> bool:
    return isinstance(value, dict) and all(
        is_text(value[key]) for key in ("file", "place", "reason")
    )


SECTIONS: dict[str, dict[str, Check]] = {
    "job": {
        "export": is_list_of(_one_of("tokens", "features", "qkv")),
        "artifact": _one_of("full", "compact"),
        "dtype": _one_of(*DTYPE_NAMES),
        "layout": _one_of("bhtd", "bthd"),
        "batch_size": _is_positive,
        "shard_size": _is_positive,
    },
    "software": {},
    "corpus": {
        "files": is_list_of(_is_document),
        "bytes": is_count,
        "skipped_files": is_count,
        "replaced_sequences": is_count,
        "bad_records": is_count,
        "listed": is_list_of(_is_bad_record),
    },
    "tokenizer": {
        "name": is_text,
        "vocabulary_sha256": is_text,
        "end_of_text": _or_none(_is_id),
    },
    "tokens": dict.fromkeys(("count", "documents", "distinct"), is_count),
    "windows": {
        "count": _is_positive,
        "context_length": _is_positive,
        "stride": _or_none(_is_positive),
        "boundaries": _one_of("ignore", "split"),
        "tail": _one_of("drop", "pad"),
        **dict.fromkeys(
            ("padded_windows", "padded_places", "dropped_tokens", "short_documents"), is_count
        ),
    },
    "layer": {
        **dict.fromkeys(
            ("vocabulary_size", "d_model", "heads", "kv_heads", "head_dim"), _is_positive
        ),
        **dict.fromkeys(("source", "weights_sha256"), is_text),
        "norm": _one_of("none", "layernorm", "rmsnorm"),
        "positions": _one_of("sinusoidal", "learned", "rope", "none"),
        "dtype": _one_of(*DTYPE_NAMES),
        **dict.fromkeys(("eps", "norm_offset", "embedding_scale"), _is_number),
        "attention_scale": _or_none(_is_number),
        "qk_norm": _one_of("none", "head", "all"),
        "rotary_dims": is_count,
        "rotary_interleaved": lambda value: isinstance(value, bool),
        "family": _or_none(is_text),
    },
    "compute": {
        **dict.fromkeys(("device", "kernel", "reason"), is_text),
        **dict.fromkeys(("method", "method_reason"), _or_none(is_text)),
    },
}
