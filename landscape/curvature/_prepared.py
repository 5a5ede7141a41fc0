"""An operator that has been tested, and the frame of the records that are made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from landscape.checks import check_real
from landscape.errors import InvalidArgumentError, LossError, ProblemError, one_of
from landscape.evaluate import Evaluator, check_hessian, require_finite, rounding_of_products
from landscape.linalg import AsymmetryError, SymmetricOperator
from landscape.measurement import cached_measurement
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
from landscape.results import Provenance, Result
from landscape.study import Study

R = TypeVar("R", bound=Result)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which operator, and how its products are made; see `top_eigenpairs` for the fields."""

    operator: str
    scale: str
    products: str
    memory: float | None
    seed: int
    progress: bool | None

    def __post_init__(self) -> None:
        one_of(self.operator, CURVATURES, what="operator")
        one_of(self.scale, SCALES, what="scale")
        if self.operator != "hessian" and self.products != "auto":
            msg = f"products={self.products!r} is for the Hessian; {self.operator} has one way only"
            raise InvalidArgumentError(msg)
        check_real(or_none=True, memory=self.memory)

    @property
    def graph_bytes(self) -> int:
        """Memory for graphs, half of it for those that are kept between products."""
        return GRAPH_BYTES if self.memory is None else int(self.memory / 2)

    def settings(self) -> dict[str, Any]:
        """Return what identifies the request, without defaults."""
        defaults = {"operator": "hessian", "scale": "none", "products": "auto", "memory": None}
        return {**without_defaults(vars(self), defaults), "seed": self.seed}


def without_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from their defaults."""
    return {name: values[name] for name in defaults if values[name] != defaults[name]}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An operator that has passed its test.

    Attributes:
        operator: the operator, scaled if requested; its matvec counts on the progress bar.
        curvature: the bare operator, for products by batch.
        scale: diagonal of T where THT is measured; None: the identity.
        evaluator: runs the model.
        noise: how far products can be trusted.
        progress: whether to show progress bars.
    """

    operator: SymmetricOperator
    curvature: Curvature
    scale: Tensor | None
    evaluator: Evaluator
    noise: Noise
    progress: bool | None

    @property
    def where(self) -> Mapping[str, Any]:
        """The operator in parts, as algorithms take it."""
        return {name: getattr(self.operator, name) for name in ("matvec", "n", "dtype", "device")}

    def scaled(self, vectors: Tensor) -> Tensor:
        """Return the vectors that the bare operator sees where THT sees these."""
        return vectors if self.scale is None else vectors * self.scale

    @contextmanager
    def block_products(self, total: int | None = None) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield the product with vectors in rows, for which each graph is built once."""

        def product(vectors: Tensor) -> Tensor:
            products = self.curvature.matmat(self.scaled(vectors))
            return products if self.scale is None else products.mul_(self.scale)

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

    def record(provenance: Provenance) -> R:
        size = request.graph_bytes if graph_bytes is None else graph_bytes
        with _prepared(problem, request, what, graph_bytes=size, tested=tested) as ready:
            fields = {
                **measure(ready),
                "products": ready.curvature.describe(),
                "noise": max(ready.noise.floor, rounding_of_products(ready.evaluator)),
            }
            cost = ready.evaluator.cost
        return cls(**fields, settings=settings, cost=cost, provenance=provenance)

    return cached_measurement(cls, problem, settings, study, record)


@contextmanager
def _prepared(
    problem: Problem, request: Request, what: str, *, graph_bytes: int, tested: bool
) -> Iterator[Prepared]:
    """Build an operator and test it, inside an evaluator that leaves the model as it was."""
    with (
        Evaluator(problem, seed=request.seed, graph_bytes=graph_bytes) as evaluator,
        counting(f"{what} of {problem.name}", show=request.progress, unit="product") as count,
    ):
        require_finite(evaluator.loss().value, problem)
        if request.operator == "hessian":
            curvature: Curvature = Hessian(
                evaluator, graph_bytes=graph_bytes, products=request.products
            )
        else:
            curvature = CURVATURES[request.operator](evaluator, graph_bytes=graph_bytes)
        scale = None if request.scale == "none" else parameter_scale(problem, request.scale)
        noise = Noise(repeat=0.0, asymmetry=0.0)
        if tested:
            with curvature.on_sample() as sample:
                noise = noise_floor(_scaled(sample, scale), seed=request.seed)
        operator = _scaled(curvature, scale)
        counted = SymmetricOperator(
            count(operator.matvec), operator.n, dtype=operator.dtype, device=operator.device
        )
        yield Prepared(
            operator=counted,
            curvature=curvature,
            scale=scale,
            evaluator=evaluator,
            noise=noise,
            progress=request.progress,
        )


def _scaled(operator: SymmetricOperator, scale: Tensor | None) -> SymmetricOperator:
    return operator if scale is None else operator.reparametrised(scale)


def derivatives_of_all(problem: Problem, request: Request) -> dict[str, Any]:
    """Test the derivatives in all parameters at once, for problems with some of them."""
    with Evaluator(problem, seed=request.seed, graph_bytes=request.graph_bytes) as evaluator:
        try:
            reason = check_hessian(evaluator)
        except LossError:  # raised again for the parameters that it is about
            return {}
    return {} if reason else dict(problem.derivatives)


@contextmanager
def explained_asymmetry() -> Iterator[None]:
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
