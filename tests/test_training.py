"""Training: the same for SGD and SAM but for the optimizer, reproducible, saved whole or not."""

from __future__ import annotations

import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from landscape.errors import (
    DataError,
    InvalidArgumentError,
    LandscapeError,
    NonFiniteError,
    ProblemError,
)
from landscape.problem import load_task
from landscape.tasks import digits
from landscape.training import Trained, save_checkpoint, train
from landscape.training.data import Batches


def make_data(n: int = 25) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(n, 3, generator=g)
    return x, (x.sum(1) > 0).long()


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))


def make_task(**changes):
    names = {
        "model": make_model,
        "data": lambda split: make_data(),
        "loss": nn.CrossEntropyLoss(),
    }
    return SimpleNamespace(**{**names, **changes})


def quick(task=None, **kwargs) -> Trained:
    return train(task or make_task(), **{"epochs": 3, "batch_size": 8, **kwargs})


def bits(trained: Trained) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in trained.model.state_dict().items()}


class Watched:
    """A task that notes the batches its loss sees."""

    def __init__(self, data) -> None:
        self.model = make_model
        self.data = lambda split: data
        self.seen: list[list[float]] = []

    def batch_loss(self, model, batch):
        x, y = batch
        self.seen.append(x[:, 0].tolist())
        return nn.functional.cross_entropy(model(x), y)


# -- what is trained -----------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_training_is_the_plain_loop(optimizer):
    """Written out with torch alone: initial weights, order, schedule and decay as documented."""
    trained = quick(optimizer=optimizer, lr=0.1, rho=0.05, seed=4)

    seeds = [int(s) for s in np.random.SeedSequence(4).generate_state(3)]
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0])
        model = make_model()
    x, y = make_data()
    order = torch.Generator().manual_seed(seeds[1])
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for epoch in range(3):
        for group in opt.param_groups:
            group["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * epoch / 3))
        shuffled = torch.randperm(25, generator=order)
        # 25 = 3 · 8 + 1: the last batch would be a single example, and joins the one before.
        for rows in (shuffled[:8], shuffled[8:16], shuffled[16:]):
            opt.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            if optimizer == "sam":
                gradient = [p.grad.clone() for p in model.parameters()]
                norm = torch.cat([g.flatten() for g in gradient]).norm()
                statistics = [b.clone() for b in model.buffers()]
                weights = [p.detach().clone() for p in model.parameters()]
                with torch.no_grad():
                    for p, g in zip(model.parameters(), gradient, strict=True):
                        p += 0.05 * g / norm
                opt.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                with torch.no_grad():
                    for p, w in zip(model.parameters(), weights, strict=True):
                        p.copy_(w)
                    for b, s in zip(model.buffers(), statistics, strict=True):
                        b.copy_(s)
            opt.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(
            trained.model.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name
        )


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_the_same_seed_gives_the_same_bits(optimizer):
    first = quick(optimizer=optimizer)
    torch.rand(3)
    again = quick(optimizer=optimizer)
    assert bits(first) == bits(again)
    assert [e.train_loss for e in first.log] == [e.train_loss for e in again.log]
    assert bits(quick(optimizer=optimizer, seed=1)) != bits(first)


def test_sgd_and_sam_share_initial_weights_and_order():
    start = [quick(optimizer=name, epochs=0) for name in ("sgd", "sam")]
    assert bits(start[0]) == bits(start[1])
    sgd, sam = Watched(make_data()), Watched(make_data())
    quick(sgd, optimizer="sgd")
    quick(sam, optimizer="sam")
    assert sam.seen[::2] == sam.seen[1::2] == sgd.seen
    assert sgd.seen[:3] != sgd.seen[3:6]
    assert bits(quick(optimizer="sgd")) != bits(quick(optimizer="sam"))


def test_sam_with_rho_zero_is_sgd_even_with_dropout_and_a_shuffling_loader():
    def data(split):
        return DataLoader(TensorDataset(*make_data()), batch_size=10, shuffle=True)

    task = make_task(
        model=lambda: nn.Sequential(make_model(), nn.Dropout(0.5)),
        data=data,
    )
    sgd, sam = quick(task, optimizer="sgd"), quick(task, optimizer="sam", rho=0.0)
    assert bits(sgd) == bits(sam)
    assert bits(sgd) == bits(quick(task, optimizer="sgd"))
    assert (sgd.gradients, sam.gradients) == (9, 18)


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_the_global_generators_are_left_alone(optimizer):
    torch.manual_seed(11)
    torch.rand(3)
    task = make_task(
        model=lambda: nn.Sequential(make_model(), nn.Dropout(0.5)),
        data=lambda split: DataLoader(TensorDataset(*make_data()), batch_size=9, shuffle=True),
    )
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    quick(task, optimizer=optimizer)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ZeroDivisionError):
        quick(make_task(model=lambda: nn.Linear(1, 1 // 0)))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_the_record_of_a_training():
    trained = quick(optimizer="sam", epochs=4)
    assert not trained.model.training
    assert [e.epoch for e in trained.log] == [1, 2, 3, 4]
    expected = [0.05 * 0.5 * (1 + math.cos(math.pi * e / 4)) for e in range(4)]
    assert [e.lr for e in trained.log] == pytest.approx(expected, rel=1e-12)
    assert trained.gradients == 2 * 4 * 3
    assert trained.seconds >= sum(e.seconds for e in trained.log) > 0
    assert json.loads(json.dumps(trained.settings)) == trained.settings
    assert trained.settings["rho"] == 0.2
    assert quick().settings["rho"] is None
    assert quick(schedule="constant").log[-1].lr == 0.05


def test_the_train_loss_is_the_mean_over_examples_at_the_weights_before_each_step():
    x, y = make_data(10)
    task = make_task(data=lambda split: [(x[:7], y[:7]), (x[7:], y[7:])])
    trained = quick(task, epochs=1, lr=0.0, optimizer="sam")
    model = trained.model.train()
    losses = [nn.functional.cross_entropy(model(x[s]), y[s]) for s in (slice(7), slice(7, 10))]
    expected = (7 * losses[0] + 3 * losses[1]).item() / 10
    assert trained.log[0].train_loss == pytest.approx(expected, rel=1e-6)


def test_weighted_losses_and_pairs_are_understood():
    weight = torch.tensor([0.2, 0.8])
    plain = quick(make_task(loss=nn.CrossEntropyLoss(weight=weight)))

    def pair(model, batch):
        x, y = batch
        terms = nn.functional.cross_entropy(model(x), y, weight=weight, reduction="none")
        return terms.sum(), weight[y].sum()

    paired = quick(make_task(loss=None, batch_loss=pair))
    for a, b in zip(plain.model.parameters(), paired.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert plain.log[-1].train_loss == pytest.approx(paired.log[-1].train_loss, rel=1e-5)


def test_a_summed_loss_is_stepped_on_as_a_sum():
    x, y = make_data(8)
    kwargs = {"epochs": 5, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 8}
    summed = train(
        make_task(data=lambda s: (x, y), loss=nn.CrossEntropyLoss(reduction="sum")),
        lr=0.01,
        **kwargs,
    )
    mean = train(make_task(data=lambda s: (x, y)), lr=0.08, **kwargs)
    for a, b in zip(summed.model.parameters(), mean.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_model_made_in_eval_mode_is_trained_in_train_mode():
    trained = quick(make_task(model=lambda: make_model().eval()))
    assert bits(trained) == bits(quick())
    assert trained.model[1].num_batches_tracked == 9


def test_float64_models_are_trained_in_float64():
    trained = quick(make_task(model=lambda: make_model().double()))
    assert {p.dtype for p in trained.model.parameters()} == {torch.float64}


def test_digits_are_learnt_in_a_few_epochs():
    small = SimpleNamespace(
        model=lambda: digits.ResNet((8, 16)),
        data=lambda split: tuple(part[:500] for part in digits.data(split)),
        loss=digits.loss,
    )
    x, y = digits.data("test")
    for optimizer in ("sgd", "sam"):
        trained = train(small, optimizer=optimizer, epochs=5, lr=0.1, rho=0.1, batch_size=32)
        with torch.no_grad():
            accuracy = digits.accuracy(trained.model(x), y).mean().item()
        assert accuracy > 0.9, optimizer


# -- batches -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 45), seed=st.integers(0, 2**32))
def test_every_example_comes_once_per_epoch_and_never_alone_at_the_end(n, size, seed):
    rows = torch.arange(n)
    sources = ((rows, rows), TensorDataset(rows, rows), (rows.numpy(), rows.numpy()))
    epochs = [list(Batches(source, size, seed=seed)) for source in sources]
    seen = [[x.tolist() for x, _ in epoch] for epoch in epochs]
    assert seen[0] == seen[1] == seen[2]
    assert sorted(row for batch in seen[0] for row in batch) == rows.tolist()
    lengths = [len(batch) for batch in seen[0]]
    assert all(length == size for length in lengths[:-1])
    if size > 1 and n > 1:
        assert 1 < lengths[-1] <= size + 1
    assert len(lengths) == max(1, n // size + (n % size > (1 if size > 1 else 0)))


def test_every_epoch_has_an_order_of_its_own():
    batches = Batches((torch.arange(30), torch.arange(30)), 30, seed=0)
    (first, _), (second, _) = next(iter(batches)), next(iter(batches))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(30))


def test_a_last_batch_of_one_would_break_batch_norm_and_does_not_occur():
    quick(make_task(data=lambda split: make_data(9)), epochs=2, batch_size=4)


def test_batches_that_come_cut_are_used_as_they_come():
    x, y = make_data(12)
    cut = [(x[:5], y[:5]), (x[5:], y[5:])]
    for data in (cut, DataLoader(TensorDataset(x, y), batch_sampler=[range(5), range(5, 12)])):
        task = Watched(data)
        quick(task, epochs=2)
        assert task.seen == [x[:5, 0].tolist(), x[5:, 0].tolist()] * 2


def test_an_iterable_data_set_is_read_in_its_own_order():
    x, y = make_data(8)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(x, y, strict=True))

    task = Watched(Stream())
    quick(task, epochs=1, batch_size=4)
    assert task.seen == [x[:4, 0].tolist(), x[4:, 0].tolist()]


def test_batches_of_another_kind_go_to_batch_loss():
    x, y = make_data(12)
    batches = [{"inputs": x[:6], "labels": y[:6]}, {"inputs": x[6:], "labels": y[6:]}]
    task = make_task(
        data=lambda split: batches,
        loss=None,
        batch_loss=lambda m, b: nn.functional.cross_entropy(m(b["inputs"]), b["labels"]),
    )
    log = quick(task, epochs=20).log
    assert log[-1].train_loss < log[0].train_loss


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer": "sma"}, r"unknown optimizer 'sma' .*known: sgd, adam, adamw, sam"),
        ({"schedule": "cosin"}, r"unknown schedule 'cosin' \(nearest: cosine\)"),
        ({"epochs": -1}, r"epochs must be a whole number of at least 0, got -1"),
        ({"epochs": 1.5}, r"epochs must be a whole number"),
        ({"lr": -0.1}, r"lr must be a finite number of at least 0, got -0.1"),
        ({"lr": math.nan}, r"lr must be a finite number .* got nan"),
        ({"lr": math.inf}, r"lr must be a finite number"),
        ({"lr": "0.1"}, r"lr must be a finite number .* got '0.1'"),
        ({"momentum": 1.0}, r"momentum must be .* at least 0 and below 1, got 1.0"),
        ({"weight_decay": -1e-4}, r"weight_decay must be"),
        ({"optimizer": "sam", "rho": -0.1}, r"rho must be a finite number of at least 0, got -0.1"),
        ({"optimizer": "sam", "rho": math.nan}, r"rho must be a finite number"),
        ({"batch_size": 0}, r"batch_size must be a whole number of at least 1, got 0"),
        ({"seed": -1}, r"seed must be a whole number of at least 0"),
        ({"device": "gpu"}, r"unknown device 'gpu'; known: cpu, cuda"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(InvalidArgumentError, match=message):
        quick(**setting)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_named():
    with pytest.raises(InvalidArgumentError, match="sees no CUDA device; use cpu"):
        quick(device="cuda")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"loss": None}, ProblemError, r"give either loss\(output, target\) or batch_loss"),
        ({"model": lambda: "net"}, ProblemError, r"must return a torch.nn.Module, got str"),
        ({"model": nn.Identity}, ProblemError, r"no parameter that requires a gradient"),
        ({"data": lambda s: iter([make_data()])}, DataError, "one-shot iterator"),
        ({"data": lambda s: 5}, DataError, "cannot read batches from int"),
    ],
)
def test_tasks_that_cannot_be_trained_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        quick(make_task(**changes))


@pytest.mark.parametrize("data", [[], (torch.zeros(0, 3), torch.zeros(0))])
def test_data_without_an_example_are_refused(data):
    with pytest.raises(DataError, match="no example"):
        quick(make_task(data=lambda split: data))


def test_a_diverging_training_is_stopped():
    task = make_task(
        model=lambda: nn.Linear(3, 1),
        loss=nn.MSELoss(),
        data=lambda s: (torch.ones(8, 3), torch.ones(8, 1)),
    )
    with pytest.raises(NonFiniteError, match=r"training loss of epoch \d+ is (inf|nan); try"):
        quick(task, lr=1e30, epochs=20)


# -- checkpoints ---------------------------------------------------------------------------------


def read(path):
    if path.suffix == ".pt":
        file = torch.load(path, weights_only=True)
        return file["state_dict"], file["settings"]
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["settings"])


both_formats = pytest.mark.parametrize("suffix", [".pt", ".safetensors"])


@both_formats
def test_a_checkpoint_comes_back_bit_for_bit(suffix, tmp_path):
    trained = quick(optimizer="sam")
    path = save_checkpoint(trained, tmp_path / "deep" / f"sam{suffix}")
    assert os.listdir(tmp_path / "deep") == [f"sam{suffix}"]
    state, stored = read(path)
    assert stored == trained.settings
    assert list(sorted(state)) == sorted(trained.model.state_dict())
    model = make_model()
    model.load_state_dict(state)
    assert {k: v.numpy().tobytes() for k, v in model.state_dict().items()} == bits(trained)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("strided", torch.arange(1e6).reshape(1000, 1000)[:, :2].t())
        self.register_buffer("count", torch.tensor(7))


@both_formats
def test_tied_and_strided_tensors_are_stored_whole(suffix, tmp_path):
    model = Tied()
    path = save_checkpoint(model, str(tmp_path / f"tied{suffix}"))
    state, stored = read(path)
    assert stored == {}
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert path.stat().st_size < 50_000  # not the million numbers that the view belongs to
    Tied().load_state_dict(state)


@both_formats
def test_the_same_training_gives_the_same_file(suffix, tmp_path):
    files = [save_checkpoint(quick(), tmp_path / f"{name}{suffix}") for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


@both_formats
def test_a_failed_write_leaves_the_old_file(suffix, tmp_path, monkeypatch):
    path = save_checkpoint(make_model(), tmp_path / f"net{suffix}")
    old = path.read_bytes()

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(LandscapeError, match=r"cannot write .*disk full"):
        save_checkpoint(make_model(), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["net.pth", "net", "net.npz"])
def test_an_unknown_suffix_is_refused(name, tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"unknown suffix .* known: .pt, .safetensors"):
        save_checkpoint(make_model(), tmp_path / name)
    assert not list(tmp_path.iterdir())


class WithExtra(nn.Linear):
    def get_extra_state(self):
        return {"steps": 3}

    def set_extra_state(self, state) -> None:
        self.steps = state["steps"]


def test_extra_state_fits_into_pt_only(tmp_path):
    state, _ = read(save_checkpoint(WithExtra(1, 1), tmp_path / "net.pt"))
    assert state["_extra_state"] == {"steps": 3}
    with pytest.raises(InvalidArgumentError, match=r"no tensor \(_extra_state\).*\.pt file"):
        save_checkpoint(WithExtra(1, 1), tmp_path / "net.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]


def test_the_model_trained_with_sam_holds_its_own_buffers(tmp_path):
    made = []

    def model():
        made.append(make_model())
        made.append({name: id(b) for name, b in made[0].named_buffers()})
        return made[0]

    trained = quick(make_task(model=model), optimizer="sam")
    assert trained.model is made[0]
    assert {name: id(b) for name, b in trained.model.named_buffers()} == made[1]
    assert trained.model[1].num_batches_tracked == 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "how",
    [{"optimizer": "sgd"}, {"optimizer": "sam"}, {"optimizer": "gsam", "micro_batch": 4}],
    ids=lambda how: how["optimizer"],
)
def test_training_on_the_gpu_leaves_its_generator_alone(how, tmp_path):
    torch.cuda.manual_seed(5)
    torch.rand(2, device="cuda")
    before = torch.cuda.get_rng_state()
    task = make_task(model=lambda: nn.Sequential(make_model(), nn.Dropout(0.1)))
    first, again = (quick(task, **how, device="cuda") for _ in range(2))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    states = [
        read(save_checkpoint(t, tmp_path / f"{i}.pt"))[0] for i, t in enumerate((first, again))
    ]
    for name, value in states[0].items():
        assert value.device.type == "cpu"
        torch.testing.assert_close(value, states[1][name], rtol=1e-4, atol=1e-5)


def test_a_built_in_problem_is_trained_by_its_name():
    pytest.importorskip("sklearn")
    by_name = train("digits-mlp", epochs=1, progress=False)
    by_task = train(load_task("digits-mlp"), epochs=1, progress=False)
    assert by_name.log[0].train_loss == by_task.log[0].train_loss
