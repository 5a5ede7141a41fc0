"""A training that is killed goes on where it was, and ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from landscape.cli.train import command
from landscape.errors import CheckpointError
from landscape.training import BASES, train


class KilledError(Exception):
    """Stands for the end of the process."""


class Steps(nn.Module):
    """Counts its calls in a buffer that no state dict holds, and adds as much noise."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(0.0), persistent=False)

    def forward(self, x):
        if self.training:
            self.count += 1
        return x + 0.001 * self.count


def make_data():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(25, 3, generator=g)
    return x, (x.sum(1) > 0).long()


def make_task(*, die_at: int = -1, data=make_data, hidden: int = 5, smoothing: float = 0.0):
    # Nobody can look into these, so that the loss is the same one whether and when it dies.
    calls, dies = SimpleQueue(), (call == die_at for call in count(1))

    def batch_loss(model, batch):
        calls.put(1)
        if next(dies):
            raise KilledError
        out = model(batch[0])
        return nn.functional.cross_entropy(out, batch[1], label_smoothing=smoothing)

    def model():
        body = (nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.Dropout(0.3))
        return nn.Sequential(*body, Steps(), nn.Linear(hidden, 2))

    return SimpleNamespace(
        model=model, data=lambda split: data(), batch_loss=batch_loss, calls=calls
    )


def subset(indices):
    return Subset(TensorDataset(*make_data()), indices)


def test_other_examples_of_the_same_data_are_other_data(tmp_path):
    for i, (before, after) in enumerate(
        [
            (lambda: subset([0, 1, 2, 3]), lambda: subset([3, 4, 5, 6])),
            (lambda: [make_data()], lambda: [(make_data()[0] + 1, make_data()[1])]),
            (lambda: Scaled(1.0), lambda: Scaled(2.0)),
        ]
    ):
        state = tmp_path / f"{i}.state"
        train(make_task(data=before), epochs=1, state=state)
        train(make_task(data=before), epochs=1, state=state)
        with pytest.raises(CheckpointError, match=r"not as before: the training data\. Use"):
            train(make_task(data=after), epochs=1, state=state)


class Scaled(Dataset):
    """Has a setting, and a counter that changes in use."""

    def __init__(self, scale):
        self.scale, self.reads = scale, 0

    def __len__(self):
        return 12

    def __getitem__(self, index):
        self.reads += 1
        x, y = make_data()
        return self.scale * x[index], y[index]


def shuffled():
    g = torch.Generator().manual_seed(8)
    return DataLoader(TensorDataset(*make_data()), batch_size=9, shuffle=True, generator=g)


def same(a, b) -> bool:
    states = a.model.state_dict(), b.model.state_dict()
    buffers = [dict(t.model.named_buffers()) for t in (a, b)]
    ours, theirs = ({**s, **m} for s, m in zip(states, buffers, strict=True))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


OPTIMIZERS = [
    {"optimizer": "sgd"},
    {"optimizer": "adam"},
    {"optimizer": "adamw"},
    {"optimizer": "sam"},
    {"optimizer": "sam", "base": "adam"},
    {"optimizer": "asam"},
    {"optimizer": "asam", "adaptive": "filterwise", "base": "adam"},
    {"optimizer": "gsam"},
    {"optimizer": "gsam", "base": "adamw"},
    {"optimizer": "usam"},
    {"optimizer": "usam", "base": "adam"},
    {"optimizer": "sam", "ascent_steps": 2},
    {"optimizer": "sam", "micro_batch": 4},
    {"optimizer": "asam", "micro_batch": 3, "ascent_steps": 2, "base": "adam"},
]


@pytest.mark.parametrize("data", [make_data, shuffled])
@pytest.mark.parametrize("settings", OPTIMIZERS, ids=lambda s: "-".join(map(str, s.values())))
def test_killed_anywhere_it_ends_with_the_same_bits(settings, data, tmp_path):
    settings = {"epochs": 4, "batch_size": 8, "seed": 2, **settings}
    task = make_task(data=data)
    whole = train(task, **settings)
    with_sam = settings["optimizer"] not in BASES
    assert whole.gradients == 3 * 4 * (1 + settings.get("ascent_steps", 1) * with_sam)
    calls = task.calls.qsize()
    for die_at in range(1, calls + 1, max(5, calls // 6)):
        state = tmp_path / f"{die_at}.state"
        with pytest.raises(KilledError):
            train(make_task(data=data, die_at=die_at), state=state, **settings)
        resumed = train(make_task(data=data), state=state, **settings)
        assert same(resumed, whole)
        assert [(e.epoch, e.train_loss, e.lr) for e in resumed.log] == [
            (e.epoch, e.train_loss, e.lr) for e in whole.log
        ]
        assert resumed.gradients == whole.gradients


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"optimizer": "asam"}, {"eta": 0.1}, r"settings: eta was 0.01 and is 0.1\. Use"),
        (
            {"optimizer": "asam"},
            {"adaptive": "filterwise"},
            r"adaptive was elementwise and is filt",
        ),
        (
            {"optimizer": "gsam"},
            {"gsam_alpha": 0.1},
            r"settings: gsam_alpha was 0.4 and is 0.1\. U",
        ),
        (
            {"optimizer": "sam"},
            {"micro_batch": 4},
            r"settings: micro_batch was the default and is 4",
        ),
        ({"optimizer": "sam"}, {"ascent_steps": 3}, r"ascent_steps was the default and is 3\. Use"),
        ({"optimizer": "sam", "micro_batch": 4}, {"micro_batch": 5}, r"micro_batch was 4 and is 5"),
        (
            {"optimizer": "sam"},
            {"optimizer": "asam"},
            r"optimizer was sam and is asam; rho was 0.2 and is 0.5; "
            r"adaptive was not used and is elementwise; eta was not used and is 0.01\. Use",
        ),
        (
            {"optimizer": "usam"},
            {"optimizer": "sgd"},
            r"rho was 0.2 and is not used\. .* --restart",
        ),
    ],
)
def test_what_differs_from_the_state_is_named(before, now, message, tmp_path):
    state = tmp_path / "run.state"
    train(make_task(), epochs=1, state=state, **before)
    kept = state.read_bytes()
    with pytest.raises(CheckpointError, match=message):
        train(make_task(), epochs=1, state=state, **{**before, **now})
    assert state.read_bytes() == kept


class Jittered(Dataset):
    """Moves its examples by numbers from a generator of its own."""

    def __init__(self) -> None:
        self.x, self.targets = make_data()
        self.generator = torch.Generator().manual_seed(5)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index):
        moved = self.x[index] + 0.1 * torch.randn(3, generator=self.generator)
        return moved, self.targets[index]


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_random_data_set_goes_on_where_it_was(noise, tmp_path):
    settings = {"epochs": 3, "batch_size": 8, "label_noise": noise}
    whole = train(make_task(data=Jittered), **settings)
    state = tmp_path / "run.state"
    with pytest.raises(KilledError):
        train(make_task(data=Jittered, die_at=5), state=state, **settings)
    assert same(train(make_task(data=Jittered), state=state, **settings), whole)


def test_a_state_does_not_change_the_training_and_a_finished_one_is_read_back(tmp_path):
    state = tmp_path / "deep" / "run.state"
    with_state = train(make_task(), epochs=3, state=state)
    assert same(with_state, train(make_task(), epochs=3))
    assert os.listdir(state.parent) == ["run.state"]
    # Not one batch is computed but that which tells the model: the next would raise.
    again = train(make_task(die_at=2), epochs=3, state=state)
    assert same(again, with_state)
    assert again.log == with_state.log


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ({}, {"lr": 0.1, "seed": 1}, r"lr was 0.05 and is 0.1; seed was 0 and is 1. Use the"),
        ({}, {"label_noise": 0.2}, r"label_noise was the default and is 0.2"),
        ({"hidden": 6}, {}, r"not as before: the initial weights\. Use"),
        ({"smoothing": 0.1}, {}, r"not as before: the loss\. Use"),
        (
            {"data": lambda: (make_data()[0] + 1, make_data()[1])},
            {},
            r"not as before: the training data\. Use",
        ),
        ({"data": lambda: [tuple(part[:10] for part in make_data())]}, {}, "the training data"),
        ({"data": lambda: subset([0, 1, 2])}, {}, "not as before: the training data"),
    ],
)
def test_the_state_of_another_training_is_refused(task, changes, message, tmp_path):
    state = tmp_path / "run.state"
    train(make_task(), epochs=2, state=state)
    before = state.read_bytes()
    with pytest.raises(CheckpointError, match=message):
        train(make_task(**task), epochs=2, state=state, **changes)
    assert state.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no state at all", None])
def test_what_is_no_state_is_refused(content, tmp_path):
    state = tmp_path / "run.state"
    if content is None:
        torch.save({"state_dict": {}}, state)
    else:
        state.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run\.state"):
        train(make_task(), epochs=2, state=state)


def test_checkpoints_on_the_way_are_those_of_the_training(tmp_path):
    settings = {"epochs": 4, "schedule": "constant"}
    file = tmp_path / "net.safetensors"
    train(make_task(), checkpoint=file, save_every=2, **settings)
    names = [f"net-epoch-{epoch}.safetensors" for epoch in (0, 2, 4)]
    assert sorted(os.listdir(tmp_path)) == names
    from safetensors.torch import load_file

    for name, epochs in zip(names, (0, 2, 4), strict=True):
        state = train(make_task(), epochs=epochs, schedule="constant").model.state_dict()
        got = load_file(tmp_path / name)
        assert all(torch.equal(got[key], state[key]) for key in state)


def test_checkpoints_on_the_way_say_their_epoch_and_survive_a_kill(tmp_path):
    whole, part = tmp_path / "a" / "net.pt", tmp_path / "b" / "net.pt"
    train(make_task(), epochs=12, checkpoint=whole, save_every=3)
    settings = {"epochs": 12, "checkpoint": part, "save_every": 3, "state": part.with_suffix(".s")}
    with pytest.raises(KilledError):
        train(make_task(die_at=8), **settings)
    train(make_task(), **settings)
    for epoch in ("00", "03", "06", "09", "12"):
        name = f"net-epoch-{epoch}.pt"
        assert (part.parent / name).read_bytes() == (whole.parent / name).read_bytes()
        assert torch.load(part.parent / name)["settings"]["epoch"] == int(epoch)


# -- the command ---------------------------------------------------------------------------------

ARGS = ("--problem", "digits-mlp", "--batch-size", "20", "--quiet", "--optimizer", "sam")
ARGS = (*ARGS, "--base", "adamw", "--label-noise", "0.2", "--split", "fit", "--epochs", "12")


def test_a_killed_process_is_taken_up_by_the_same_command(tmp_path):
    code = f"import landscape.cli as c, sys; sys.argv[1:] = ['train', *{ARGS!r}, '-o', 'net.pt']"
    process = subprocess.Popen([sys.executable, "-c", f"{code}; c.main()"], cwd=tmp_path)
    state = tmp_path / "net.pt.state"
    while process.poll() is None and epochs_in(state) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists()
    assert not (tmp_path / "net.pt").exists()
    assert 2 <= epochs_in(state) < 12
    for name in ("net.pt", "whole.pt"):
        ran = CliRunner().invoke(command, [*ARGS, "-o", str(tmp_path / name), "--json"])
        assert ran.exit_code == 0, ran.output
        assert json.loads(ran.stdout)["settings"]["label_noise"] == 0.2
    assert (tmp_path / "net.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert not list(tmp_path.glob("*.state"))


def epochs_in(state: Path) -> int:
    return len(torch.load(state)["log"]) if state.exists() else 0


def test_restart_forgets_what_was_interrupted(tmp_path):
    file = tmp_path / "net.pt"
    state = tmp_path / "net.pt.state"
    state.write_bytes(b"of another time")
    args = ["--problem", "digits-mlp", "--epochs", "1", "-q", "-o", str(file), "--save-every", "1"]
    assert isinstance(CliRunner().invoke(command, args).exception, CheckpointError)
    assert CliRunner().invoke(command, [*args, "--restart"]).exit_code == 0
    names = ["net-epoch-0.pt", "net-epoch-1.pt", "net.pt"]
    assert sorted(os.listdir(tmp_path)) == names
    ours, last = (torch.load(tmp_path / name)["state_dict"] for name in names[1:])
    assert all(torch.equal(ours[key], last[key]) for key in last)
