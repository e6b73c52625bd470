"""Whether what a manifest says of its files fits together: kinds, tensors, and what they cover."""

from typing import Any

from exporters.contents import exported_tensors, starts_tensors
from exporters.manifest import MANIFEST, FileEntry, Manifest
from exporters.shards import DTYPE_NAMES
from exporters.strays import WEIGHTS
from exporters.tablefile import TABLES

KINDS = ("tokens", "windows", "starts", "weights", "tables")


def contradictions(manifest: Manifest) -> list[str]:
    """Everything in which a manifest contradicts itself, each with the file's name."""
    problems = []
    if len({entry.name for entry in manifest.files}) < len(manifest.files):
        problems.append(f"{MANIFEST}: a file stands in it twice")
    problems += [
        f"{entry.name}: is of the kind {entry.kind!r}, not {', '.join(KINDS)}"
        for entry in manifest.files
        if entry.kind not in KINDS
    ]
    problems += _coverage("tokens", manifest.tokens["count"], manifest)
    count = manifest.windows["count"]
    problems += _coverage("windows", 0 if manifest.compact else count, manifest)
    problems += _coverage("starts", count if manifest.lists_starts else 0, manifest)
    problems += _reach(manifest)
    problems += [
        f"{MANIFEST}: windows.{name} is {manifest.windows[name]!r}, but job.{name} is another"
        for name in ("boundaries", "tail")
        if manifest.windows[name] != manifest.job.get(name)
    ]
    if manifest.compact and len(manifest.of_kind("tables")) != 1:
        problems.append(f"{MANIFEST}: a compact export has one file of tables, {TABLES}")
    problems += _weights(manifest)
    for kind in ("tokens", "windows", "starts"):
        for entry in manifest.of_kind(kind):
            problems += _tensors(entry, manifest)
    return problems


def _coverage(kind: str, total: int, manifest: Manifest) -> list[str]:
    """Whether the files of a kind cover 0 to total - 1 once each, in order."""
    problems = []
    expected = 0
    for entry in manifest.of_kind(kind):
        if entry.first != expected:
            problems.append(f"{entry.name}: begins at {kind} {entry.first}, not {expected}")
        expected = entry.first + entry.count
    if expected != total:
        problems.append(f"{MANIFEST}: its files hold {expected} {kind}, but it says {total}")
    return problems


def _reach(manifest: Manifest) -> list[str]:
    """Whether the windows and the target of the last one lie inside the token stream."""
    windows, tokens = manifest.windows, manifest.tokens["count"]
    count, length, stride = windows["count"], windows["context_length"], windows["stride"]
    steps = 0 if stride is None or manifest.split else (count - 1) * stride
    # Of a last window that is padded one pair is real, or more.
    real = 1 if windows["padded_windows"] else length
    if steps + real + 1 > tokens:
        return [
            f"{MANIFEST}: {count} windows of {length} tokens, {stride or 'any number'} apart, "
            f"do not lie in {tokens} tokens"
        ]
    return []


def _weights(manifest: Manifest) -> list[str]:
    """Whether the file of weights is the layer that was used."""
    used = manifest.layer and (WEIGHTS, manifest.layer["weights_sha256"])
    return [
        f"{entry.name}: is not the layer that {MANIFEST} says was used"
        for entry in manifest.of_kind("weights")
        if (entry.name, entry.sha256) != used
    ]


def _tensors(entry: FileEntry, manifest: Manifest) -> list[str]:
    """Whether a file of tokens, windows or starts is declared to hold what the options give."""
    expected: dict[str, dict[str, Any]] = {}
    if entry.kind == "tokens":
        documents = entry.tensors["document_starts"]["shape"][:1]
        expected["input_ids"] = {"dtype": "int32", "shape": [entry.count]}
        expected["document_starts"] = {"dtype": "int64", "shape": documents}
    else:
        plans = exported_tensors(manifest)
        if entry.kind == "starts":
            plans = starts_tensors(padded=manifest.padded)
        for name, plan in plans.items():
            shape = [entry.count, *plan.shape]
            expected[name] = {"dtype": DTYPE_NAMES[plan.dtype], "shape": shape}
    return [
        f"{entry.name}: {MANIFEST} declares {name} as {_said(entry.tensors.get(name))}, "
        f"but its options and counts give {_said(expected.get(name))}"
        for name in sorted({*expected, *entry.tensors})
        if expected.get(name) != entry.tensors.get(name)
    ]


def _said(tensor: dict[str, Any] | None) -> str:
    return "nothing" if tensor is None else f"{tensor['dtype']} {tensor['shape']}"
