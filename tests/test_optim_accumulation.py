"""SAM where gradients are accumulated: all micro-batches count at w and at w + ε, or it refuses."""

from __future__ import annotations

import textwrap
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape.errors import LandscapeError
from landscape.optim import SAM

ADDED = "added its gradients to those that were there before step"
TWO = "accelerate accumulates 2 micro-batches, and the closure went over 1"


def data(n=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=generator), torch.randint(3, (n,), generator=generator)


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def sam(model, **settings):
    return SAM(model.parameters(), torch.optim.SGD, 0.2, lr=0.1, momentum=0.9, **settings)


def micro_batches(k=2):
    x, y = data()
    return list(zip(x.chunk(k), y.chunk(k), strict=True))


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def expected(n_steps):
    """SAM on the whole batch, by hand."""
    model, (x, y) = net(), data()
    optimizer = sam(model)
    for _ in range(n_steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.first_step(zero_grad=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.second_step()
    return flat(model)


def assert_as_expected(model, n_steps):
    torch.testing.assert_close(flat(model), expected(n_steps), rtol=1e-5, atol=1e-6)


def add_gradients(model, batches, backward=torch.Tensor.backward, share=0.5):
    for x, y in batches:
        backward(F.cross_entropy(model(x), y) * share)


# -- a plain loop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["accumulated", "two losses left", "scaled in place"])
def test_a_closure_that_adds_to_other_gradients_is_refused_and_nothing_moves(how):
    model, (first, last) = net(), micro_batches()
    optimizer, before = sam(model), flat(model)
    add_gradients(model, [first] if how == "accumulated" else [first, first])

    def closure():
        if how == "scaled in place":
            for p in model.parameters():
                p.grad.mul_(0.5)
        add_gradients(model, [last])

    with pytest.raises(LandscapeError, match=ADDED):
        optimizer.step(closure)
    assert torch.equal(flat(model), before)
    optimizer.zero_grad()
    optimizer.step(closure if how == "accumulated" else lambda: add_gradients(model, [last]))


def clear(model, how):
    if how == "to None":
        model.zero_grad()
    elif how == "to zero":
        model.zero_grad(set_to_none=False)
    elif how == "zero_":
        for p in model.parameters():
            if p.grad is not None:
                p.grad.zero_()
    elif how == "by hand":
        for p in model.parameters():
            p.grad = None


@pytest.mark.parametrize("how", ["to None", "to zero", "zero_", "by hand"])
def test_a_closure_over_all_micro_batches_is_sam_however_it_clears(how):
    model = net()
    optimizer = sam(model)

    def closure():
        clear(model, how)
        add_gradients(model, micro_batches())

    for _ in range(3):
        optimizer.step(closure)
    assert_as_expected(model, 3)


@pytest.mark.parametrize("how", ["to None", "to zero"])
def test_gradients_cleared_before_the_step_need_no_clearing_in_the_closure(how):
    model = net()
    optimizer = sam(model)
    for _ in range(3):
        clear(model, how)
        optimizer.step(lambda: add_gradients(model, micro_batches()))
    assert_as_expected(model, 3)


def test_gradients_that_are_assigned_and_not_added_need_no_clearing():
    model, (x, y) = net(), data()
    optimizer, params = sam(model), list(model.parameters())

    def closure():
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), params)
        for p, g in zip(params, gradients, strict=True):
            p.grad = g

    for _ in range(3):
        optimizer.step(closure)
    assert_as_expected(model, 3)


@pytest.mark.parametrize("left", [0.0, 1.0])
def test_a_parameter_that_the_closure_does_not_reach_keeps_no_gradient_of_another_loss(left):
    model, idle = net(), nn.Parameter(torch.ones(2))
    optimizer = SAM([*model.parameters(), idle], torch.optim.SGD, 0.2, lr=0.1, momentum=0.9)
    idle.grad = torch.full((2,), left)

    def step():
        optimizer.step(lambda: add_gradients(model, micro_batches()))

    if left:
        with pytest.raises(LandscapeError, match=ADDED):
            step()
        return
    step()
    assert_as_expected(model, 1)


def test_sparse_gradients_that_are_added_are_refused_as_such():
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = SAM(embedding.parameters(), torch.optim.SGD, lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(LandscapeError, match=ADDED):
        optimizer.step(lambda: embedding(torch.tensor([2])).sum().backward())


def test_no_hook_stays_on_a_parameter():
    model = net()
    optimizer = sam(model)
    add_gradients(model, micro_batches())
    with pytest.raises(LandscapeError, match=ADDED):
        optimizer.step(lambda: add_gradients(model, micro_batches()))
    for p in model.parameters():
        assert not p._backward_hooks
        assert not p._post_accumulate_grad_hooks


@pytest.mark.parametrize("clears", [True, False])
def test_a_closure_after_first_step_makes_the_gradients_at_the_perturbed_weights(clears):
    model, (x, y) = net(), data()
    optimizer = sam(model)

    def closure():
        if clears:
            optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.zero_grad()
        closure()
        optimizer.first_step(zero_grad=not clears)
        assert optimizer.step(closure) > 0
    assert_as_expected(model, 3)


# -- Lightning -------------------------------------------------------------------------------------


@pytest.fixture
def trainer():
    lightning = pytest.importorskip("lightning.pytorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def make(**settings):
            quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
            return lightning.Trainer(
                accelerator="cpu", max_epochs=1, enable_progress_bar=False, **quiet, **settings
            )

        yield make


def module(*, manual=""):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()
            self.automatic_optimization = not manual

        def training_step(self, batch, index):
            if not manual:
                return F.cross_entropy(self.net(batch[0]), batch[1])
            optimizer, schedule = self.optimizers(), self.lr_schedulers()
            parts = list(zip(batch[0].chunk(2), batch[1].chunk(2), strict=True))

            def closure():
                optimizer.zero_grad()
                add_gradients(self.net, parts, self.manual_backward)

            if manual == "closure":
                optimizer.step(closure)
            else:
                closure()
                optimizer.first_step(zero_grad=True)
                add_gradients(self.net, parts, self.manual_backward)
                optimizer.second_step() if manual == "second_step" else optimizer.step()
            schedule.step()
            return None

        def configure_optimizers(self):
            optimizer = sam(self.net)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=100)
            return [optimizer], [schedule]

    return Module()


def loader(size, n=1):
    x, y = data()
    return torch.utils.data.DataLoader(list(zip(x, y, strict=True)) * n, batch_size=size)


def test_lightning_accumulating_is_refused_by_name(trainer):
    with pytest.raises(LandscapeError, match=rf"(?s){ADDED}.*accumulate_grad_batches"):
        trainer(accumulate_grad_batches=2).fit(module(), loader(4))


def test_lightning_without_accumulation_is_sam(trainer):
    model = module()
    trainer().fit(model, loader(8, n=3))
    assert_as_expected(model.net, 3)


@pytest.mark.parametrize("manual", ["closure", "second_step", "step"])
def test_lightnings_manual_optimization_is_sam_and_counts_its_steps(trainer, manual):
    model, fit = module(manual=manual), trainer()
    fit.fit(model, loader(8, n=3))
    assert_as_expected(model.net, 3)
    assert fit.global_step == 3
    assert model.lr_schedulers().last_epoch == 3


def test_fabric_counts_and_steps(trainer):
    lightning = pytest.importorskip("lightning")
    fabric = lightning.Fabric(accelerator="cpu")
    model = net()
    wrapped, optimizer = fabric.setup(model, sam(model))
    for _ in range(3):
        optimizer.zero_grad()
        add_gradients(wrapped, micro_batches(), fabric.backward)
        optimizer.first_step(zero_grad=True)
        add_gradients(wrapped, micro_batches(), fabric.backward)
        optimizer.step()
    assert_as_expected(model, 3)


# -- accelerate ------------------------------------------------------------------------------------


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip("accelerate")
    states = pytest.importorskip("accelerate.state")

    def make(steps):
        return accelerate.Accelerator(cpu=True, gradient_accumulation_steps=steps)

    yield make
    for state in (states.AcceleratorState, states.GradientState, states.PartialState):
        state._reset_state()


@pytest.mark.parametrize("where", ["in the closure", "before the step, cleared", "before the step"])
def test_accelerates_accumulation_is_refused_by_name(accelerator, where):
    accelerator = accelerator(2)
    model = net()
    prepared, optimizer = accelerator.prepare(model, sam(model))
    before = flat(model)

    def run():
        for x, y in micro_batches():
            with accelerator.accumulate(prepared):

                def closure(x=x, y=y):
                    if where != "before the step":
                        optimizer.zero_grad()
                    accelerator.backward(F.cross_entropy(prepared(x), y))

                if where != "in the closure":
                    accelerator.backward(F.cross_entropy(prepared(x), y))
                optimizer.step(closure)
                optimizer.zero_grad()

    with pytest.raises(LandscapeError, match=ADDED if where == "before the step" else TWO):
        run()
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("how", ["closure", "closure that counts", "by hand"])
def test_accelerate_over_all_micro_batches_is_sam_and_its_scheduler_counts(accelerator, how):
    accelerator = accelerator(2 if how == "closure that counts" else 1)
    model = net()
    inner = sam(model)
    schedule = torch.optim.lr_scheduler.StepLR(inner, step_size=100)
    prepared, optimizer, schedule = accelerator.prepare(model, inner, schedule)
    share = 1.0 if how == "closure that counts" else 0.5  # accelerate divides by its 2 steps

    def gradients():
        optimizer.zero_grad()
        add_gradients(prepared, micro_batches(), accelerator.backward, share)

    for _ in range(3):
        if how == "by hand":
            gradients()
            optimizer.optimizer.first_step(zero_grad=True)
            gradients()
            optimizer.step()
        else:
            optimizer.step(gradients)
        assert not optimizer.step_was_skipped
        schedule.step()
    assert_as_expected(model, 3)
    assert schedule.scheduler.last_epoch == 3


def test_a_plain_loop_is_not_taken_for_one_of_accelerate(accelerator):
    accelerator(2)
    model, (x, y) = net(), data()
    optimizer = sam(model)

    def closure():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()

    optimizer.step(closure)
    assert_as_expected(model, 1)


def test_the_closure_that_the_message_shows_is_sam():
    model, (x, y) = net(), data()
    optimizer, add = sam(model), lambda: F.cross_entropy(model(x), y).backward()
    add()
    with pytest.raises(LandscapeError, match=ADDED) as error:
        optimizer.step(add)
    shown = str(error.value).split(":\n", 1)[1].split("or accumulate")[0]
    names = {
        "optimizer": optimizer,
        "micro_batches": micro_batches(),
        "loss_of": lambda batch: F.cross_entropy(model(batch[0]), batch[1]),
    }
    exec(textwrap.dedent(shown), names)
    for _ in range(3):
        loss = optimizer.step(names["closure"])
    assert_as_expected(model, 3)
    assert 0 < float(loss) < 2
