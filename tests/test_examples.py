"""The examples that need a model: what they say holds for small random ones."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from exporters.reading import open_export
from kernels import reference
from kernels.errors import LayerError
from tests.helpers import ROOT, succeed, write_corpus
from tests.jobs.test_layers import LETTERS, save_tokenizer
from tests.recorded import VOCABULARY, KeepFloat64, quiet

LENGTH = 48
CONFIGS = {
    "gpt2": {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 64},
    "llama": {
        "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 64,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture(params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a small random model with its tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, vocab_size=VOCABULARY, **CONFIGS[request.param])
    made: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            offset = 1.0 if "norm" in name or (".ln_" in name and name.endswith("weight")) else 0.0
            parameter.normal_(offset, 0.2)
    folder = tmp_path / "model"
    made.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def export(model: Path, *options: object) -> Path:
    text = "".join(LETTERS[i * i % len(LETTERS)] for i in range(4 * LENGTH))
    corpus = write_corpus(model.parent / "corpus", a=text)
    out = model.parent / "out"
    succeed(
        "run", corpus, "--out", out, "--weights", model, "--context-length", LENGTH,
        "--device", "cpu", *options,
    )  # fmt: skip
    return out


def loaded(model: Path, dtype: torch.dtype, **options: Any) -> Any:
    made: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **options)
    return made.eval()


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_example(name: str, *arguments: Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_model_that_looks_q_k_and_v_up_has_the_same_logits(model: Path) -> None:
    windows = open_export(export(model, "--artifact", "compact"))
    (batch,) = windows.batches(9)
    ids = batch["input_ids"].long()
    with torch.no_grad():
        with KeepFloat64():
            truth: Tensor = loaded(model, torch.float64)(ids).logits
        changed = loaded(model, torch.float32)
        theirs: Tensor = changed(ids).logits
        example("first_layer_lookup").look_up(changed, windows)
        ours: Tensor = changed(ids).logits
    assert not torch.equal(theirs, ours)  # or nothing was replaced
    error = reference.largest_error(ours, truth)
    assert error <= reference.allowed_error(theirs, truth)


def test_a_token_that_the_tables_do_not_hold_is_an_error(model: Path) -> None:
    windows = open_export(export(model, "--artifact", "compact"))
    changed = loaded(model, torch.float32)
    example("first_layer_lookup").look_up(changed, windows)
    with pytest.raises(LayerError, match="no row for token 5"):
        changed(torch.tensor([[7, 5]]))


def test_the_lookup_says_how_close_it_is(model: Path) -> None:
    out = export(model, "--artifact", "compact")
    said = run_example("first_layer_lookup", model, out)
    largest, difference = map(float, re.findall(r"([\d.e+-]+)$", said, re.MULTILINE))
    assert difference <= 1e-4 * largest


def test_a_model_whose_projections_stand_elsewhere_is_refused(model: Path) -> None:
    windows = open_export(export(model, "--artifact", "compact"))
    config = AutoConfig.for_model("gpt_neox", vocab_size=9, hidden_size=8, num_attention_heads=2)
    config.num_hidden_layers = 1
    other: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="not gpt_neox"):
        example("first_layer_lookup").look_up(other, windows)


def test_attention_from_an_export_is_the_models_own(model: Path) -> None:
    out = export(model)
    said = run_example("first_layer_scores", model, out)
    ids = open_export(out)[0]["input_ids"][None].long()
    options = {"attn_implementation": "eager"}
    with torch.no_grad():
        theirs = loaded(model, torch.float32, **options)(ids, output_attentions=True).attentions[0]
        with KeepFloat64():
            truth = loaded(model, torch.float64, **options)(ids, output_attentions=True).attentions
    heads = list(theirs[0].shape)
    assert f"attention {heads}, each row sums to 1.000000" in said
    difference = float(said.split()[-1])
    allowed = reference.allowed_error(theirs, truth[0].double())
    assert difference <= allowed + reference.largest_error(theirs, truth[0].double())
