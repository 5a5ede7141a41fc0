"""Other tensors in the place of a model's own, for ways of evaluating that are verified first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn
from torch.func import functional_call

if TYPE_CHECKING:
    from landscape.evaluate._evaluator import Evaluator

T = TypeVar("T")


@contextmanager
def stand_ins(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let other tensors take the places of parameters inside of the context."""
    places = []
    for name in tensors:
        owner, _, key = name.rpartition(".")
        places.append((model.get_submodule(owner)._parameters, key))
    before = [(holder, key, holder.get(key)) for holder, key in places]
    try:
        for (holder, key), tensor in zip(places, tensors.values(), strict=True):
            holder[key] = tensor  # type: ignore[assignment]
        yield
    finally:
        for holder, key, parameter in before:
            holder[key] = parameter


def substituted(
    evaluator: Evaluator,
    tensors: Mapping[str, Tensor],
    batch: Any,
    body: Callable[[nn.Module, Any], T],
) -> T:
    """Run a function of model and batch with tensors that torch.vmap or forward mode wraps."""
    # Whatever reaches a parameter by another way than the module's attribute sees the live one.
    named = {f"model.{name}": tensor for name, tensor in tensors.items()}
    result: T = functional_call(_Host(evaluator.model), named, (body, batch), tie_weights=True)
    return result


class _Host(nn.Module):
    """Carries the model, so that any function of it runs with substituted weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, body: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        return body(self.model, batch)
