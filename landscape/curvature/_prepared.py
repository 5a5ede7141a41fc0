"""An operator that has been tested, and the frame of the records that are made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from landscape.checks import positive, real
from landscape.choices import Basis
from landscape.errors import InvalidArgumentError, ProblemError, one_of
from landscape.evaluate import Evaluator, require_finite, rounding_of_products
from landscape.linalg import SymmetricOperator
from landscape.linalg.krylov import dot, norm
from landscape.measurement import recall, save_record
from landscape.operators import (
    CURVATURES,
    GRAPH_BYTES,
    N_GROUPS,
    SCALES,
    Curvature,
    parameter_scale,
)
from landscape.problem import Problem
from landscape.problem.digest import digest_of
from landscape.processes import shards
from landscape.progress import counting
from landscape.randomness import random_unit_vector
from landscape.results import FloatArray, Result
from landscape.study import Study

R = TypeVar("R", bound=Result)
BASES = get_args(Basis)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which operator, and how its products are made; see `top_eigenpairs` for the fields."""

    operator: str
    scale: str
    products: str
    memory: float | None
    seed: int
    progress: bool | None
    preconditioner: Tensor | None = None
    weight_decay: float = 0.0
    basis: str = "device"

    def __post_init__(self) -> None:
        one_of(self.operator, CURVATURES, what="operator")
        one_of(self.scale, SCALES, what="scale")
        one_of(self.basis, BASES, what="place of the basis")
        if self.operator != "hessian" and self.products != "auto":
            msg = f"products={self.products!r} is for the Hessian; {self.operator} has one way only"
            raise InvalidArgumentError(msg)
        if self.memory is not None:
            object.__setattr__(self, "memory", positive("memory", self.memory))
        if self.preconditioner is not None and self.scale != "none":
            msg = "give either scale or preconditioner: both are a diagonal on each side of H"
            raise InvalidArgumentError(msg)
        if real("weight_decay", self.weight_decay, least=0.0) and self.preconditioner is None:
            msg = "weight_decay goes with a preconditioner: without one it adds γ to every λ"
            raise InvalidArgumentError(msg)
        if self.preconditioner is not None and shards() is not None:
            msg = "a preconditioner is not split with the parameters: share the data instead"
            raise InvalidArgumentError(msg)

    def diagonal(self, problem: Problem) -> Tensor | None:
        """Return the diagonal of T where THT is measured; None: the identity."""
        p = self.preconditioner
        if p is None:
            return None if self.scale == "none" else parameter_scale(problem, self.scale)
        if p.shape != (problem.space.n,) or not bool((torch.isfinite(p) & (p > 0)).all()):
            msg = (
                f"preconditioner must be a vector of {problem.space.n:,} finite numbers above "
                f"zero, the diagonal of P; got shape {tuple(p.shape)}"
            )
            raise InvalidArgumentError(msg)
        return p.detach().double().rsqrt().to(problem.device, problem.dtype)

    @property
    def graph_bytes(self) -> int:
        """Memory for graphs, half of it for those that are kept between products."""
        return GRAPH_BYTES if self.memory is None else int(self.memory / 2)

    def settings(self) -> dict[str, Any]:
        """Return what identifies the request, without defaults."""
        defaults: dict[str, Any] = {"operator": "hessian", "scale": "none", "weight_decay": 0.0}
        defaults |= {"products": "auto", "memory": None, "basis": "device"}
        p = self.preconditioner
        named = {} if p is None else {"scale": "preconditioner", "preconditioner": digest_of(p)}
        return {**without_defaults(vars(self), defaults), **named, "seed": self.seed}


def without_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from their defaults."""
    return {name: values[name] for name in defaults if values[name] != defaults[name]}


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Relative changes of a product when it is repeated, and when its factors are swapped."""

    repeat: float = 0.0  # ‖Hu − Hu‖ of two products with the same vector, over ‖Hu‖
    asymmetry: float = 0.0  # |uᵀHv − vᵀHu| over max(‖Hv‖, ‖Hu‖), with v = Hu/‖Hu‖

    @property
    def floor(self) -> float:
        """Relative residual below which a result cannot be trusted."""
        return max(self.repeat, self.asymmetry)


def noise_floor(operator: SymmetricOperator, *, seed: int) -> Noise:
    """Repeat a product, and compare uᵀHv with vᵀHu, for a random u; 3 products."""
    u = random_unit_vector(operator.n, seed=seed, spread=operator.spread)
    u = u.to(operator.device, operator.dtype)
    first = operator.matvec(u)
    size = norm(first)
    if size == 0.0:
        return Noise()
    repeat = norm(operator.matvec(u).sub_(first)) / size
    if repeat > torch.finfo(operator.dtype).eps ** 0.5:
        msg = (
            f"two products with the same vector differ by {repeat:.1%}: the loss changes from "
            "pass to pass. Is there randomness in the forward pass or in the data (dropout that "
            "ignores eval mode, augmentation, sampling), or a kernel that is not deterministic "
            "(torch.use_deterministic_algorithms)?"
        )
        raise ProblemError(msg)
    v = first.div_(size)  # in the same memory: large models have little to spare
    product = operator.matvec(v)
    swapped = abs(dot(u, product) - size * dot(v, v))
    return Noise(repeat=repeat, asymmetry=swapped / max(norm(product), size))


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An operator that has passed its test."""

    operator: SymmetricOperator  # scaled if requested
    # The operator in parts, for vectors where they are kept; its matvec counts on the progress bar.
    where: Mapping[str, Any]
    curvature: Curvature  # the bare operator, for products by batch
    scale: Tensor | None  # diagonal of T where THT is measured; None: the identity
    evaluator: Evaluator
    noise: Noise
    progress: bool | None

    def held(self, vectors: FloatArray) -> Tensor:
        """Return what is held here of whole vectors, where vectors are kept."""
        spread, whole = self.operator.spread, torch.as_tensor(vectors)
        part = whole if spread is None else spread.part(whole)
        return part.to(self.where["device"], self.operator.dtype)

    def scaled(self, vectors: Tensor) -> Tensor:
        """Return the vectors that the bare operator sees where THT sees these."""
        vectors = vectors.to(self.operator.device, self.operator.dtype)
        return vectors if self.scale is None else vectors * self.scale

    @contextmanager
    def block_products(self, total: int | None = None) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield the product with vectors in rows, for which each graph is built once."""

        def product(vectors: Tensor) -> Tensor:
            products = self.curvature.matmat(self.scaled(vectors))
            products = products if self.scale is None else products.mul_(self.scale)
            return products.to(self.where["device"])

        with counting("probes", show=self.progress, unit="block", total=total) as count:
            yield count(product)

    def project_parts(self, basis: Tensor) -> npt.NDArray[np.float64]:
        """Return VᵀH_g v of groups of examples for the last vector v, see `lanczos`."""
        return self.curvature.project_parts(basis, self.scale)

    def require(self, tol: float) -> None:
        """Refuse a tolerance that the noise of the products makes meaningless."""
        # Roundings of different examples average out: the noise was measured on a sixteenth.
        floor = max(self.noise.floor / N_GROUPS**0.5, torch.finfo(self.operator.dtype).eps / 2)
        if 0.0 < tol < floor:
            name = str(self.operator.dtype).removeprefix("torch.")
            advice = "" if self.operator.dtype == torch.float64 else ", or compute in float64"
            msg = (
                f"tol = {tol:g} is below the noise floor of the products in {name}, {floor:.1e} "
                f"relative to the largest eigenvalue: ask for more than that{advice}"
            )
            raise InvalidArgumentError(msg)


def spectral_record(
    cls: type[R],
    problem: Problem,
    request: Request,
    settings: Mapping[str, Any],
    study: Study | None,
    measure: Callable[[Prepared], Mapping[str, Any]],
    *,
    what: str,
    graph_bytes: int | None = None,
    tested: bool = True,
) -> R:
    """Recall a spectral record, or measure its fields with a tested operator and save it."""
    provenance, found = recall(cls, problem, settings, study)
    if found is not None:
        return found
    graph_bytes = request.graph_bytes if graph_bytes is None else graph_bytes
    with (
        Evaluator(problem, seed=request.seed, graph_bytes=graph_bytes) as evaluator,
        counting(f"{what} of {problem.name}", show=request.progress, unit="product") as count,
    ):
        require_finite(evaluator.loss().value, problem)
        options = {"products": request.products} if request.operator == "hessian" else {}
        kind: Any = CURVATURES[request.operator]
        curvature: Curvature = kind(evaluator, graph_bytes=graph_bytes, **options)
        scale = request.diagonal(problem)
        noise = Noise()
        if tested:
            with curvature.on_sample() as sample:
                tried = _for_vectors(_scaled(sample, scale, request), request)
                noise = noise_floor(tried, seed=request.seed)
        operator = _scaled(curvature, scale, request)
        kept = _for_vectors(operator, request)
        ready = Prepared(
            operator=operator,
            where={
                "matvec": count(kept.matvec),
                "n": operator.n,
                **({} if operator.spread is None else {"spread": operator.spread}),
                "dtype": operator.dtype,
                "device": kept.device,
            },
            curvature=curvature,
            scale=scale,
            evaluator=evaluator,
            noise=noise,
            progress=request.progress,
        )
        fields = {
            **measure(ready),
            "products": curvature.describe(),
            "noise": max(noise.floor, rounding_of_products(evaluator)),
        }
        cost = evaluator.cost
    record = cls(**fields, settings=settings, cost=cost, provenance=provenance)
    return save_record(record, problem, study)


def _for_vectors(operator: SymmetricOperator, request: Request) -> SymmetricOperator:
    """Return an operator on vectors where they are kept: on its own device, or on the host."""
    if request.basis == "device":
        return operator
    return SymmetricOperator(
        lambda v: operator.matvec(v.to(operator.device)).cpu(),
        operator.n,
        dtype=operator.dtype,
        device="cpu",
        spread=operator.spread,
    )


def _scaled(
    operator: SymmetricOperator, scale: Tensor | None, request: Request
) -> SymmetricOperator:
    """Return T(H + γ)T, or the operator itself where there is neither T nor γ."""
    decay = request.weight_decay
    if decay:
        where: dict[str, Any] = {"dtype": operator.dtype, "device": operator.device}
        plain = operator.matvec
        operator = SymmetricOperator(
            lambda v: torch.add(plain(v), v, alpha=decay), operator.n, **where
        )
    return operator if scale is None else operator.reparametrised(scale)
