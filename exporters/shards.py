"""Tensors -> one safetensors file, whole, with the same bytes every time."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors import SafetensorError, TensorSpec
from torch import Tensor

from exporters.errors import ExportError
from exporters.files import FileRecord, sha256_of, whole_file

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int32: "int32",
    torch.int64: "int64",
}


def write_tensors(
    root: Path, name: str, tensors: Mapping[str, Tensor], metadata: tuple[str, str] | None = None
) -> FileRecord:
    """Write CPU tensors to root/name, without copying those that are contiguous.

    There is at most one metadata key: safetensors writes two or more in random order
    (huggingface/safetensors issue 584), which would change the bytes from run to run.

    Raises:
        ExportError: if the file cannot be written, with the path and the reason.
    """
    held = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    specs = {
        key: TensorSpec(
            dtype=DTYPE_NAMES[tensor.dtype],
            shape=list(tensor.shape),
            data_ptr=tensor.data_ptr(),
            data_len=tensor.numel() * tensor.element_size(),
        )
        for key, tensor in held.items()
    }
    try:
        with whole_file(root, name) as part:
            safetensors.serialize_file(specs, part, metadata=dict([metadata]) if metadata else None)
            record = FileRecord(name, part.stat().st_size, sha256_of(part))
    except SafetensorError as error:
        raise ExportError(f"{root / name} could not be written: {error}") from error
    except OSError as error:
        raise ExportError(f"{root / name} could not be written: {error.strerror}") from error
    return record
