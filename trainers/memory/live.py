"""How much memory tensors take, now and at most, whether they have values or are only sketched."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    """Counts the storages of all tensors that operations return while it is entered, as long as something holds them.

    Views and results in place share the storage of what they are of, so they count once; what autograd keeps for the
    backward pass counts because autograd holds it.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.now = 0
        """Bytes."""
        self.peak = 0
        """The most that there were, bytes."""
        self._known: Any = WeakIdKeyDictionary()

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor that was there before."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do the operation, and count what it returns."""
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self.hold(leaf)
        return found
