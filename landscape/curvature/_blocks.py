"""Products of an operator with several vectors, for which each graph is built once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from landscape.curvature._prepared import Prepared
from landscape.progress import counting


@contextmanager
def block_products(
    ready: Prepared, *, what: str, show: bool | None, total: int | None = None
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Give the product with vectors in rows, shape (b, n), and count the blocks on a bar."""
    curvature, scale = ready.curvature, ready.scale

    def product(vectors: Tensor) -> Tensor:
        if scale is None:
            return curvature.matmat(vectors)
        return curvature.matmat(vectors * scale).mul_(scale)

    with counting(what, show=show, unit="block", total=total) as count:
        yield count(product)
