from pathlib import Path

import pytest
import torch

from kernels import combine, direct
from kernels.dispatch import CPU_SETTINGS, choose
from kernels.errors import DeviceError
from kernels.method import Method
from kernels.packed import pack
from kernels.tables import build
from tests.helpers import needs_c, random_layer

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_the_cpu_is_taken_when_asked_for() -> None:
    backend = choose("cpu", torch.float32)
    assert (backend.device.type, backend.kernel) == ("cpu", "torch-cpu")
    assert backend.project is direct.project
    assert backend.combine is combine.combine
    assert backend.reason == "the CPU was asked for"


@needs_c
def test_the_cpu_combines_by_c_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = build(random_layer(), torch.arange(9, dtype=torch.int32), torch.device("cpu"))
    body, compiler = choose("cpu", torch.float32).combined_by(tables, torch.float32)
    assert body == "C"
    assert Path(compiler).is_file()
    monkeypatch.setenv("CC", "no-such-compiler")
    body, reason = choose("cpu", torch.float32).combined_by(tables, torch.float32)
    assert (body, reason) == ("torch-cpu", "CC names 'no-such-compiler', which is no program")


@without_gpu
def test_auto_says_why_it_took_the_cpu() -> None:
    backend = choose("auto", torch.float32)
    assert backend.kernel == "torch-cpu"
    assert backend.reason == f"torch {torch.__version__} sees no CUDA device"


@without_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_not_there_is_an_error(device: str) -> None:
    with pytest.raises(DeviceError, match=f"--device {device}: .*no CUDA device"):
        choose(device, torch.float32)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA"])
def test_a_device_of_no_known_form_is_an_error(device: str) -> None:
    with pytest.raises(DeviceError, match="auto, cpu, cuda or cuda:N"):
        choose(device, torch.float32)


def test_tf32_is_refused_on_the_cpu() -> None:
    with pytest.raises(DeviceError, match="tf32"):
        choose("cpu", torch.float32, tf32=True)


def test_the_record_says_what_decides_the_bits() -> None:
    layer = random_layer()
    backend = choose("cpu", torch.float32)
    capability = torch.backends.cpu.get_cpu_capability()
    packed = pack(layer, backend.device)
    record = backend.record(Method("direct", "why"), packed, None)
    assert record["place"]["cpu_capability"] == capability
    assert record["place"]["cpu_vendor"]
    assert record["configuration"] == {"block_rows": 2048}
    assert (record["method"], record["method_reason"]) == ("direct", "why")
    built = build(layer, torch.arange(9, dtype=torch.int32), backend.device)
    record = backend.record(Method("tables", "why"), None, built)
    assert record["configuration"] == {"build_rows": 512}
    assert record["reason"]
    assert backend.record(None, packed, None)["method"] is None


def test_the_place_holds_what_the_cpu_libraries_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CPU_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    place = choose("cpu", torch.float32).place
    assert set(place) == {"cpu_capability", "cpu_vendor"}
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    told = choose("cpu", torch.float32).place
    assert told == {**place, "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"}
