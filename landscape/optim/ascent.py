"""SAM's ascent: the worst point of a neighbourhood, to first order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.checks import real
from landscape.errors import InvalidArgumentError, one_of
from landscape.optim.checks import check_gradients, norm_order

ADAPTIVE = ("none", "elementwise", "filterwise")


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """Perturbation of the weights for a gradient.

    With T = 1, or a positive diagonal T made of the weights, and G = Tg over all parameters as
    one vector, ε = T d, where d maximises Gᵀd over ‖d‖ₚ ≤ ρ:

        d = ρ sign(G) |G|^(q−1) / ‖G‖_q^(q−1),      1/p + 1/q = 1,

    for p = ∞ ρ sign(G), for p = 1 all of ρ on the first coordinate with the largest |G|. Where
    G = 0, so is ε.

    Attributes:
        p: order of the norm, at least 1; infinity is allowed.
        adaptive: ``none`` for T = 1; ``elementwise`` for T = |w| + η; ``filterwise`` for
            T = ‖f‖₂ + η, f being the filter (all entries that share the first index) that the
            weight belongs to, with |w| + η for parameters of fewer than two dimensions.
        eta: η, at least 0; at 0 a weight that is zero can never move.
        normalised: False for ε = ρ T²g, which is for p = 2 only.

    Raises:
        InvalidArgumentError: if a setting is out of range.

    References: Foret et al. 2021, arXiv 2010.01412, eq. 2; Kwon et al. 2021, arXiv 2102.11600.

    >>> Ascent(p=math.inf).epsilons([torch.tensor([3.0, -4.0])], [torch.zeros(2)], [0.1])
    [tensor([ 0.1000, -0.1000])]
    """

    p: float = 2.0
    adaptive: str = "none"
    eta: float = 0.01
    normalised: bool = True

    def __post_init__(self) -> None:
        norm_order(self.p)
        one_of(str(self.adaptive), ADAPTIVE, what="adaptive neighbourhood")
        real("eta", self.eta, least=0.0, advice="0.01 is usual")
        if not self.normalised and self.p != 2:
            msg = (
                f"unnormalised SAM is defined for p = 2, got p = {self.p!r}; "
                "leave out p, or normalised=False"
            )
            raise InvalidArgumentError(msg)

    def epsilons(
        self, gradients: Sequence[Tensor], weights: Sequence[Tensor], rhos: Sequence[float]
    ) -> list[Tensor | None]:
        """Return ε, one tensor per parameter.

        Args:
            gradients: one per parameter, on any devices, of any shapes.
            weights: the parameters, of the same shapes; T is made of them.
            rhos: radius for each parameter; negative to descend.

        Returns:
            ε, of the same shapes; None where the radius is zero.

        Raises:
            LandscapeError: if there is no gradient, or a sparse one.
        """
        check_gradients(gradients)
        factors = self._factors(weights)
        scaled = list(gradients)
        if factors is not None:
            scaled = list(torch._foreach_mul(scaled, factors))
        directions, norm = self._directions(scaled)
        epsilons: list[Tensor | None] = [None] * len(scaled)
        alike: dict[tuple[float, torch.device], list[int]] = {}
        for i, (tensor, rho) in enumerate(zip(scaled, rhos, strict=True)):
            # Not even 0 · g is taken: added, it would turn −0 into 0, and infinity into NaN.
            if rho != 0:
                alike.setdefault((rho, tensor.device), []).append(i)
        for (rho, device), indices in alike.items():
            steps = torch._foreach_mul([directions[i] for i in indices], (rho / norm).to(device))
            if factors is not None:
                torch._foreach_mul_(steps, [factors[i] for i in indices])
            for i, step in zip(indices, steps, strict=True):
                epsilons[i] = step
        return epsilons

    def _factors(self, weights: Sequence[Tensor]) -> list[Tensor] | None:
        if self.adaptive == "none":
            return None
        sizes = _filter_norms if self.adaptive == "filterwise" else torch.abs
        return [sizes(w).add_(self.eta) for w in weights]

    def _directions(self, scaled: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        # Returns directions and a number > 0; the quotient is the dual unit vector.
        one = torch.ones((), dtype=_wide(scaled), device=scaled[0].device)
        if not self.normalised:
            return scaled, one
        if self.p == 2:
            return scaled, _never_zero(global_norm(scaled, 2.0))
        if math.isinf(self.p):
            return [g.sgn() for g in scaled], one
        if self.p == 1:
            return _top_coordinate(scaled), one
        return _powers(scaled, q=self.p / (self.p - 1)), one


def global_norm(tensors: Sequence[Tensor], order: float) -> Tensor:
    """Return the norm of all tensors as one vector, at least in float32."""
    magnitudes = torch.view_as_real if order == 2 else torch.abs
    parts = [magnitudes(t) if t.is_complex() else t for t in tensors]
    norms = torch._foreach_norm(parts, order, _wide(parts))
    norm: Tensor = torch.linalg.vector_norm(
        torch.stack([part.to(parts[0].device) for part in norms]), order
    )
    return norm


def _wide(tensors: Sequence[Tensor]) -> torch.dtype:
    double = any(t.dtype in {torch.float64, torch.complex128} for t in tensors)
    return torch.float64 if double else torch.float32


def _never_zero(norm: Tensor) -> Tensor:
    # Zero over infinity is zero: where there is no gradient there is no perturbation.
    return norm.masked_fill(norm == 0, math.inf)


def _powers(scaled: list[Tensor], *, q: float) -> list[Tensor]:
    # Divided by the largest entry first: |g|^q of a small one would underflow.
    largest = _never_zero(global_norm([t.abs() for t in scaled], math.inf))
    wide = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in scaled]
    units = [t / largest.to(t.device) for t in wide]
    norm = _never_zero(global_norm(units, q))
    return [
        (u.sgn() * (u.abs() / norm.to(u.device)).pow(q - 1)).to(t.dtype)
        for t, u in zip(scaled, units, strict=True)
    ]


def _top_coordinate(scaled: list[Tensor]) -> list[Tensor]:
    dtype, device = _wide(scaled), scaled[0].device
    none = torch.zeros((), dtype=dtype, device=device)
    tops = [t.abs().max().to(device, dtype) if t.numel() else none for t in scaled]
    chosen = int(torch.stack(tops).argmax())
    directions = [torch.zeros_like(t) for t in scaled]
    # In the order of the indices, whatever the layout in memory.
    top = scaled[chosen].reshape(-1)
    if top.numel():
        largest, direction = int(top.abs().argmax()), torch.zeros_like(top)
        direction[largest] = top[largest].sgn()
        directions[chosen] = direction.view(scaled[chosen].shape)
    return directions


def _filter_norms(weight: Tensor) -> Tensor:
    if weight.ndim < 2:
        return weight.abs()
    rest = tuple(range(1, weight.ndim))
    norms: Tensor = torch.linalg.vector_norm(weight, dim=rest, keepdim=True)
    return norms.expand(weight.shape).clone()
