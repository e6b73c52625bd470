import pytest

from exporters.nearest import did_you_mean, nearest

DTYPES = ("float32", "bfloat16", "float16")


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("bf16", DTYPES, "bfloat16"),
        ("Float_32", DTYPES, "float32"),
        ("kv_head", ("heads", "kv_heads"), "kv_heads"),
        ("context_length", ("context-length", "kv-heads"), "context-length"),
        ("CL100K", ("gpt2", "cl100k_base"), "cl100k_base"),
        ("q_porj.weight", ("q_proj.weight", "q_norm.weight"), "q_proj.weight"),
        ("int8", DTYPES, None),
        ("", DTYPES, None),
        ("bfloat16", (), None),
        ("n" * 10**6, ("n" * 10**6,), None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_near_is_found_whatever_its_case(
    word: str, known: tuple[str, ...], meant: str | None
) -> None:
    assert meant == nearest(word, known)
    assert ("" if meant is None else f"; did you mean {meant}?") == did_you_mean(word, known)
