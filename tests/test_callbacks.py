"""A monitored training: the same bits as without, and the numbers of a plain measurement."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.callbacks import Monitor
from landscape.errors import InvalidArgumentError
from landscape.optim import SAM, edge_of_stability
from landscape.study import Study

Step = Callable[[nn.Module, torch.optim.Optimizer, Any, Any], None]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
    return nn.Sequential(*layers)


def data(n: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=generator)
    return x, (x[:, :3] + 0.3 * torch.randn(n, 3, generator=generator)).argmax(1)


def probe_of(model: nn.Module) -> ls.Problem:
    x, y = data()
    return ls.Problem(model, nn.CrossEntropyLoss(), [(x[:24], y[:24])])


def batches(n: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    x, y = data()
    for _ in range(n):
        rows = torch.randint(len(x), (12,))  # of the global generator, which a monitor must not use
        yield x[rows], y[rows]


def plain(model: nn.Module, optimizer: Any, x: Any, y: Any, monitor: Monitor | None) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    if monitor is not None:
        monitor.step()
    optimizer.step()


def sharpness_aware(model: nn.Module, optimizer: Any, x: Any, y: Any, monitor: Any) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    if monitor is not None:
        monitor.step()


def mixed(model: nn.Module, optimizer: Any, x: Any, y: Any, monitor: Monitor | None) -> None:
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        F.cross_entropy(model(x), y).backward()
        if monitor is not None:
            monitor.step()
    optimizer.step()


WAYS: dict[str, tuple[Any, Any]] = {
    "SGD": (plain, lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9)),
    "AdamW": (plain, lambda w: torch.optim.AdamW(w, lr=0.01)),
    "SAM": (sharpness_aware, lambda w: SAM(w, torch.optim.SGD, lr=0.1)),
    "autocast": (mixed, lambda w: torch.optim.SGD(w, lr=0.1)),
}


def train(way: str, n: int = 7, **options: Any) -> tuple[dict[str, Any], Monitor | None, Any]:
    """Return everything that a training leaves behind."""
    step, make = WAYS[way]
    model = network().train()
    optimizer = make(list(model.parameters()))
    monitor = Monitor(probe_of(model), optimizer, **options) if options else None
    torch.manual_seed(3)
    for x, y in batches(n):
        step(model, optimizer, x, y, monitor)
    left = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    left["grads"] = [p.grad for p in model.parameters()]
    left["rng"], left["modes"] = torch.get_rng_state(), [m.training for m in model.modules()]
    return copy.deepcopy(left), monitor, model


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("way", WAYS)
def test_a_monitored_training_ends_in_the_same_bits(way: str, tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []
    measures = ("loss", "eigs", "update-sharpness", "batch-sharpness")
    options: dict[str, Any] = {"every": 3, "study": tmp_path / "s.db", "log": logged.append}
    bare, _, _ = train(way)
    watched, _, _ = train(way, measures=measures, batch_size=6, **options)
    assert_same(bare, watched)
    assert [numbers["landscape/step"] for numbers in logged] == [0, 3, 6]
    with Study(tmp_path / "s.db", readonly=True) as study:
        assert list(study.runs()["run"].values()) == [0, 3, 6]
        # Of P⁻¹H before the first step there is none.
        assert len(study.entries("eigs")) == (2 if way == "AdamW" else 3)


def test_numbers_are_those_of_a_measurement_and_lie_over_the_edge(tmp_path: Path) -> None:
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    monitor = Monitor(probe_of(model), optimizer, study=tmp_path / "s.db", every=1)
    torch.manual_seed(3)
    for x, y in batches(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        own = ls.top_eigenpairs(probe_of(model)).values[0]
        numbers = monitor.step()
        edge = edge_of_stability(optimizer).value
        assert edge == 6.0
        assert numbers["landscape/eigs/λ1"] == pytest.approx(own, rel=1e-4)
        assert numbers["landscape/eigs/λ1/edge"] == pytest.approx(own / edge, rel=1e-4)
        optimizer.step()
    with Study(tmp_path / "s.db", readonly=True) as study:
        record = study.load(study.entries("eigs")[-1].id)
        assert record.edge == edge
        assert record.name == "run-step-2"
        assert "run-step-1" in record.start  # warm


def test_of_adam_it_is_the_preconditioned_sharpness() -> None:
    model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = Monitor(probe_of(model), optimizer, every=1, measures=("eigs",))
    torch.manual_seed(3)
    for i, (x, y) in enumerate(batches(3)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        numbers = monitor.step()
        # no moments before the first step
        assert ("landscape/preconditioned eigs/λ1/edge" in numbers) == (i > 0)
        optimizer.step()
    p = torch.cat([optimizer.state[w]["exp_avg_sq"].reshape(-1) for w in model.parameters()])
    optimizer.zero_grad()
    numbers = monitor.step()
    scale = ((p / (1 - 0.999**3)).sqrt() + 1e-8) * (1 - 0.9**3)
    problem = probe_of(model).at(model.state_dict())
    own = ls.top_eigenpairs(problem, preconditioner=scale, tol=1e-6).values[0]
    assert numbers["landscape/preconditioned eigs/λ1"] == pytest.approx(own, rel=1e-3)
    assert numbers["landscape/preconditioned eigs/λ1/edge"] == pytest.approx(own / 3800.0, rel=1e-3)


def test_a_budget_puts_measurements_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by hand: a step takes 1 s, a measurement 4 s, and a tenth of the time is allowed."""
    now = [0.0]
    monkeypatch.setattr("landscape.callbacks._monitor.time.perf_counter", lambda: now[0])

    def measure(problem: ls.Problem) -> Any:
        now[0] += 4.0
        return ls.evaluation(problem)

    monitor = Monitor(probe_of(network()), every=1, budget=0.1, measures={"slow": measure})
    measured = []
    for step in range(200):
        if monitor.step():
            measured.append(step)
        now[0] += 1.0
    assert measured[:3] == [0, 80, 120]
    assert 4.0 * len(measured) <= 0.1 * 200


def test_a_failing_measure_is_a_warning_and_nan_weights_are_named(tmp_path: Path) -> None:
    model = network().eval()
    monitor = Monitor(probe_of(model), every=1, study=tmp_path / "s.db")
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    with pytest.warns(UserWarning, match="step 0: ") as caught:
        monitor.step()
    failed = [str(one.message).split(": ")[1] for one in caught]
    assert failed == ["eigs", "update-sharpness"]
    with Study(tmp_path / "s.db", readonly=True) as study:
        (entry,) = study.entries()
        assert entry.kind == "loss"
        assert np.isnan(study.load(entry.id).loss)


def failing(kind: str) -> tuple[Monitor, str]:
    """A monitor in which something fails, and what its warning says."""
    model = network().eval()
    parameters = list(model.parameters())
    options: dict[str, Any] = {"every": 1, "measures": ("loss",)}
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    words = ""
    if kind == "measure":
        options["measures"] = {"mine": lambda problem: 1 / 0}
        words = "step 0: mine: ZeroDivisionError"
    elif kind == "log":
        options["log"] = lambda numbers: [][0]
        words = "step 0: log: IndexError"
    elif kind == "warmup":
        optimizer = torch.optim.SGD(parameters, lr=0.0)
        options["measures"] = ("eigs", "update-sharpness")
        words = "step 0: update-sharpness: the learning rate is 0"
    elif kind == "foreign parameter":
        optimizer = torch.optim.Adam([*parameters, nn.Parameter(torch.zeros(2))])
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
        options["measures"] = ("eigs",)
    return Monitor(probe_of(model), optimizer, **options), words


@pytest.mark.parametrize("kind", ["measure", "log", "warmup", "foreign parameter"])
def test_whatever_fails_the_training_goes_on(kind: str) -> None:
    monitor, words = failing(kind)
    if words:
        with pytest.warns(UserWarning, match=words):
            monitor.step()
    else:
        assert monitor.step()["landscape/preconditioned eigs/λ1/edge"] > 0


def test_a_study_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    monitor = Monitor(probe_of(network()), every=1, measures=("loss",), study=tmp_path / "s.db")
    (tmp_path / "s.db").write_bytes(b"no study at all" * 100)
    with pytest.warns(UserWarning, match="step 0: study: "):
        assert monitor.step()


def test_sparse_gradients_are_no_obstacle() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 3)).double()
    words, labels = torch.arange(5), torch.arange(5) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = ls.Problem(model, nn.CrossEntropyLoss(), [(words, labels)])
    monitor = Monitor(probe, optimizer, every=1, measures=("eigs",))
    F.cross_entropy(model(words), labels).backward()
    assert monitor.step()["landscape/eigs/λ1/edge"] > 0


def test_two_monitors_do_not_mix_in_one_study(tmp_path: Path) -> None:
    train("SGD", n=1, every=1, study=tmp_path / "s.db", measures=("loss",))
    options: dict[str, Any] = {"every": 1, "study": tmp_path / "s.db", "measures": ("loss",)}
    with pytest.warns(UserWarning, match="holds a run 'run' already: this one is 'run-2'"):
        train("SGD", n=2, **options)
    with Study(tmp_path / "s.db", readonly=True) as study:
        assert {run: len(of) for run, of in study.runs().items()} == {"run": 1, "run-2": 2}


def test_a_training_that_is_resumed_goes_on_with_its_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"every": 1, "study": tmp_path / "s.db", "measures": ("loss",)}
    model = network()
    Monitor(probe_of(model), **options).step(at=0)
    monitor = Monitor(probe_of(model), **options)
    for at in (1, 2):
        monitor.step(at=at)
    with Study(tmp_path / "s.db", readonly=True) as study:
        assert list(study.runs()["run"].values()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every must be"),
        ({"budget": 0.0}, "budget must be"),
        ({"measures": ()}, "measures is empty"),
        ({"measures": ("eig",)}, "nearest: eigs"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        Monitor(probe_of(network()), **options)


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        x, y = data()
        return {"x": x[i], "labels": y[i]}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_trainer_of_transformers_ends_in_the_same_bits_and_logs(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from landscape.callbacks import TrainerMonitor

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def probe(model: nn.Module) -> ls.Problem:
        x, y = data()
        batch_loss = lambda m, b: (m(*b)["loss"] * len(b[0]), len(b[0]))  # noqa: E731
        return ls.Problem(model, data=[(x[:24], y[:24])], batch_loss=batch_loss)

    def run(*, watch: bool) -> tuple[Any, Any]:
        torch.manual_seed(5)
        args = transformers.TrainingArguments(
            str(tmp_path / "out"), max_steps=5, per_device_train_batch_size=8, seed=1,
            report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=1,
        )  # fmt: skip
        trainer = transformers.Trainer(Wrapped(), args, train_dataset=Pairs())
        if watch:
            TrainerMonitor(trainer, probe, every=2, study=tmp_path / "s.db")
        trainer.train()
        return trainer.model.state_dict(), trainer.state.log_history

    bare, _ = run(watch=False)
    watched, history = run(watch=True)
    assert_same(dict(bare), dict(watched))
    logged = [entry for entry in history if "landscape/preconditioned eigs/λ1" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]  # AdamW has no moments at 0
    assert "landscape/preconditioned eigs/λ1/edge" in logged[-1]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_language_model_is_watched_as_the_trainer_trains_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from landscape.callbacks import TrainerMonitor

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    ids = torch.randint(20, (24, 10))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    args = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=4, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(transformers.GPT2LMHeadModel(config), args, train_dataset=rows)
    batch = {"input_ids": ids[:8], "labels": ids[:8]}
    TrainerMonitor(trainer, lambda model: ls.Problem.from_transformers(model, [batch]), every=2)
    trainer.train()
    _, last = [e for e in trainer.state.log_history if "landscape/loss/loss" in e]
    with torch.no_grad():
        own = float(trainer.model.eval()(**batch).loss)
    assert last["landscape/loss/loss"] == pytest.approx(own, rel=0.05)  # a step later
    assert last["landscape/preconditioned eigs/λ1"] > 0


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lightning_ends_in_the_same_bits_and_logs(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from landscape.callbacks import LightningMonitor

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss = F.cross_entropy(self.net(batch["x"]), batch["labels"])
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def probe(module: Any) -> ls.Problem:
        x, y = data()
        return ls.Problem.from_lightning(module, [{"x": x[:24], "labels": y[:24]}])

    norms = []

    class Norm(lightning.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            gradients = [p.grad.reshape(-1) for p in pl_module.parameters()]
            norms.append(float(torch.cat(gradients).norm()))

    def run(*callbacks: Any, **options: Any) -> tuple[Any, Any, Path]:
        torch.manual_seed(5)
        from lightning.pytorch.loggers import CSVLogger

        logger = CSVLogger(tmp_path, name="log")
        trainer = lightning.Trainer(
            max_steps=5, accelerator="cpu", logger=logger, callbacks=list(callbacks),
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            log_every_n_steps=1, **options,
        )  # fmt: skip
        module = Module()
        trainer.fit(module, torch.utils.data.DataLoader(Pairs(), batch_size=8))
        return (
            module.state_dict(),
            float(trainer.callback_metrics["train_loss"]),
            Path(logger.log_dir),
        )

    bare, loss, _ = run()
    monitor = LightningMonitor(probe, every=2, study=tmp_path / "s.db")
    watched, logged, folder = run(monitor)
    assert_same(dict(bare), dict(watched))
    assert logged == loss  # what a probe's step logs is none of the training's
    assert "landscape/eigs/λ1/edge" in (folder / "metrics.csv").read_text()

    # The update is that of the clipped gradient, which the optimizer takes.
    options = {"every": 9, "measures": ("update-sharpness",)}
    run(
        Norm(),
        LightningMonitor(probe, study=tmp_path / "clipped.db", **options),
        gradient_clip_val=0.01,
    )
    slopes = []
    for name in ("s.db", "clipped.db"):
        with Study(tmp_path / name, readonly=True) as study:
            slopes.append(study.load(study.entries("update-sharpness")[0].id).slope)
    assert slopes[1] == pytest.approx(slopes[0] * 0.01 / norms[0], rel=1e-3)
