from pathlib import Path

import numpy as np
import pytest
import torch

from exporters.tokens import TokenStream, TokenWriter
from exporters.windows import cut_windows


@pytest.mark.parametrize(
    "starts", [[0], [3, 4, 5], [80, 0, 41, 0], [0, 40, 80]], ids=["one", "near", "random", "far"]
)
def test_windows_are_cut_with_targets_one_on(tmp_path: Path, starts: list[int]) -> None:
    writer = TokenWriter(tmp_path, part_tokens=7)
    for first in range(0, 90, 9):
        writer.start_document()
        writer.append(np.arange(first, first + 9) * 10)
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
