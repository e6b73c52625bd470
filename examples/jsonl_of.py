"""A folder of .txt files -> one gzipped file of JSON lines, as many corpora are kept.

python examples/jsonl_of.py data/corpus sample.jsonl.gz
"""

import gzip
import json
import sys
from pathlib import Path

folder, out = map(Path, sys.argv[1:])
with gzip.open(out, "wt", encoding="utf-8") as file:
    for path in sorted(folder.rglob("*.txt")):
        record = {"text": path.read_bytes().decode("utf-8"), "meta": {"source": path.name}}
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
