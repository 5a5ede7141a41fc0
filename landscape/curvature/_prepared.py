"""What eigenpairs, trace and density share: an operator that has been tested, ready for use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError, LossError, ProblemError, one_of
from landscape.evaluate import Evaluator, check_hessian, require_finite, rounding_of_products
from landscape.linalg import AsymmetryError, SymmetricOperator
from landscape.operators import (
    CURVATURES,
    GRAPH_BYTES,
    N_GROUPS,
    SCALES,
    Curvature,
    Hessian,
    Noise,
    noise_floor,
    parameter_scale,
)
from landscape.problem import Problem
from landscape.progress import counting


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which operator, and how its products are made.

    Attributes:
        operator: a key of `landscape.operators.CURVATURES`.
        scale: one of `landscape.operators.SCALES`.
        products: how the Hessian's products are made, one of `landscape.operators.PRODUCTS`.
        seed: of the dropout masks and of every random vector.
    """

    operator: str
    scale: str
    products: str
    seed: int

    def __post_init__(self) -> None:
        one_of(self.operator, CURVATURES, what="operator")
        one_of(self.scale, SCALES, what="scale")
        if self.operator != "hessian" and self.products != "auto":
            msg = f"products={self.products!r} is for the Hessian; {self.operator} has one way only"
            raise InvalidArgumentError(msg)

    def settings(self, memory: float | None) -> dict[str, Any]:
        """Return what identifies the request; what is as usual is left out."""
        usual = {"operator": "hessian", "scale": "none", "products": "auto", "memory": None}
        given = {**vars(self), "memory": memory}
        changed = {name: given[name] for name in usual if given[name] != usual[name]}
        return {**changed, "seed": self.seed}


def graph_budget(memory: float | None) -> int:
    """Return the memory for graphs, half of it for those that are kept between products."""
    return GRAPH_BYTES if memory is None else int(memory / 2)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An operator that has passed its test.

    Attributes:
        operator: the operator that was asked for, scaled as asked; its matvec counts on the bar.
        curvature: the bare operator, for products by batch.
        scale: diagonal of T where THT is measured; None: the identity.
        evaluator: what it is built on.
        noise: how far products can be trusted.
    """

    operator: SymmetricOperator
    curvature: Curvature
    scale: Tensor | None
    evaluator: Evaluator
    noise: Noise

    @property
    def where(self) -> Mapping[str, Any]:
        """The operator in parts, as algorithms take it."""
        return {name: getattr(self.operator, name) for name in ("matvec", "n", "dtype", "device")}

    def project_parts(self, basis: Tensor) -> npt.NDArray[np.float64]:
        """Return VᵀH_g v of groups of examples for the last vector v, see `lanczos`."""
        return self.curvature.project_parts(basis, self.scale)

    def describe(self) -> dict[str, Any]:
        """Return what every spectral record says of its products."""
        rounding = rounding_of_products(self.evaluator)
        return {"products": self.curvature.describe(), "noise": max(self.noise.floor, rounding)}

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


@contextmanager
def prepared(
    problem: Problem,
    request: Request,
    *,
    graph_bytes: int,
    what: str,
    progress: bool | None,
    tested: bool = True,
) -> Iterator[Prepared]:
    """Build an operator and test it, inside an evaluator that leaves the model as it was."""
    with (
        Evaluator(problem, seed=request.seed, graph_bytes=graph_bytes) as evaluator,
        counting(f"{what} of {problem.name}", show=progress, unit="product") as count,
    ):
        require_finite(evaluator.loss().value, problem)
        curvature = make_curvature(evaluator, request, graph_bytes=graph_bytes)
        scale = None if request.scale == "none" else parameter_scale(problem, request.scale)
        noise = Noise(repeat=0.0, asymmetry=0.0)
        if tested:
            with curvature.on_sample() as sample:
                noise = noise_floor(_scaled(sample, scale), seed=request.seed)
        yield Prepared(
            operator=_counted(_scaled(curvature, scale), count),
            curvature=curvature,
            scale=scale,
            evaluator=evaluator,
            noise=noise,
        )


def derivatives_of_all(problem: Problem, *, seed: int, graph_bytes: int) -> dict[str, Any]:
    """Test the derivatives in all parameters at once, for problems with some of them."""
    with Evaluator(problem, seed=seed, graph_bytes=graph_bytes) as evaluator:
        try:
            reason = check_hessian(evaluator)
        except LossError:  # said again of the parameters that it is about
            return {}
    return {} if reason else dict(problem.derivatives)


@contextmanager
def refusing_change() -> Iterator[None]:
    """Say of products that are not symmetric what the reason is: a loss that changes."""
    try:
        yield
    except AsymmetryError as error:
        msg = (
            "the products are not those of one symmetric matrix, though they were at the start: "
            "the loss is another one at each call. Is there randomness or a counter in the model, "
            f"the loss or the data? ({error})"
        )
        raise ProblemError(msg) from error


def _scaled(operator: SymmetricOperator, scale: Tensor | None) -> SymmetricOperator:
    return operator if scale is None else operator.reparametrised(scale)


def make_curvature(evaluator: Evaluator, request: Request, *, graph_bytes: int) -> Curvature:
    """Build the bare operator."""
    if request.operator == "hessian":
        return Hessian(evaluator, graph_bytes=graph_bytes, products=request.products)
    return CURVATURES[request.operator](evaluator, graph_bytes=graph_bytes)


def _counted(
    operator: SymmetricOperator, count: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> SymmetricOperator:
    return SymmetricOperator(
        count(operator.matvec), operator.n, dtype=operator.dtype, device=operator.device
    )
