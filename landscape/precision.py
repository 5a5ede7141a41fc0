"""How products of float32 numbers are computed: in full, or with TF32's 10 bits of mantissa."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_MATMUL = "float32_matmul_precision"
# What stands for full products and for TF32, by the name of the setting.
_VALUES: dict[str, tuple[Any, Any]] = {
    _MATMUL: ("highest", "high"),
    "allow_tf32": (False, True),
    "fp32_precision": ("ieee", "tf32"),
}


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Compute products of float32 in full, or in TF32 on a CUDA device, inside of the context.

    TF32, torch's default for convolutions and cuDNN's recurrent layers, has relative errors of
    1e-3, which a second derivative shows. The user's own setting is given back.

    >>> torch.set_float32_matmul_precision("high")
    >>> with float32_products(tf32=False):
    ...     print(torch.get_float32_matmul_precision())
    highest
    >>> torch.get_float32_matmul_precision()
    'high'
    >>> torch.set_float32_matmul_precision("highest")
    """
    before, exact = _settings(), _exact_settings()
    _set([(where, name, _VALUES[name][tf32]) for where, name, _ in before])
    if not tf32:  # on a CPU, too, which the older interface knows in part only
        for place in _places(torch.backends.mkldnn):
            place.fp32_precision = "ieee"
    try:
        yield
    finally:
        _set(before)
        for place, value in exact:
            place.fp32_precision = value


def _settings() -> list[tuple[Any, str, Any]]:
    # torch 2.9 brought a second interface, and the first one fails once the second was used.
    cudnn: Any = torch.backends.cudnn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            products = torch.get_float32_matmul_precision()
            return [(torch, _MATMUL, products), (cudnn, "allow_tf32", cudnn.allow_tf32)]
        except RuntimeError:
            places: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
            return [(place, "fp32_precision", place.fp32_precision) for place in places]


def _exact_settings() -> list[tuple[Any, str]]:
    """Return what the newer interface holds, where the older one knows fewer values."""
    backends = (torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn)
    places = [place for backend in backends for place in _places(backend)]
    return [(place, place.fp32_precision) for place in places]


def _places(backend: Any) -> list[Any]:
    places = [getattr(backend, name, None) for name in ("matmul", "conv", "rnn")]
    return [place for place in places if hasattr(place, "fp32_precision")]


def _set(settings: list[tuple[Any, str, Any]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for where, name, value in settings:
            if name == _MATMUL:
                torch.set_float32_matmul_precision(value)
            else:
                setattr(where, name, value)
