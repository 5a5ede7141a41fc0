"""How far the products of an operator can be trusted, before anything is built on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import ProblemError
from landscape.linalg.krylov import Matvec, fill_with_normal, inner, norm
from landscape.linalg.symmetric import SymmetricOperator
from landscape.randomness import seeded


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What repeating a product, and swapping its factors, changes; relative to its size.

    Attributes:
        repeat: ‖Hu − Hu‖ of two products with the same vector, over ‖Hu‖.
        asymmetry: |uᵀHv − vᵀHu| over ‖Hv‖, with v = Hu/‖Hu‖.
    """

    repeat: float
    asymmetry: float

    @property
    def floor(self) -> float:
        """Relative residual below which a result cannot be trusted."""
        return max(self.repeat, self.asymmetry)


def noise_floor(operator: SymmetricOperator, *, seed: int) -> tuple[Noise, Matvec]:
    """Repeat a product, and compare uᵀHv with vᵀHu.

    Args:
        operator: what to test.
        seed: of the random vector u, the one that `lanczos` with the same seed starts from.

    Returns:
        The noise, and the operator's matvec, which remembers its product with u.

    Raises:
        ProblemError: if two products with the same vector differ by more than the square root of
            the rounding of the operator's type: then nothing can be measured.

    Cost: 3 products, one of which the matvec gives back.
    """
    # The same roundings, in the same order, as where `lanczos` draws its first vector.
    storage = torch.promote_types(operator.dtype, torch.float32)
    empty = torch.empty(operator.n, dtype=storage, device=operator.device)
    drawn = fill_with_normal(empty, seeded(seed))
    u = drawn.div_(norm(drawn)).to(operator.dtype)
    first, second = operator.matvec(u), operator.matvec(u)
    size = norm(first)
    if size == 0.0:
        return Noise(repeat=0.0, asymmetry=0.0), operator.matvec
    repeat = norm(first - second) / size
    if repeat > torch.finfo(operator.dtype).eps ** 0.5:
        msg = (
            f"two products with the same vector differ by {repeat:.1%}: the loss is another one at "
            "each pass. Is there randomness in the forward pass or in the data (dropout in train "
            "mode of its own, augmentation, sampling), or a kernel that is not deterministic "
            "(torch.use_deterministic_algorithms)?"
        )
        raise ProblemError(msg)
    v = first / size
    product = operator.matvec(v)
    swapped = abs(float(inner(u[None], product)) - float(inner(v[None], first)))
    largest = max(norm(product), size)
    return Noise(repeat=repeat, asymmetry=swapped / largest), _remembering(operator, u, first)


def _remembering(operator: SymmetricOperator, u: Tensor, product: Tensor) -> Matvec:
    def matvec(v: Tensor) -> Tensor:
        return product if torch.equal(v, u) else operator.matvec(v)

    return matvec
