"""Operators made of an operator, against the same arithmetic on its matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh

from landscape.errors import InvalidArgumentError
from landscape.linalg import SymmetricOperator

N = 12


def matrix(seed: int = 0) -> torch.Tensor:
    a = torch.randn(N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (a + a.T) / 2


def operator(seed: int = 0) -> SymmetricOperator:
    a = matrix(seed)
    return SymmetricOperator(lambda v: a @ v, N, dtype=torch.float64, device="cpu")


T = torch.linspace(0.1, 2.0, N, dtype=torch.float64)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (operator(), matrix()),
        (operator().reparametrised(T), torch.diag(T) @ matrix() @ torch.diag(T)),
    ],
    ids=["itself", "THT"],
)
def test_what_is_made_of_an_operator(made: SymmetricOperator, expected: torch.Tensor) -> None:
    assert torch.allclose(made.dense(), expected, atol=1e-14)
    assert made.n == len(expected)


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
        (lambda: SymmetricOperator.from_scipy(np.ones((2, 3))), r"shape \(2, 3\).*square"),
    ],
)
def test_refuses_what_does_not_fit(make: object, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make()  # type: ignore[operator]
