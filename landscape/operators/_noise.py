"""How far the products of an operator can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from landscape.errors import ProblemError
from landscape.linalg.krylov import SymmetricOperator, dot, norm
from landscape.randomness import random_unit_vector


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Relative changes of a product when it is repeated, and when its factors are swapped.

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


def noise_floor(operator: SymmetricOperator, *, seed: int) -> Noise:
    """Repeat a product, and compare uᵀHv with vᵀHu; 3 products.

    Args:
        operator: what to test.
        seed: of the random vector u.

    Returns:
        The noise.

    Raises:
        ProblemError: if two products with the same vector differ by more than the square root of
            the rounding of the operator's type: then nothing can be measured.
    """
    u = random_unit_vector(operator.n, seed=seed).to(operator.device, operator.dtype)
    first, second = operator.matvec(u), operator.matvec(u)
    size = norm(first)
    if size == 0.0:
        return Noise(repeat=0.0, asymmetry=0.0)
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
    swapped = abs(dot(u, product) - dot(v, first))
    return Noise(repeat=repeat, asymmetry=swapped / max(norm(product), size))
