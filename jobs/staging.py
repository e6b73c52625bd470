"""Where a step of windows is computed, and how it reaches the host: on CUDA beside the next one."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

COMPUTED = ("x", "y", "q", "k", "v")  # on the device; all else of a window is made on the host
SETS = 2  # of device buffers: one is copied while the other is computed

Wait = Callable[[], None]


class Staging(Protocol):
    """What lies between the kernels and the host tensors of a shard, a step at a time.

    For each step `target` is called, the tensors it gives are filled, and `send` is called.
    """

    def target(self, host: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors to compute to in place of those of the host, of the same names and shapes.

        Raises:
            torch.OutOfMemoryError: if the device has no room for them; `close` makes some.
        """
        ...

    def send(self, host: dict[str, Tensor]) -> Wait:
        """Send the step to the host; returns what waits, in any thread, for all sent so far."""
        ...

    def close(self) -> None:
        """Wait for all that was sent and give the device's memory back; it may go on after."""
        ...


def staging_for(device: torch.device) -> Staging:
    """Copies beside the compute where a device has memory of its own, else none."""
    return CopyStream(device) if device.type == "cuda" else InPlace()


class InPlace:
    """The host computes: nothing is copied."""

    def target(self, host: dict[str, Tensor]) -> dict[str, Tensor]:
        return host

    def send(self, host: dict[str, Tensor]) -> Wait:
        return lambda: None

    def close(self) -> None:
        pass


class CopyStream:
    """Buffers on the device, used in turn, and a stream that copies them to pinned tensors.

    A step is computed once the copy of the step SETS before is done, so the host is never further
    ahead of the device than that.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers: list[dict[str, Tensor]] = [{} for _ in range(SETS)]
        self._copied: list[torch.cuda.Event | None] = [None] * SETS
        self._turn = 0

    def target(self, host: dict[str, Tensor]) -> dict[str, Tensor]:
        if event := self._copied[self._turn]:
            event.synchronize()
        held = self._buffers[self._turn]
        for name in host.keys() & set(COMPUTED):
            rows, shape = len(host[name]), host[name].shape
            if name not in held or len(held[name]) < rows:
                held.pop(name, None)
                held[name] = torch.empty(shape, dtype=host[name].dtype, device=self._device)
        return {name: held[name][: len(t)] if name in held else t for name, t in host.items()}

    def send(self, host: dict[str, Tensor]) -> Wait:
        held = self._buffers[self._turn]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for name in host.keys() & held.keys():
                host[name].copy_(held[name][: len(host[name])], non_blocking=True)
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        self._copied[self._turn] = event
        self._turn = (self._turn + 1) % SETS
        return event.synchronize

    def close(self) -> None:
        self._stream.synchronize()
        self._buffers = [{} for _ in range(SETS)]
        self._copied = [None] * SETS
