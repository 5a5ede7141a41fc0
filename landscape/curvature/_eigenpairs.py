"""Extreme eigenpairs of a curvature operator of the data set's loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.checks import check_real, whole
from landscape.choices import Basis, EigenMethod, Evidence, Operator, Products, Scale
from landscape.curvature._prepared import (
    Prepared,
    Request,
    spectral_record,
    without_defaults,
)
from landscape.errors import InvalidArgumentError, LossError, ProblemError, one_of
from landscape.evaluate import Evaluator, check_hessian
from landscape.linalg import (
    FAILURE_PROBABILITY,
    AsymmetryError,
    EigenSolution,
    lanczos,
    power_iteration,
)
from landscape.linalg.basis import n_wanted
from landscape.linalg.lanczos import basis_for, least_basis, least_bytes
from landscape.operators import N_GROUPS, GaussNewton, Hessian
from landscape.problem import Problem, check_problem
from landscape.processes import shards
from landscape.results import Eigenpairs, FloatArray, Overlap
from landscape.stats import jackknife
from landscape.study import Study

METHODS = ("lanczos", "power")
BASIS_BYTES, HOST_BYTES = 2 * 2**30, 8 * 2**30
EVIDENCE = ("full", "residuals")


def top_eigenpairs(
    problem: Problem,
    k: int = 1,
    *,
    operator: Operator = "hessian",
    both_ends: bool = False,
    method: EigenMethod = "lanczos",
    tol: float = 1e-4,
    max_matvecs: int = 1000,
    block: int = 1,
    start: Eigenpairs | None = None,
    data_groups: int | None = None,
    evidence: Evidence = "full",
    failure_probability: float = 0.01,
    split: bool = False,
    scale: Scale = "none",
    preconditioner: Tensor | None = None,
    weight_decay: float = 0.0,
    products: Products = "auto",
    memory: float | None = None,
    basis: Basis = "device",
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> Eigenpairs:
    """Find the k largest (algebraic) eigenvalues of a curvature operator, with eigenvectors.

    The residuals ‖Hv − θv‖ follow from the Krylov basis and are verified with one product. As H is
    symmetric, some eigenvalue lies within the residual of θ. That none lies above is not proven
    by it: a second, short search from a random vector goes on until the chance of a missed one is
    below ``failure_probability``; ``upper_bound`` holds with the same chance.

    Args:
        problem: what to measure.
        k: how many.
        operator: ``hessian``, ``ggn`` (generalised Gauss-Newton) or ``fisher`` (empirical).
        both_ends: find the k smallest too, in the same run.
        method: ``lanczos`` (thick restart, full reorthogonalisation) or ``power`` (deflated power
            iteration).
        tol: a pair has converged when its residual is at most ``tol`` times the largest |θ|.
        max_matvecs: stop after so many products; then ``converged`` is False.
        block: random vectors to start from at once; more than 1 helps where eigenvalues cluster.
        start: eigenpairs of a checkpoint nearby to start from, beside one random vector.
        data_groups: groups of examples for the jackknife that says how far each θ would move with
            another sample; 0: none. None: 8 to 16, as the data are walked through. Batches are cut
            where there are fewer of them.
        evidence: ``full``, or ``residuals`` for these alone: no search for missed eigenvalues, no
            error over the data, no test of the products' noise.
        failure_probability: chance, over random vectors, that an eigenvalue is missed or a bound
            fails; a tenth of it takes about one product more.
        split: also measure vᵀGv with the Gauss-Newton matrix G; of the Hessian only.
        scale: ``elementwise`` or ``filterwise``: of THT instead, see `parameter_scale`.
        preconditioner: diagonal P, shape (n,), such as that of Adam, `landscape.optim
            .preconditioner`: of P^(−½) H P^(−½) instead, which has the eigenvalues of P⁻¹H.
        weight_decay: γ that is added to H before P.
        products: how the Hessian's products are made, see `Hessian`.
        memory: bytes to use beyond model and data: half for the basis and half for graphs, where
            batches are cut so that the graph of one part fits. None: 2 GiB and 4 GiB; where the
            smallest basis needs more than that, so much, and no graph is kept.
        basis: ``host``: keep all vectors of the search, and their sums, in the memory of the host,
            8 GiB of it or what the smallest basis takes; on the device are a vector and its
            product, and ``memory`` is for graphs.
        seed: of every random vector.
        study: where the result is kept, and looked up first; ``start`` is no part of the key.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The pairs, values descending. Cost: ``matvecs`` products, each of about 2 gradient passes
        with a kept graph and 3 without, and half a product for the test of the noise. The error
        over the data comes from the products of the search; only where the parts of the examples
        do not fit into memory, and with power iteration, it takes k more, as the split does.

    Raises:
        InvalidArgumentError: if an argument is out of its range, the tolerance is below the noise
            of the products, or the memory too small for the smallest basis.

    References:
        Lanczos (1950); Wu, Simon (2000), thick-restart Lanczos, SIAM J. Matrix Anal. Appl. 22;
        Papyan (2020), the split, JMLR 21, arXiv:2008.11865.
    """
    check_problem(problem)
    request = Request(
        operator=operator,
        scale=scale,
        preconditioner=preconditioner,
        weight_decay=weight_decay,
        products=products,
        memory=memory,
        basis=basis,
        seed=seed,
        progress=progress,
    )
    k, block = whole("k", k), whole("block", block)
    data_groups = None if data_groups is None else whole("data_groups", data_groups, least=0)
    max_matvecs = whole("max_matvecs", max_matvecs)
    check_real(tol=tol, failure_probability=failure_probability)
    one_of(method, METHODS, what="method")
    one_of(evidence, EVIDENCE, what="evidence")
    defaults = {"both_ends": False, "block": 1, "failure_probability": FAILURE_PROBABILITY}
    search = {"both_ends": both_ends, "block": block, "failure_probability": failure_probability}
    changed = without_defaults(search, defaults)
    if not 1 <= k <= problem.space.n:
        msg = f"k must be from 1 to the number of parameters, {problem.space.n:,}; got {k}"
        raise InvalidArgumentError(msg)
    if split and shards() is not None:
        msg = "split=True takes Gauss-Newton products, which are not made of split parameters"
        raise InvalidArgumentError(msg)
    if method == "power" and changed:
        msg = (
            "power iteration finds the top end from one vector and searches for no missed "
            f"eigenvalues, got {', '.join(changed)}; use method='lanczos'"
        )
        raise InvalidArgumentError(msg)
    if split and preconditioner is not None:
        msg = "split=True is of the Hessian itself: leave out the preconditioner"
        raise InvalidArgumentError(msg)
    if split and operator != "hessian":
        msg = f"the split into Gauss-Newton and rest is that of the Hessian, not of {operator!r}"
        raise InvalidArgumentError(msg)
    settings: dict[str, Any] = {"k": k, "method": method, "tol": tol, "max_matvecs": max_matvecs}
    settings |= {"data_groups": data_groups, **request.settings(), **changed}
    settings |= without_defaults(
        {"split": split, "evidence": evidence}, {"split": False, "evidence": "full"}
    )
    max_basis, graph_bytes = None, request.graph_bytes
    if method == "lanczos":  # power iteration stores no basis
        max_basis, graph_bytes = _budget(problem, k, both_ends, block, request)
    is_full = evidence == "full"
    n_groups = data_groups if is_full else 0
    options: dict[str, Any] = {"k": k, "tol": tol, "max_matvecs": max_matvecs, "seed": seed}

    def measure(ready: Prepared) -> dict[str, Any]:
        ready.require(tol)
        first = _vectors(start, ready)
        if method == "power":
            top = None if first is None else first[0]
            solution = power_iteration(start=top, **options, **ready.where)
        else:
            on_device = basis == "device"
            recorded = n_groups != 0 and on_device and ready.curvature.record_parts(n_groups)
            try:
                solution = lanczos(
                    both_ends=both_ends,
                    block=block,
                    max_basis=max_basis,
                    start=first,
                    failure_probability=failure_probability if is_full else 1.0,
                    project_parts=ready.project_parts if recorded else None,
                    **options,
                    **ready.where,
                )
            except AsymmetryError as error:
                msg = (
                    "the products are not those of one symmetric matrix, though they were at the "
                    "start: the loss is another one at each call. Is there randomness or a counter "
                    f"in the model, the loss or the data? ({error})"
                )
                raise ProblemError(msg) from error
        fields = {**_fields(solution, ready), **_data_errors(solution, ready, n_groups)}
        if start is not None and first is not None:
            fields["start"] = f"{start.name} and a random vector"
        if split:
            fields["gauss_newton"] = _gauss_newton(solution, ready)
        return {**fields, "method": method}

    return spectral_record(
        Eigenpairs,
        problem,
        request,
        settings,
        study,
        measure,
        what="eigenpairs",
        graph_bytes=graph_bytes,
        tested=is_full,
    )


def eigenpairs_by_layer(problem: Problem, k: int = 1, **options: Any) -> dict[str, Eigenpairs]:
    """Find the top eigenpairs of each layer's diagonal block of the operator.

    Args:
        problem: what to measure.
        k: how many of each layer; all of them where a layer has fewer parameters.
        **options: those of `top_eigenpairs`.

    Returns:
        The pairs by the layer's name, in the model's order. Cost: that of `top_eigenpairs` for
        each layer, where a product needs only the part of the graph above the layer; derivatives
        are tested once for all layers, and layer by layer only where that test finds a fault.
    """
    check_problem(problem)
    k, names = whole("k", k), problem.space.names
    owners = {name: name.rpartition(".")[0] or name for name in names}
    derivatives = _derivatives(problem, **options)
    pairs = {}
    for layer in problem.space.layers():
        part = problem.only(*(name for name in names if owners[name] == layer))
        part.derivatives = dict(derivatives)
        pairs[layer] = top_eigenpairs(part, min(k, part.space.n), **options)
    return pairs


def _derivatives(
    problem: Problem,
    *,
    operator: Operator = "hessian",
    products: Products = "auto",
    memory: float | None = None,
    seed: int = 0,
    **_: Any,
) -> dict[str, Any]:
    """Test the derivatives in all parameters at once, unless products need none but gradients."""
    request = Request(
        operator=operator, scale="none", products=products, memory=memory, seed=seed, progress=False
    )
    if products == "differences":
        return {}
    with Evaluator(problem, seed=seed, graph_bytes=request.graph_bytes) as evaluator:
        try:
            reason = check_hessian(evaluator)
        except LossError:  # raised again for the parameters that it is about
            return {}
    return {} if reason else dict(problem.derivatives)


def _budget(
    problem: Problem, k: int, both_ends: bool, block: int, request: Request
) -> tuple[int, int]:
    """Return the largest basis, and the bytes for graphs: half of the memory, or what is left.

    On the host the basis has bytes of its own, and the memory is for graphs.
    """
    n, memory = problem.space.n, request.memory
    options: dict[str, Any] = {
        "k": k,
        "both_ends": both_ends,
        "block": block,
        "dtype": problem.dtype,
    }
    here, on_host = shards(), request.basis == "host"
    n_parts = 1 if here is None else here.n  # of a vector, of which each process holds one
    smallest = least_basis(n, n_wanted(n, k=k, both_ends=both_ends))
    half = HOST_BYTES if on_host else BASIS_BYTES if memory is None else memory / 2
    graph_bytes = int(memory) if memory and on_host else request.graph_bytes
    try:
        return basis_for(n_parts * half, n, **options), graph_bytes
    except InvalidArgumentError:
        if on_host:
            return smallest, graph_bytes
        if memory is None:  # graphs are made anew, where the vectors take so much already
            return smallest, 0
        basis_for(n_parts * memory, n, **options)  # or an error
        return smallest, int(memory - least_bytes(n, **options) / n_parts)


def _vectors(start: Eigenpairs | None, ready: Prepared) -> Tensor | None:
    if start is None or not start.vectors.size:
        return None
    if start.vectors.shape[1] != ready.operator.n:
        msg = (
            f"the eigenpairs to start from are of {start.vectors.shape[1]:,} parameters, the "
            f"problem has {ready.operator.n:,}: give those of the same architecture"
        )
        raise InvalidArgumentError(msg)
    return ready.held(start.vectors)


def _data_errors(solution: EigenSolution, ready: Prepared, n_groups: int | None) -> dict[str, Any]:
    """Return the standard error of each value over the examples, by a jackknife over groups."""
    if n_groups == 0:
        return {}
    if solution.part_forms is not None:
        quadratic_forms, weights = solution.part_forms, ready.curvature.part_weights
    else:
        found = [
            ready.curvature.quadratic_forms(ready.scaled(part), n_groups=n_groups or N_GROUPS)
            for part in _at_once(solution, ready)
        ]
        quadratic_forms, weights = np.hstack([forms for forms, _ in found]), found[0][1]
    quadratic_forms, weights = quadratic_forms[weights > 0], weights[weights > 0]
    if len(quadratic_forms) < 2:
        return {}
    errors = jackknife(quadratic_forms, weights)
    if ready.evaluator.problem.loss.sums:
        errors = errors * weights.sum()  # of the sum over the examples, not of their mean
    return {"data_errors": errors, "n_groups": len(quadratic_forms)}


def _gauss_newton(solution: EigenSolution, ready: Prepared) -> FloatArray:
    operator, found = GaussNewton(ready.evaluator, graph_bytes=0), []
    for part in _at_once(solution, ready):
        vectors = ready.scaled(part)
        products = operator.matmat(vectors)
        found.append((vectors.double() * products.double()).sum(dim=1).cpu().numpy())
    return np.concatenate(found)


def _at_once(solution: EigenSolution, ready: Prepared) -> Sequence[Tensor]:
    """Return the eigenvectors that are on the device together: all, or one of those on the host."""
    on_host = ready.operator.device != ready.where["device"]
    return torch.split(solution.vectors, 1 if on_host else len(solution.vectors))


def _fields(solution: EigenSolution, ready: Prepared) -> dict[str, Any]:
    fields = dict(vars(solution))
    del fields["part_forms"]
    # The relative error of the products themselves, which no residual sees.
    differences = ready.curvature.error if isinstance(ready.curvature, Hessian) else 0.0
    inexactness = ready.noise.floor + differences
    fields["errors"] = solution.errors + inexactness * float(np.abs(solution.values).max())
    spread, vectors = ready.operator.spread, solution.vectors
    fields["vectors"] = (vectors if spread is None else spread.whole(vectors)).cpu().numpy()
    return fields


def overlap(first: Eigenpairs, second: Eigenpairs) -> Overlap:
    """Measure the principal angles between the top eigenspaces of two checkpoints.

    With orthonormal eigenvectors as rows of V and U, the cosines are the singular values of VUᵀ.

    Args:
        first: eigenpairs with their vectors; those from the lower end are left out.
        second: eigenpairs of a checkpoint of the same architecture.

    Returns:
        The cosines, and the inner products of the vectors themselves. No passes over the data.

    Raises:
        InvalidArgumentError: if the vectors are of different lengths or of other parameters, of
            THT and of H itself, or were not kept.

    References:
        Björck, Golub (1973), Math. Comput. 27; Gur-Ari, Roberts, Dyer (2018), Gradient descent
        happens in a tiny subspace, arXiv:1812.04754.
    """
    v, u = (pairs.vectors[: pairs.n_top].astype(np.float64) for pairs in (first, second))
    if v.ndim != 2 or u.ndim != 2 or v.shape[1] != u.shape[1]:
        msg = (
            f"eigenvectors of shapes {v.shape} and {u.shape}; expected the same number of "
            "parameters: compare checkpoints of one architecture, measured on the same parameters"
        )
        raise InvalidArgumentError(msg)
    for what, ours, theirs in (
        ("parameters", first.provenance.parameters, second.provenance.parameters),
        ("scale", *(pairs.settings.get("scale", "none") for pairs in (first, second))),
    ):
        if ours != theirs:
            msg = (
                f"the eigenvectors of {first.name} are of {what} {ours or 'all'}, those of "
                f"{second.name} of {what} {theirs or 'all'}, and have no angle: measure both with "
                f"the same {what}"
            )
            raise InvalidArgumentError(msg)
    cross = v @ u.T
    cosines = np.clip(np.linalg.svd(cross, compute_uv=False), 0.0, 1.0)
    return Overlap(names=(first.name, second.name), cosines=cosines, cross=cross)


def gradient_alignment(problem: Problem, pairs: Eigenpairs) -> FloatArray:
    """Return how much of the gradient lies in the span of the top eigenvectors.

    For j = 1, …, k the share ‖Vⱼ g‖²/‖g‖², with the first j eigenvectors as rows of Vⱼ: near 1 of a
    training at the edge of stability, k/n of a random direction.

    Args:
        problem: on the parameters, at the weights and on the data of the eigenpairs.
        pairs: those of the Hessian, with their vectors; those from the lower end are left out.

    Returns:
        The shares, rising, shape (k,); NaN where the gradient is zero. Cost: one gradient.

    Raises:
        InvalidArgumentError: if the vectors are of another length, of a rescaled operator, or were
            not kept.

    Reference: Gur-Ari, Roberts, Dyer (2018), arXiv:1812.04754.
    """
    check_problem(problem)
    vectors = pairs.vectors[: pairs.n_top].astype(np.float64)
    scale = pairs.settings.get("scale", "none")
    if vectors.ndim != 2 or vectors.shape[1:] != (problem.space.n,) or scale != "none":
        msg = (
            f"eigenvectors of shape {vectors.shape}, scale {scale}; expected those of the Hessian "
            f"in {problem.space.n:,} parameters: measure them at these weights, scale='none'"
        )
        raise InvalidArgumentError(msg)
    with Evaluator(problem) as evaluator:
        gradient = evaluator.gradient()[1].double().cpu().numpy()
    squared = float(gradient @ gradient)
    parts = np.cumsum((vectors @ gradient) ** 2)
    return np.asarray(parts / squared if squared else np.full(len(parts), np.nan))
