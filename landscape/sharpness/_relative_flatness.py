"""Relative flatness of layers: the Hessian's traces between neurons, weighted by their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from landscape.linalg import SymmetricOperator, TraceSolution, hutchinson_trace
from landscape.linalg.krylov import Operator
from landscape.linalg.sampling import exact_diagonal
from landscape.problem import Problem
from landscape.problem._filters import owner_of
from landscape.stats import Interval

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class NeuronBlock:
    """The weight W of a layer, one neuron s per row, and a factor L with LLᵀ = WWᵀ.

    For random Z with E[z zᵀ] = I, V = LZ has E[vₛᵢ vₛ'ᵢ'] = ⟨wₛ, wₛ'⟩ for i = i' and 0 else, so
    that E[⟨V, H V⟩] = Σ ⟨wₛ, wₛ'⟩ tr(Hₛₛ'): the relative flatness is the trace of LᵀHL.
    """

    name: str  # of the parameter
    part: slice  # where it lies in the flat vector
    factor: Tensor  # L, shape (g, d, r): g groups of d neurons, r = min(d, m)
    m: int  # inputs of a neuron

    @property
    def size(self) -> int:
        """Number of entries of Z."""
        groups, _, r = self.factor.shape
        return groups * r * self.m

    def lift(self, z: Tensor) -> Tensor:
        """Return LZ as a part of the flat vector."""
        groups, _, r = self.factor.shape
        return (self.factor @ z.view(groups, r, self.m)).reshape(-1)

    def drop(self, v: Tensor) -> Tensor:
        """Return LᵀV of a part of the flat vector."""
        groups, d, _ = self.factor.shape
        return (self.factor.mT @ v.reshape(groups, d, self.m)).reshape(-1)


def neuron_blocks(problem: Problem) -> list[NeuronBlock]:
    """Find the weights of linear and convolutional layers among the parameters.

    The neurons of a grouped convolution see other inputs in each group: only neurons of one group
    have a common block.
    """
    space, blocks = problem.space, []
    tensors = space.unflatten(problem.weights)
    for name, size, stop in zip(space.names, space.sizes, accumulate(space.sizes), strict=True):
        layer, role = owner_of(problem.model, name)
        # Of a parametrized layer the Hessian is that of what its weight is made of.
        if role in layer._parameters and role == "weight" and isinstance(layer, _LAYERS):
            groups = int(getattr(layer, "groups", 1))
            rows = tensors[name].reshape(groups, len(tensors[name]) // groups, -1)
            part = slice(stop - size, stop)
            blocks.append(NeuronBlock(name, part, _factor(rows), rows.shape[-1]))
    return blocks


def relative_flatness(
    hessian: SymmetricOperator,
    blocks: Sequence[NeuronBlock],
    *,
    relative_error: float,
    max_products: int,
    seed: int,
) -> Interval:
    """Estimate Σ ⟨wₛ, wₛ'⟩ tr(Hₛₛ') over all pairs of neurons of each layer.

    References:
        Petzka, Kamp, Adilova, Sminchisescu, Boley (2021), Relative flatness and generalization,
        arXiv:2001.00939.
    """
    stops = list(accumulate(block.size for block in blocks))
    parts = [slice(stop - b.size, stop) for b, stop in zip(blocks, stops, strict=True)]

    def product(z: Tensor) -> Tensor:
        v = z.new_zeros(hessian.n)
        for block, part in zip(blocks, parts, strict=True):
            v[block.part] = block.lift(z[part])
        v = hessian.matvec(v)
        return torch.cat([block.drop(v[block.part]) for block in blocks])

    n, where = stops[-1], {"dtype": hessian.dtype, "device": hessian.device}
    if n <= max_products:
        operator = Operator(product, n, **where, seed=seed, max_matvecs=n)  # type: ignore[arg-type]
        diagonal = exact_diagonal(operator)
        values = torch.tensor([diagonal[part].sum() for part in parts]).double().numpy()
        return Interval.exact(values)
    found: TraceSolution = hutchinson_trace(
        product,
        n,
        groups=parts,
        rtol=relative_error,
        max_matvecs=max_products,
        seed=seed,
        **where,  # type: ignore[arg-type]
    )
    return found.groups


def _factor(rows: Tensor) -> Tensor:
    """Return L with LLᵀ = WWᵀ, of as few columns as that takes."""
    _, d, m = rows.shape
    if m <= d:
        return rows
    upper: Tensor = torch.linalg.qr(rows.double().mT, mode="r").R
    return upper.mT.to(rows.dtype)
