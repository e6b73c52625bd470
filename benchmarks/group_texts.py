"""The token windows against Hugging Face datasets and group_texts, on the same documents.

    pip install 'qkvmill[bench]'
    python benchmarks/group_texts.py [--megabytes 40] [--scratch /tmp]

Both run as commands of their own on the same JSON lines, with a process for each core and GPT-2's
tokens: ours as `run --export tokens`; theirs as datasets.load_dataset, a fast tokenizer of
transformers made from the same ranks, the end-of-text token after each document, and group_texts
of transformers' run_clm.py over all documents at once (its own batches of 1000 drop a remainder
each). Says whether every window is the same, and prints seconds and their ratio. The documents are
the sources of Python's standard library.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from jobs.tokenizer import VOCABULARIES, tiktoken_encoding

ROOT = Path(__file__).resolve().parent.parent
LENGTH = 1024


def write_documents(path: Path, size: int) -> int:
    """Write JSON lines of about `size` bytes; returns how many."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    count = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            for source in sources:
                if text := source.read_bytes().decode("utf-8", "ignore"):
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    count += 1
                if file.tell() >= size:
                    break
    return count


def theirs(path: Path, out: Path, processes: int) -> None:
    """Windows by datasets and transformers, saved as .npy."""
    import datasets
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    encoding, _ = tiktoken_encoding("gpt2")
    with tempfile.NamedTemporaryFile(suffix=".tiktoken") as ranks:
        ranks.write(gzip.decompress((VOCABULARIES / "r50k_base.tiktoken.gz").read_bytes()))
        ranks.flush()
        made = TikTokenConverter(ranks.name, encoding._pat_str).converted()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    end = encoding.eot_token

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        ids = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
        return {"input_ids": [[*document, end] for document in ids]}

    def group_texts(batch: dict[str, Any]) -> dict[str, Any]:
        ids = np.concatenate(batch["input_ids"])
        return {"input_ids": ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)}

    data = datasets.load_dataset("json", data_files=str(path), split="train",
                                 cache_dir=str(out.parent / "cache"))  # fmt: skip
    tokens = data.map(tokenize, batched=True, num_proc=processes, remove_columns=["text"])
    windows = tokens.with_format("numpy").map(group_texts, batched=True, batch_size=len(tokens))
    np.save(out, np.stack(windows.with_format("numpy")["input_ids"][:]).astype(np.int32))


def ours(path: Path, out: Path, processes: int) -> float:
    """Seconds of our job."""
    command = [sys.executable, "-m", "jobs", "run", str(path), "--out", str(out), "--quiet",
               "--export", "tokens", "--tokenizer", "gpt2", "--context-length", str(LENGTH),
               "--workers", str(processes)]  # fmt: skip
    began = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--theirs", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    if options.theirs:
        theirs(*options.theirs, cores)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        path, out, other = (Path(folder, name) for name in ("documents.jsonl", "out", "theirs.npy"))
        documents = write_documents(path, options.megabytes * 10**6)
        took = ours(path, out, cores)
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, __file__, "--theirs", str(path), str(other)], check=True, cwd=ROOT
        )
        their_seconds = time.perf_counter() - began
        shards = sorted((out / "shards").iterdir())
        mine = np.concatenate([load_file(shard)["input_ids"] for shard in shards])
        grouped = np.load(other)
    same = np.array_equal(mine, grouped[: len(mine)]) and len(grouped) - len(mine) in (0, 1)
    print(f"{documents} documents, {path.name}, {options.megabytes} MB, {cores} processes")
    print(f"windows: {len(mine):,} of ours, {len(grouped):,} of theirs; the same: {same}")
    print(f"ours {took:.1f} s, theirs {their_seconds:.1f} s: {their_seconds / took:.2f} times")
    if not same:
        sys.exit("Error: the windows differ")


if __name__ == "__main__":
    main()
