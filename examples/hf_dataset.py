"""The token windows of an export as a Hugging Face dataset, in memory-mapped Arrow files:

    qkvmill run CORPUS --out OUT --export tokens
    python examples/hf_dataset.py OUT FOLDER

OUT may be any export that holds tokens, full or compact. FOLDER is read back with
datasets.load_from_disk. Needs datasets (pip install 'qkvmill[bench]').
"""

import hashlib
import sys
from collections.abc import Iterator

from exporters.reading import open_export
from kernels.errors import QkvmillError

try:
    from datasets import Dataset, Features, List, Value
    from datasets.exceptions import DatasetGenerationError
except ModuleNotFoundError as error:
    sys.exit(f"{error}; pip install 'qkvmill[bench]' has it")

VALUES = {"input_ids": "int32", "target_ids": "int32", "document_ids": "int32", "mask": "bool"}


def rows(path: str, sha256: str) -> Iterator[dict[str, object]]:
    """A row for each window; datasets keeps what it made by these arguments, hence the hash."""
    for batch in open_export(path).batches(256):
        held = {name: batch[name].numpy() for name in VALUES if name in batch}
        for row in range(len(batch["window_start"])):
            yield {name: array[row] for name, array in held.items()}


def main(path: str, folder: str) -> None:
    manifest = open_export(path).manifest
    if "tokens" not in manifest.job["export"]:
        sys.exit(f"{path} holds no token ids; give qkvmill run --export tokens too")
    length = manifest.windows["context_length"]
    names = [name for name in VALUES if name != "mask" or manifest.padded]
    features = Features({name: List(Value(VALUES[name]), length=length) for name in names})
    sha256 = hashlib.sha256(repr(manifest).encode()).hexdigest()
    try:
        made = Dataset.from_generator(rows, features, gen_kwargs={"path": path, "sha256": sha256})
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from error
    made.save_to_disk(folder)
    batch = made.with_format("torch")[:4]["input_ids"]
    print(made)
    print(f"input_ids of the first windows: {batch.dtype} {list(batch.shape)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except QkvmillError as error:
        sys.exit(str(error))
