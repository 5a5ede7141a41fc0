"""How far the top eigenspaces of two checkpoints agree."""

from __future__ import annotations

import numpy as np

from landscape.errors import InvalidArgumentError
from landscape.results import Eigenpairs, Overlap


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
