"""Top eigenpairs of the Hessian of the data set's loss."""

from __future__ import annotations

from landscape.errors import InvalidArgumentError, one_of
from landscape.evaluate import Evaluator, require_finite
from landscape.linalg import EigenSolution, lanczos, power_iteration
from landscape.measure.recall import recall_or_measure
from landscape.operators import GRAPH_BYTES, Hessian
from landscape.problem import Problem
from landscape.progress import counting
from landscape.results import Eigenpairs, Provenance
from landscape.study import Study

METHODS = {"lanczos": lanczos, "power": power_iteration}


def top_eigenpairs(
    problem: Problem,
    k: int = 1,
    *,
    method: str = "lanczos",
    tol: float = 1e-4,
    max_matvecs: int = 1000,
    seed: int = 0,
    graph_bytes: int = GRAPH_BYTES,
    study: Study | None = None,
    progress: bool | None = None,
) -> Eigenpairs:
    """Find the k largest (algebraic) eigenvalues of H = ∇²L(w), with eigenvectors.

    Every residual ‖Hv − θv‖ is computed with a product of its own. As H is symmetric, some
    eigenvalue lies within the residual of θ; that none lies above is not proven by it.

    Args:
        problem: what to measure.
        k: how many.
        method: ``lanczos`` (full reorthogonalisation) or ``power`` (deflated power iteration).
        tol: a pair has converged when its residual is at most ``tol`` times the largest |θ|.
        max_matvecs: stop after so many products; then ``converged`` is False.
        seed: of the start vector.
        graph_bytes: memory for autograd graphs that are kept between products.
        study: where the result is kept, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The pairs, values descending. Cost: ``matvecs`` Hessian-vector products, each of about 2
        gradient passes with a kept graph and 3 without.

    Raises:
        InvalidArgumentError: if k is below 1 or above the number of parameters.

    References:
        Lanczos (1950); Golub, Van Loan, Matrix Computations, ch. 10.
    """
    solve = METHODS[one_of(method, METHODS, what="method")]
    if not 1 <= k <= problem.space.n:
        msg = f"k must be from 1 to the number of parameters, {problem.space.n:,}; got {k}"
        raise InvalidArgumentError(msg)
    settings = {"k": k, "method": method, "tol": tol, "max_matvecs": max_matvecs, "seed": seed}

    def measure(provenance: Provenance) -> Eigenpairs:
        with Evaluator(problem, seed=seed) as evaluator:
            require_finite(evaluator.loss().value, problem)
            operator = Hessian(evaluator, graph_bytes=graph_bytes)
            with counting(f"{method} on {problem.name}", show=progress, unit="HVP") as count:
                solution: EigenSolution = solve(
                    count(operator.matvec),
                    operator.n,
                    k=k,
                    tol=tol,
                    max_matvecs=max_matvecs,
                    seed=seed,
                    dtype=operator.dtype,
                    device=operator.device,
                )
            return Eigenpairs(
                values=solution.values,
                residuals=solution.residuals,
                vectors=solution.vectors.cpu().numpy(),
                matvecs=solution.matvecs,
                converged=solution.converged,
                method=method,
                settings=settings,
                cost=evaluator.cost,
                provenance=provenance,
            )

    return recall_or_measure(Eigenpairs, problem, settings, study, measure)
