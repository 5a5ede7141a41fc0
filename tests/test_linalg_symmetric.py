"""Operators made of an operator, against the same arithmetic on its matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh

from landscape.errors import InvalidArgumentError
from landscape.linalg import SymmetricOperator, lanczos

N = 12


def matrix(seed: int = 0) -> torch.Tensor:
    a = torch.randn(N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (a + a.T) / 2


def operator(seed: int = 0) -> SymmetricOperator:
    a = matrix(seed)
    return SymmetricOperator(lambda v: a @ v, N, dtype=torch.float64, device="cpu")


Q = torch.linalg.qr(matrix(3)[:, :3])[0].T
T = torch.linspace(0.1, 2.0, N, dtype=torch.float64)
P = torch.eye(N, dtype=torch.float64) - Q.T @ Q


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (operator(), matrix()),
        (operator().shifted(-1.5), matrix() - 1.5 * torch.eye(N)),
        (operator().scaled(0.25), 0.25 * matrix()),
        (operator() + operator(1), matrix() + matrix(1)),
        (operator() - operator(1), matrix() - matrix(1)),
        (operator().reparametrised(T), torch.diag(T) @ matrix() @ torch.diag(T)),
        (operator().projected(Q), P @ matrix() @ P),
        (operator().restricted(slice(2, 7)), matrix()[2:7, 2:7]),
        (operator().shifted(2.0).reparametrised(T).restricted(slice(0, 4)),
         (torch.diag(T) @ (matrix() + 2 * torch.eye(N)) @ torch.diag(T))[:4, :4]),
    ],
    ids=["itself", "shifted", "scaled", "sum", "difference", "THT", "PHP", "block", "chain"],
)  # fmt: skip
def test_what_is_made_of_an_operator(made: SymmetricOperator, expected: torch.Tensor) -> None:
    assert torch.allclose(made.dense(), expected, atol=1e-14)
    assert made.n == len(expected)


def test_a_deflated_operator_has_the_next_eigenvalue_on_top() -> None:
    values, vectors = torch.linalg.eigh(matrix())
    rest = operator().projected(vectors[:, -2:].T.contiguous())
    found = lanczos(rest.matvec, N, k=1, tol=1e-10, dtype=torch.float64, device="cpu")
    assert found.values[0] == pytest.approx(float(values[-3]), abs=1e-10)


def test_to_scipy_and_back() -> None:
    values = np.linalg.eigvalsh(matrix().numpy())
    there = operator().to_scipy()
    assert there.shape == (N, N)
    assert there.dtype == np.float64
    top = eigsh(there, k=2, which="LA", return_eigenvectors=False)
    assert np.sort(top) == pytest.approx(values[-2:], abs=1e-9)
    back = SymmetricOperator.from_scipy(there)
    assert torch.allclose(back.dense(), matrix(), atol=1e-14)
    single = SymmetricOperator.from_scipy(matrix().numpy(), dtype=torch.float32)
    assert single.matvec(torch.ones(N)).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: operator().reparametrised(torch.ones(3)), r"shape \(3,\); expected \(12,\)"),
        (lambda: operator().projected(torch.ones(2, 3)), r"shape \(2, 3\); expected \(k, 12\)"),
        (lambda: operator() + operator().restricted(slice(3)), "operators of 12 and 3 rows"),
        (lambda: SymmetricOperator.from_scipy(np.ones((2, 3))), r"shape \(2, 3\).*square"),
    ],
)
def test_refuses_what_does_not_fit(make: object, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make()  # type: ignore[operator]
