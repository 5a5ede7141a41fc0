"""Whatever the user has set, what is measured is computed in full float32; and it is given back."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import landscape as ls
from landscape.precision import float32_products
from landscape.problem import Problem


def now() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(params=[("high", True), ("highest", False), ("medium", True)])
def chosen(request):
    before = now()
    products, torch.backends.cudnn.allow_tf32 = request.param
    torch.set_float32_matmul_precision(products)
    yield request.param
    products, torch.backends.cudnn.allow_tf32 = before
    torch.set_float32_matmul_precision(products)


seen: set[tuple[str, bool]] = set()  # outside of the model, which is given back as it was


class Watched(nn.Module):
    """Notes how it is computed, and rings where told to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(2, 2, batch_first=True)
        self.broken = False

    def forward(self, x):
        if self.broken:
            raise RuntimeError("broken")
        seen.add(now())
        return self.layer(x)[0][:, -1]


MEASURES = {
    "evaluation": ls.evaluation,
    "sharpness": lambda problem: ls.sharpness(problem, 0.1),
    "eigenpairs": ls.top_eigenpairs,
    "surface": lambda problem: ls.surface(problem, n=3),
    "average": lambda problem: ls.average_sharpness(problem, 0.1, n_samples=2),
}


@pytest.mark.parametrize("name", MEASURES)
def test_all_is_measured_in_full_precision(name, chosen):
    torch.manual_seed(0)
    model = Watched()
    x = torch.randn(6, 3, 2)
    problem = Problem(model, nn.CrossEntropyLoss(), (x, torch.arange(6) % 2))
    measured = MEASURES[name]
    measured(problem)
    # Problems look at the data once before; with each measurement the model is run many times.
    seen.clear()
    measured(problem)
    assert seen == {("highest", False)}
    assert now() == chosen
    model.broken = True
    with pytest.raises(Exception, match="broken"):
        measured(problem)
    assert now() == chosen


def test_tf32_is_allowed_where_it_is_asked_for(chosen):
    with float32_products(tf32=False):
        assert now() == ("highest", False)
        with float32_products(tf32=True):
            assert now() == ("high", True)
        assert now() == ("highest", False)
    assert now() == chosen


NEW_INTERFACE = """
import torch
from landscape.precision import float32_products

backends = torch.backends
places = backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn
on_cpu = backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn

def now(of=places):
    return [place.fp32_precision for place in of]

untouched = now((*places, *on_cpu))
with float32_products(tf32=False):
    assert now(on_cpu) == ["ieee", "ieee", "ieee"], now(on_cpu)
assert now((*places, *on_cpu)) == untouched, now((*places, *on_cpu))
assert torch.get_float32_matmul_precision() == "highest"
assert backends.cudnn.allow_tf32
backends.mkldnn.conv.fp32_precision = "bf16"
backends.cuda.matmul.fp32_precision = "tf32"
before = now()
with float32_products(tf32=False):
    assert now() == now(on_cpu) == ["ieee", "ieee", "ieee"], (now(), now(on_cpu))
    with float32_products(tf32=True):
        assert now() == ["tf32", "tf32", "tf32"], now()
assert now() == before == ["tf32", "tf32", "tf32"], now()
assert now(on_cpu)[1] == "bf16"
"""


@pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has one interface"
)
def test_settings_of_the_newer_interface_are_given_back_too():
    # In a process of its own: once it was used, the older one fails for good.
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", NEW_INTERFACE], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
