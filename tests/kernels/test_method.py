from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import method
from kernels.errors import MethodError
from kernels.method import Method, choose_method, total_memory
from kernels.names import Asked

CPU = torch.device("cpu")


def choose(asked: Asked, compact: bool = False, **changes: Any) -> Method:
    counts = {"tokens": 1_000_000, "rows": 10_000, "table_bytes": 10**6, "d_model": 64}
    given: dict[str, Any] = counts | changes
    return choose_method(asked, device=CPU, compact=compact, **given)


def test_tables_are_taken_where_tokens_repeat() -> None:
    chosen = choose("auto")
    assert chosen.name == "tables"
    assert "1,000,000 tokens to project are 100.0 times the 10,000 rows" in chosen.reason


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"tokens": 39_999}, "4.0 times the 10,000 rows that tables need"),
        ({"d_model": 7}, "from d-model 8 on, but it is 7"),
        ({"normed_sums": True}, "normalised after a position was added"),
        ({"table_bytes": 10**15}, "tables take 1000000.0 GB, more than half"),
    ],
    ids=["few-tokens", "narrow", "normed-sums", "large"],
)
def test_direct_is_taken_where_they_do_not_pay(counts: dict[str, Any], reason: str) -> None:
    chosen = choose("auto", False, **counts)
    assert chosen.name == "direct"
    assert reason in chosen.reason


@pytest.mark.parametrize(("kind", "rows"), [("cpu", 4), ("cuda", 10)])
def test_tokens_a_row_from_which_tables_pay_are_those_of_the_device(
    kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method, "total_memory", lambda _: 80 << 30)
    for tokens, name in ((rows * 100, "tables"), (rows * 100 - 1, "direct")):
        chosen = choose_method(
            "auto", tokens=tokens, rows=100, table_bytes=10**6, d_model=64,
            device=torch.device(kind),
        )  # fmt: skip
        assert chosen.name == name
        assert f"they pay from {rows} times" in chosen.reason


def test_what_is_asked_for_is_taken() -> None:
    assert choose("direct").name == "direct"
    assert choose("tables", tokens=1).name == "tables"


@pytest.mark.parametrize("counts", [{"d_model": 7}, {"table_bytes": 10**15}])
def test_tables_that_cannot_be_had_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(MethodError, match=r"tables cannot be had: .*; give --method direct"):
        choose("tables", False, **counts)


def test_memory_is_no_more_than_the_control_group_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(method, "CGROUP_LIMIT", limit)
    everything = total_memory(CPU)
    limit.write_text("max\n")
    assert total_memory(CPU) == everything > 0
    limit.write_text("123456\n")
    assert total_memory(CPU) == 123456


def test_a_compact_export_has_tables_or_none() -> None:
    assert choose("auto", compact=True, tokens=1) == Method(
        "tables", "a compact export holds tables"
    )
    with pytest.raises(MethodError, match=r"compact cannot be had: tables .*; leave it out"):
        choose("auto", compact=True, d_model=7)
