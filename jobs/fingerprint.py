"""Everything that shapes the bytes of an export: two runs may be one job only if it is the same."""

from typing import Any

from exporters.layerfile import layer_record
from exporters.manifest import Manifest
from exporters.strays import WEIGHTS
from jobs.config import JobConfig
from jobs.inputs.files import Corpus
from jobs.modelconfig import Model
from jobs.tokenizer import Tokenizer
from jobs.versions import versions
from kernels.dispatch import Backend
from kernels.layer import FirstLayer


def fingerprint(
    config: JobConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    model: Model | None,
    loaded: FirstLayer | None,
    backend: Backend | None,
) -> dict[str, Any]:
    """The fingerprint of a job; the contents of its corpus are compared file by file."""
    return {
        "options": config.record(),
        "software": versions(tokenizer.library),
        "corpus": {"files": [file.name for file in corpus.files]},
        "tokenizer": _identity(tokenizer_record(tokenizer), tokenizer.library),
        "weights_sha256": layer_record(WEIGHTS, loaded).sha256 if loaded else None,
        "family": None if model is None else model.model_type,
        "compute": _place(backend),
    }


def fingerprint_of(manifest: Manifest) -> dict[str, Any]:
    """The fingerprint of the job that made an export."""
    compute, layer = manifest.compute, manifest.layer
    return {
        "options": manifest.job,
        "software": manifest.software,
        "corpus": {"files": [file["name"] for file in manifest.corpus["files"]]},
        "tokenizer": _identity(
            manifest.tokenizer, "tokenizers" if "tokenizers" in manifest.software else "tiktoken"
        ),
        "weights_sha256": (
            layer["weights_sha256"] if layer and layer["source"] != "seed" else None
        ),
        "family": layer["family"] if layer else None,
        "compute": None
        if compute is None
        else {name: compute[name] for name in ("device", "kernel", "place")},
    }


def expanded_fingerprint(compact: Manifest, backend: Backend) -> dict[str, Any]:
    """The fingerprint of the full export that a compact one expands to."""
    return fingerprint_of(compact) | {
        "options": compact.job | {"artifact": "full"},
        "software": expanded_software(compact),
        "compute": _place(backend),
    }


def expanded_software(compact: Manifest) -> dict[str, Any]:
    """Versions of what made the tables of a compact export, and of what expands them."""
    here = versions()
    return compact.software | {name: here[name] for name in ("torch", "triton")}


def tokenizer_record(tokenizer: Tokenizer) -> dict[str, Any]:
    """The manifest's section `tokenizer`."""
    return {
        "name": tokenizer.name,
        "vocabulary_sha256": tokenizer.vocabulary_sha256,
        "vocabulary_size": tokenizer.vocabulary_size,
        "end_of_text": tokenizer.end_of_text,
    }


def _identity(record: dict[str, Any], library: str) -> dict[str, Any]:
    """What of the section `tokenizer` shapes bytes: the name too, unless it is that of a folder."""
    if library == "tiktoken":
        return record
    return {name: value for name, value in record.items() if name != "name"}


def _place(backend: Backend | None) -> dict[str, Any] | None:
    """What of the machine shapes bytes; not the reason for which it was chosen."""
    if backend is None:
        return None
    return {"device": backend.device.type, "kernel": backend.kernel, "place": backend.place}
