import torch

from kernels import combine_torch


def test_a_block_is_a_power_of_two_of_tokens_for_each_thread() -> None:
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append([combine_torch.block_rows(width) for width in (7, 64, 768)])
    finally:
        torch.set_num_threads(threads)
    assert found == [[16384, 2048, 128], [32768, 4096, 256], [32768, 4096, 512]]
