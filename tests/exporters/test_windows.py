from pathlib import Path

import numpy as np
import pytest
import torch

from exporters.errors import ExportError
from exporters.tokens import TokenStream, TokenWriter
from exporters.windows import WindowPlan, cut_windows, mask_of


@pytest.mark.parametrize(
    "starts", [[0], [3, 4, 5], [80, 0, 41, 0], [0, 40, 80]], ids=["one", "near", "random", "far"]
)
def test_windows_are_cut_with_targets_one_on(tmp_path: Path, starts: list[int]) -> None:
    writer = TokenWriter(tmp_path, part_tokens=7)
    for first in range(0, 90, 9):
        writer.append(np.arange(first, first + 9) * 10, np.array([0]))
    windows = cut_windows(TokenStream(tmp_path, writer.close()), torch.tensor(starts), 5)
    assert windows.document_ids is not None
    for row, start in enumerate(starts):
        places = range(start, start + 5)
        assert [10 * p for p in places] == windows.input_ids[row].tolist()
        assert [10 * p + 10 for p in places] == windows.target_ids[row].tolist()
        assert [p // 9 for p in places] == windows.document_ids[row].tolist()
    assert starts == windows.window_start.tolist()
    for tensor in (windows.input_ids, windows.target_ids, windows.document_ids):
        assert tensor.dtype == torch.int32


@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
def test_places_that_are_not_real_hold_the_padding(tmp_path: Path, far: bool) -> None:
    writer = TokenWriter(tmp_path, part_tokens=7)
    for first in range(0, 90, 9):
        writer.append(np.arange(first, first + 9) * 10, np.array([0]))
    starts = [3, 85] if far else [80, 85]
    pairs = torch.tensor([5, 4])
    stream = TokenStream(tmp_path, writer.close())
    windows = cut_windows(stream, torch.tensor(starts), 5, pairs=pairs, padding=7)
    first = starts[0]
    assert windows.input_ids.tolist() == [
        [10 * p for p in range(first, first + 5)], [850, 860, 870, 880, 7]
    ]  # fmt: skip
    assert windows.target_ids.tolist()[1] == [860, 870, 880, 890, 7]
    assert windows.document_ids is not None
    assert windows.document_ids.tolist()[1] == [9] * 5
    assert {windows.input_ids.dtype, windows.document_ids.dtype} == {torch.int32}
    assert mask_of(pairs, 5).tolist() == [[True] * 5, [True] * 4 + [False]]


@pytest.mark.parametrize(
    ("start", "pairs"), [(-1, 4), (17, 3), (0, 0), (0, 5), (2**63 - 1, 4)],
)  # fmt: skip
def test_places_beyond_the_stream_are_an_error(tmp_path: Path, start: int, pairs: int) -> None:
    listed = {"window_start": torch.tensor([0, start]), "window_pairs": torch.tensor([4, pairs])}

    class Listed:
        def get_slice(self, name: str) -> torch.Tensor:
            return listed[name]

    plan = WindowPlan(
        root=tmp_path, count=2, context_length=4, stride=4, split=True, padding=0, tokens=20,
        dropped_tokens=0, listed=Listed(),
    )  # fmt: skip
    assert plan.places(0, 1).pairs.tolist() == [4]
    with pytest.raises(ExportError, match=f"{tmp_path}: windows begin beyond its 20 tokens"):
        plan.places(0, 2)
