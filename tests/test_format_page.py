"""docs/format.md against the code: every key of a manifest and every tensor, and no other."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from exporters.contents import starts_tensors, window_tensors
from exporters.layerfile import save_layer
from exporters.manifest import FORMAT_VERSION
from exporters.manifestchecks import SECTIONS
from exporters.tablefile import NORM_NAMES
from exporters.tokens import DTYPES
from kernels.layer import TENSOR_NAMES
from tests.helpers import ROOT, SMALL, random_layer, succeed
from tests.jobs.test_layers import save_tokenizer

PAGE = (ROOT / "docs" / "format.md").read_text("utf-8")
NEWEST = ROOT / "tests" / "fixtures" / f"format-{FORMAT_VERSION}"


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Manifests as JSON that have every key there is between them."""
    folder = tmp_path_factory.mktemp("format")
    lines = folder / "lines.jsonl"
    lines.write_text('{"text": "one fish, two fish, red fish, blue fish"}\n{}\n' * 8)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    save_tokenizer(tokenizer)
    letters = folder / "letters.txt"
    letters.write_text("abab" * 40)
    layer = random_layer(d=32, rotary=8, qk_norm="head", vocabulary_size=50257)
    save_layer(folder, "own.safetensors", layer)
    plain = ("--export", "tokens", "--context-length", 8)
    jobs = {
        "skipped": (lines, *plain, "--bad-records", "skip"),
        "tokenizers": (letters, *plain, "--tokenizer", tokenizer),
        "drawn": (lines, *SMALL, "--sampling", "random", "--artifact", "compact",
                  "--bad-records", "skip", "--vocab-size", "corpus"),
        "rotary": (lines, "--weights", folder / "own.safetensors", "--context-length", 16,
                   "--tokenizer", "gpt2", "--artifact", "compact", "--bad-records", "skip"),
        "direct": (letters, *SMALL, "--method", "direct", "--vocab-size", "corpus",
                   "--export", "features", "--export", "qkv"),
    }  # fmt: skip
    made = []
    for name, options in jobs.items():
        succeed("run", *options, "--out", folder / name)
        made.append(folder / name)
    made += [NEWEST / name for name in ("full", "compact", "padded")]
    return [json.loads((export / "manifest.json").read_text("utf-8")) for export in made]


def documented() -> dict[str, list[str]]:
    """The names in the first column of the page's tables, by the heading above each."""
    found = {}
    for block in re.split("^### ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, text = block.partition("\n")
        found[heading.strip("`")] = re.findall(
            r"^\| `([^`]+)` \|", text.partition("\n## ")[0], re.M
        )
    return found


def keys(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every key of a manifest, with its section; what depends on the machine is left out."""
    for key, value in document.items():
        yield "top level", key
        if isinstance(value, dict):
            yield from ((key, inner) for inner in value)
    for section, entries in (
        ("files", document["files"]),
        ("corpus.files", document["corpus"]["files"]),
        ("corpus.listed", document["corpus"]["listed"]),
    ):
        yield from ((section, key) for entry in entries for key in entry)


def test_the_page_has_every_key_and_no_other(manifests: list[dict[str, Any]]) -> None:
    page = documented()
    tensors = {"tokens/", "shards/", "windows.safetensors", "tables.safetensors"}
    told = {
        (section, key)
        for section, names in page.items()
        for key in names
        if section not in tensors | {"weights.safetensors"}
    }
    assert told == {pair for document in manifests for pair in keys(document)}
    assert {(section, key) for section, checks in SECTIONS.items() for key in checks} <= told
    assert f"This is format version {FORMAT_VERSION}," in PAGE


def test_the_page_has_every_tensor_and_no_other(manifests: list[dict[str, Any]]) -> None:
    page = documented()
    windows = window_tensors(
        ("tokens", "features", "qkv"), context_length=1, layout="bhtd", dtype="float32", padded=True
    )
    told = {
        "tokens": page["tokens/"],
        "windows": page["shards/"],
        "starts": page["windows.safetensors"],
        "tables": page["tables.safetensors"],
        "weights": page["weights.safetensors"],
    }
    tables = {"token_ids", "token_table", "position_table", "rotary_cos", "rotary_sin"}
    assert {kind: set(names) for kind, names in told.items()} == {
        "tokens": set(DTYPES),
        "windows": set(windows),
        "starts": set(starts_tensors(padded=True)),
        "tables": tables | set(NORM_NAMES),
        "weights": set(TENSOR_NAMES.values()),
    }
    for document in manifests:
        for entry in document["files"]:
            assert set(entry["tensors"]) <= set(told[entry["kind"]])


def test_the_page_says_what_a_newer_version_is_told() -> None:
    said = re.findall(r'"\.\.\. (has format version [^"]+)"', " ".join(PAGE.split()))
    assert said == [
        f"has format version {FORMAT_VERSION + 1}, but this qkvmill reads versions up to "
        f"{FORMAT_VERSION}; install a newer qkvmill"
    ]
