"""Bytes that a network takes: in a file, and in memory while it runs."""

import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def file_bytes(network: nn.Module) -> int:
    """Of the ``model.safetensors`` of a network, from shapes alone: the values and a header of JSON."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in sorted(network.state_dict().items(), key=lambda pair: (-pair[1].element_size(), pair[0])):
        start, end = end, end + value.nbytes
        header[name] = {
            "dtype": f"F{8 * value.element_size()}",
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + end


def memory_bytes(network: nn.Module, run: Callable[[], object], *, inputs: Sequence[Tensor]) -> int:
    """The most that weights, inputs and intermediate results of a pass take at once, as torch counts tensors.

    What libraries take for themselves within an operation does not show.
    """
    weights = [*network.parameters(), *network.buffers()]
    live = _Live([*weights, *inputs])
    with live:
        run()
    return live.most


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch says no types
    """Follows how many bytes of tensors there are, those ``given`` included.

    Attributes:
        most: At any time so far.
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = set[int]()
        self._now = self.most = 0
        for tensor in given:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._add(each)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()  # views share it
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self._known:
            self._known.add(place)
            self._now += size
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._forget, place, size).atexit = False

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self._now -= size
