"""Arguments of measures that are no numbers: refused in words, whatever the measure."""

from __future__ import annotations

import numpy as np
import pytest
from test_operators_pieces import wide

from landscape.curvature._density import spectral_density
from landscape.curvature._eigenpairs import eigenpairs_by_layer, top_eigenpairs
from landscape.curvature._trace import trace
from landscape.errors import InvalidArgumentError
from landscape.sharpness._m_sharpness import m_sharpness
from landscape.surface._surface import span, surface

COUNTS = {
    "m": lambda n: m_sharpness(wide(), 0.1, m=n),
    "n_examples": lambda n: m_sharpness(wide(), 0.1, m=4, n_examples=n),
    "max_gradients": lambda n: m_sharpness(wide(), 0.1, m=4, max_gradients=n),
    "k": lambda n: top_eigenpairs(wide(), n),
    "max_matvecs": lambda n: top_eigenpairs(wide(), max_matvecs=n),
    "block": lambda n: top_eigenpairs(wide(), block=n),
    "data_groups": lambda n: top_eigenpairs(wide(), data_groups=n),
    "steps": lambda n: spectral_density(wide(), steps=n),
    "n_probes": lambda n: spectral_density(wide(), n_probes=n),
    "outliers": lambda n: spectral_density(wide(), outliers=n),
    "n": lambda n: surface(wide(), n=n),
    "max_points": lambda n: surface(wide(), n=4, tolerance=0.1, max_points=n),
}
NUMBERS = {
    "rtol": lambda x: trace(wide(), rtol=x),
    "confidence": lambda x: trace(wide(), confidence=x),
    "memory": lambda x: trace(wide(), memory=x),
    "bandwidth": lambda x: spectral_density(wide(), bandwidth=x),
    "tol": lambda x: top_eigenpairs(wide(), tol=x),
    "tol of the subsets": lambda x: m_sharpness(wide(), 0.1, m=4, tol=x),
    "tolerance": lambda x: surface(wide(), n=4, tolerance=x),
    "half_width": lambda x: span(x, 3),
}


@pytest.mark.parametrize("value", [2.5, 2.0, "2", True, [2]])
@pytest.mark.parametrize("name", COUNTS)
def test_a_count_that_is_none(name, value):
    with pytest.raises(InvalidArgumentError) as caught:
        COUNTS[name](value)
    assert str(caught.value).startswith(f"{name} must be a whole number")
    assert str(caught.value).endswith(f", got {value!r}")


@pytest.mark.parametrize("value", ["x", True, [0.1], 1j])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_is_none(name, value):
    with pytest.raises(InvalidArgumentError) as caught:
        NUMBERS[name](value)
    kind = "a finite number above zero" if name == "memory" else "a number"
    assert str(caught.value) == f"{name.split()[0]} must be {kind}, got {value!r}"


def test_other_verbs_of_the_same_counts():
    for call in (
        lambda: eigenpairs_by_layer(wide(), 1.5),
        lambda: span(1.0, 2.5),
        lambda: trace(wide(), max_matvecs="many"),
    ):
        with pytest.raises(InvalidArgumentError, match="must be a whole number, got"):
            call()


def test_numbers_of_numpy_are_numbers():
    told = top_eigenpairs(wide(), np.int64(2), tol=np.float32(1e-3), max_matvecs=np.uint16(500))
    same = top_eigenpairs(wide(), 2, tol=float(np.float32(1e-3)), max_matvecs=500)
    assert told.settings == same.settings
    assert np.array_equal(told.values, same.values)
    assert type(told.settings["k"]) is int
    assert span(np.float64(1.0), np.int32(3)).tolist() == [-1.0, 0.0, 1.0]
    parts = m_sharpness(wide(), 0.1, m=np.int8(5), n_examples=np.int64(10), max_gradients=5)
    assert (len(parts.values), type(parts.m)) == (2, int)
