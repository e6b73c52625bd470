from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from exporters.tablefile import table_tensors
from jobs.checkpoints import load_checkpoint
from jobs.families import FAMILIES
from jobs.planmodel import plan_model
from kernels.tables import build
from tests.helpers import qkvmill, succeed
from tests.jobs.test_families import CASES, made_config
from tests.recorded import VOCABULARY, T, quiet, save_model

MISTRAL = """{"model_type": "mistral", "hidden_size": 4096, "num_attention_heads": 32,
 "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
 "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096}"""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture
def mistral(tmp_path: Path) -> Path:
    """A folder with nothing but the config.json of Mistral 7B."""
    folder = tmp_path / "mistral"
    folder.mkdir()
    (folder / "config.json").write_text(MISTRAL)
    return folder


def test_a_config_alone_tells_what_tables_take_and_save(mistral: Path) -> None:
    plan = succeed("plan", "--weights", mistral, "--context-length", 512, "--json").json
    assert plan["rows"] == 32000
    # A row of 4096 + 2 * 1024 values and an id for each token, cos and sin of 64 pairs a position.
    assert plan["table_bytes"] == 4 * (32000 * (6144 + 1) + 2 * 512 * 64)
    assert [round(reads["times"]) for reads in plan["reads"]] == [2458, 154, 10, 3]
    assert "2402.13388" in plan["scheme"]
    shown = succeed("plan", "--weights", mistral).stdout
    assert "25,169,920" in shown
    assert "10,240" in shown


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_size_of_the_tables_is_what_they_have(tmp_path: Path, family: str) -> None:
    save_model(tmp_path, made_config(family, next(iter(CASES[family].values()))), 0)
    plan = plan_model(tmp_path, T)
    layer = load_checkpoint(tmp_path, context_length=T, dtype=torch.float32)
    tables = build(layer, torch.arange(VOCABULARY, dtype=torch.int32), torch.device("cpu"))
    assert plan.obstacle is None
    assert plan.table_bytes == sum(tensor.nbytes for tensor in table_tensors(tables).values())


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        pytest.param((), "give a corpus, or a model's folder", id="nothing"),
        pytest.param(("--weights", "M", "--heads", 4), "--heads has no effect", id="heads"),
        pytest.param(("--weights", "M", "--out", "x"), "--out has no effect", id="out"),
        pytest.param(("--weights", "M", "--dtype", "float16"), "--dtype has no effect", id="dtype"),
        pytest.param(("--weights", "M", "--context-length", 0), "is not between 1", id="zero"),
        pytest.param(("--weights", "M", "--context-length", 2**70), "is not between", id="huge"),
    ],
)
def test_options_without_effect_are_refused(
    mistral: Path, options: tuple[object, ...], culprit: str
) -> None:
    result = qkvmill("plan", *(mistral if option == "M" else option for option in options))
    assert result.status == 2
    assert culprit in result.stderr


def test_windows_are_no_longer_than_a_models_positions_unless_told(tmp_path: Path) -> None:
    made_config("bert", {"max_position_embeddings": 512}).save_pretrained(tmp_path)
    assert succeed("plan", "--weights", tmp_path, "--json").json["context_length"] == 512
    told = qkvmill("plan", "--weights", tmp_path, "--context-length", 1024)
    assert told.status == 1
    assert "positions for 512 tokens" in told.stderr


def test_a_folder_without_a_config_is_an_error(tmp_path: Path) -> None:
    result = qkvmill("plan", "--weights", tmp_path)
    assert result.status == 1
    assert "config.json is not there" in result.stderr
