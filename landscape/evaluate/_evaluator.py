"""The loss of the whole data set, and its gradient, at any flat weight vector.

`Evaluator` is the one place that runs a user's model. It writes weights into the live model,
accumulates (sum, weight) in float64 and divides once, so that any batching gives the same numbers
to rounding, and it counts the passes that it makes.
"""

from __future__ import annotations

import math
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError, LossError, NonFiniteError, ProblemError, first_line
from landscape.evaluate._accumulators import (
    Displaced,
    GradientSum,
    LossSums,
    LossValue,
    Weights,
    inner_product,
    joined,
    metric_total,
    of_all,
)
from landscape.evaluate._derivatives import (
    INDEPENDENT,
    differentiate,
    noting_reentrant,
    require_gathered,
)
from landscape.evaluate._selftest import check_gradient
from landscape.evaluate._values import check_values, fitting, sample, usual_limit
from landscape.precision import float32_products
from landscape.problem import Problem
from landscape.problem._live import Session, is_plain, uninterruptible, unwrapped
from landscape.problem._shards import gathering, split_parameters
from landscape.problem.data import copied, describe, rebuilt
from landscape.problem.losses import BatchTerms
from landscape.processes import all_of, own, shards, sum_over_shards
from landscape.randomness import forked_rng, seed_all, whole_seed
from landscape.results import Cost

T = TypeVar("T")

# Entries of a gradient that are held at a time where it is not needed as a whole, or a third.
_GROUP = 2**24
_NEEDS_GRADIENTS = (
    "; values are computed without gradients: if the loss itself differentiates, by its inputs "
    "for example, let it do so under torch.enable_grad()"
)


class Evaluator:
    """Evaluates a problem over its whole data set; a context that leaves the model as it was.

    Several of them on one model take turns: each call puts its own weights, buffers and modes in
    place, and the last context that ends gives the model back. Weights are vectors of shape (n,),
    `Displaced`, or None: the origin; buffers are values for some of the model's buffers, by name,
    or None: the checkpoint's.
    """

    def __init__(
        self, problem: Problem, *, seed: int = 0, graph_bytes: float | None = None
    ) -> None:
        """Take a seed of the dropout masks, and a limit on what a pass keeps for its gradient."""
        if torch.is_inference_mode_enabled():
            msg = (
                "torch.inference_mode() is on, and a measurement needs derivatives: leave it first"
            )
            raise ProblemError(msg)
        self.problem = problem
        self.model = problem.model
        self.passes = {"forwards": 0, "gradients": 0, "hvps": 0}
        self._seed = whole_seed(seed)
        self._limit = int(min(usual_limit(problem), graph_bytes or math.inf))
        self._session: Session | None = None
        self._token = object()  # names whose turn it is, and holds nothing
        self._settings = ExitStack()
        self._origin: Tensor | None = None
        # Of the vector whose values are in the model, if it still lives; and its version.
        self._written: tuple[Callable[[], Tensor | Displaced | None], int] = (_nothing, 0)
        self._places: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
        self._buffers_written: Mapping[str, Tensor] | None = None
        self.restore_always = False
        self._divides = False  # batches among processes; not before their values were tested
        self._started = time.perf_counter()

    def __enter__(self) -> Evaluator:
        if self._session is not None:
            msg = "the evaluator has been entered already: make another one"
            raise ProblemError(msg)
        self._batches = self.problem.batches
        try:
            self._open()
            self._take_turn()
            check_values(self)
            if shards() is not None:
                with torch.enable_grad():
                    terms = self.on_batch(None, sample(self), 0, self.problem.loss)[0]
                require_gathered(terms.total, self._split_names)
                self._divides = True
        except BaseException:
            self._close()
            raise
        return self

    @uninterruptible
    def __exit__(self, *error: object) -> None:
        self._close()

    def __del__(self) -> None:
        """Give the model back where an interrupt came between entering and the body."""
        if getattr(self, "_session", None) is not None and not sys.is_finalizing():
            self._close()

    @uninterruptible
    def _open(self) -> None:
        unwrapped(self.model)
        self._session = Session.enter(self.model, self._token)
        self._settings.enter_context(_settings())

    @uninterruptible
    def _close(self) -> None:
        session = self._session
        try:
            self._settings.close()
        finally:
            if session is not None:
                try:
                    session.leave(self._token)
                except BaseException:
                    session.leave(self._token)
                    raise
                finally:
                    self._session = None

    @property
    def origin(self) -> Tensor:
        """The weights at the checkpoint, shape (n,); not to be written to."""
        if self._origin is None:  # the copy that is kept anyway, or a new one
            problem, snapshot = self.problem, Session.snapshot_of(self.model)
            copies = problem.flat_weights if shards() is None else {}
            if snapshot is not None and not problem.is_at_checkpoint and shards() is None:
                copies = snapshot.flat
            names, flat = copies.get((problem.dtype, problem.device), ((), None))
            same = flat is not None and names == problem.space.names
            self._origin = flat if same else problem.weights
            assert self._origin is not None
        return self._origin

    @property
    def cost(self) -> Cost:
        """What has been spent since the evaluator was made."""
        return Cost(**self.passes, seconds=time.perf_counter() - self._started)

    def loss(
        self,
        vector: Weights = None,
        *,
        buffers: Mapping[str, Tensor] | None = None,
        batches: Iterable[tuple[int, Any]] | None = None,
        keep: bool = False,
    ) -> LossValue:
        """Evaluate the loss and the metrics, by default of all data; one forward pass.

        The losses of the examples are in the result if they are to be kept.
        """
        self.write(vector, buffers)
        sums = LossSums(self.problem.loss.sums)
        self.passes["forwards"] += 1
        with torch.no_grad():
            for terms, metrics in self.over(vector, self.pieces(batches), buffers=buffers):
                sums.add(terms)
                sums.add_metrics(metrics)
        if batches is None:
            LossSums.share([sums], keep=keep)
        return sums.result(keep=keep)

    def gradient(self, vector: Weights = None) -> tuple[LossValue, Tensor]:
        """Evaluate the loss, without metrics, and its gradient, shape (n,); one gradient pass."""
        self.write(vector)
        check_gradient(self)
        sums = LossSums(self.problem.loss.sums)
        total = self.new_sum()
        self.passes["gradients"] += 1
        for i, piece in self.pieces():
            terms, gradients = self._differentiated(vector, piece, i)
            total.add(gradients)
            sums.add(terms)
        LossSums.share([sums])
        if all_of(total.is_empty):
            self.require_dependence()
        return sums.result(), total.result(sums.divisor, shared=True)

    def batch_gradient(self, vector: Weights, batch: Any, index: int) -> tuple[BatchTerms, Tensor]:
        """Evaluate the summed loss of one batch, and its gradient, shape (n,)."""
        parts, total = list[BatchTerms](), self.new_sum()
        for _, piece in self.pieces([(index, batch)]):
            terms, gradients = self._differentiated(vector, piece, index)
            total.add(gradients)
            parts.append(terms)
        return joined(parts), total.result()

    def batch_slope(
        self, vector: Weights, along: Callable[[int], Tensor], batch: Any, index: int
    ) -> tuple[BatchTerms, float]:
        """Evaluate the summed loss of one batch, and its slope along the tensors ``along(i)``."""
        # Of large models a part of the gradient is held at a time, for another backward pass each.
        ends = self.problem.space.groups(max(_GROUP, self.problem.space.n // 3))
        parts, slopes = list[BatchTerms](), list[Tensor]()
        for _, piece in self.pieces([(index, batch)]):
            with torch.enable_grad(), noting_reentrant() as reentrant:
                terms = self.terms(vector, piece, index)
            parts.append(terms)
            groups = [len(self._parameters)] if reentrant else ends
            for first, last in zip([0, *groups], groups, strict=False):
                if len(groups) == 1:
                    gradients = self._gradients(terms, reentrant=bool(reentrant))
                else:
                    tensors, again = self._parameters[first:last], last < groups[-1]
                    gradients = differentiate(terms.total, tensors, retain_graph=again)
                for i, gradient in enumerate(gradients, first):
                    if gradient is not None:
                        slopes.append(inner_product(gradient, along(i)))
        slope = float(torch.stack(slopes).sum()) if slopes else 0.0
        return joined(parts), sum_over_shards(slope)

    def pieces(self, batches: Iterable[tuple[int, Any]] | None = None) -> Iterator[tuple[int, Any]]:
        """Cut numbered batches, by default all data, where a pass over them would not fit.

        Of all data those that are this process's to evaluate.
        """
        whole = self._batches
        numbered = own(enumerate(whole), whole.n_batches) if batches is None else batches
        return fitting(self.problem, numbered, self._limit)

    def new_sum(self) -> GradientSum:
        """Return a sum of gradients or products over batches, at zero."""
        return GradientSum(self.problem.space, self.like)

    @property
    def like(self) -> Tensor:
        """An empty tensor with the type and device of the weights in place."""
        return torch.empty(0, dtype=self._dtype, device=self.problem.device)

    @property
    def moves(self) -> int:
        """How often the model went to another type or device, which no graph survives."""
        return 0 if self._session is None else self._session.moves

    @property
    def divisible(self) -> bool:
        """Whether batches can be cut: loss and weight are sums over the parts."""
        if self.problem.mode != "eval" or not self.problem.trials.additive:
            return False
        return self.problem.batching.can_split(next(iter(self._batches)))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The live parameters that are explored, in the order of the space."""
        return self._parameters

    def result(
        self, model: nn.Module, batch: Any
    ) -> tuple[BatchTerms, dict[str, tuple[Tensor, int]]]:
        """Evaluate the loss and the metrics of one batch, inside of `over` or `on_batch`."""
        terms, arguments = self._terms(model, batch)
        if not self.problem.metrics:
            return terms, {}
        size = self.problem.batching.size(batch)
        return terms, {
            name: metric_total(name, metric(*rebuilt(arguments)), size)
            for name, metric in self.problem.metrics.items()
        }

    def terms(self, vector: Weights, batch: Any, index: int) -> BatchTerms:
        """Evaluate one batch; the result is differentiable by `parameters`."""
        return self.on_batch(vector, batch, index, self._terms)[0]

    def _terms(self, model: nn.Module, batch: Any) -> tuple[BatchTerms, Any]:
        """Evaluate the loss of one batch, where parameters are split by all processes together."""
        here, problem = shards(), self.problem
        if here is None:
            return problem.loss(model, batch)
        size, part = problem.batching.known_size(batch) or 1, batch
        first, last = here.span(size).start, here.span(size).stop
        divides = self._divides and size >= here.n and not problem.metrics
        if divides and self.divisible and problem.batching.can_split(batch):
            part = problem.batching.part(batch, first, last)
        terms, arguments = problem.loss(model, part)
        if part is not batch:
            return of_all(terms, before=first, after=size - last), arguments
        return of_all(terms, counts=here.is_first), arguments

    def on_batch(
        self,
        vector: Weights,
        batch: Any,
        index: int,
        body: Callable[[nn.Module, Any], T],
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> T:
        """Run a function of the model and a batch with weights in place."""
        self.write(vector, buffers)
        if self.problem.mode == "train":
            # Each batch has masks of its own, the same at all weights.
            key = np.random.SeedSequence((self._seed % 2**64, index)).generate_state(1)
            seed_all(int(key[0]))
        # The user's code may take a batch apart, and some of it writes to the tensors.
        rebuild = copied if self.problem.trials.writes_inputs else rebuilt
        try:
            return body(self.model, rebuild(batch))
        except LandscapeError as error:
            msg = f"batch {index} of the {self.problem.split} data: {error}"
            raise type(error)(msg) from error
        except Exception as error:
            first = first_line(error)
            hint = _NEEDS_GRADIENTS if "does not require grad" in first else ""
            msg = (
                f"batch {index} of the {self.problem.split} data ({describe(batch)}): the model, "
                f"the loss or a metric failed with {type(error).__name__}: {first}{hint}"
            )
            raise ProblemError(msg) from error

    def over(
        self,
        vector: Weights,
        batches: Iterable[tuple[int, Any]],
        body: Callable[[nn.Module, Any], Any] | None = None,
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Any]:
        """Run a function of the model and a batch, by default `result`, on numbered batches."""
        for i, batch in batches:
            yield self.on_batch(vector, batch, i, body or self.result, buffers=buffers)

    def write(self, vector: Weights = None, buffers: Mapping[str, Tensor] | None = None) -> None:
        """Put weights, and values for some buffers, into the live model, where they are not yet."""
        session = self._session
        if session is None:
            msg = "the evaluator has not been entered: use it in a with statement"
            raise ProblemError(msg)
        if session.turn is not self._token:
            session.check_thread()
            self._take_turn()
        vector = self.origin if vector is None else vector
        touched = self.restore_always or self._is_touched()
        version = 0 if isinstance(vector, Displaced) or vector.is_inference() else vector._version
        if touched or self._written[0]() is not vector or self._written[1] != version:
            for parameter, slot, place in zip(self._parameters, self._slots, self._at, strict=True):
                if parameter.data_ptr() != place:
                    parameter.data = slot
            with torch.no_grad():
                if isinstance(vector, Displaced):
                    vector.write(self._slots)
                else:
                    views = self.problem.space.views(vector.detach())
                    torch._foreach_copy_(self._slots, views)
            self._written = weakref.ref(vector), version
        if touched or buffers is not self._buffers_written:
            self._write_others(buffers)

    def _is_touched(self) -> bool:
        """Tell whether a pass has written to parameters or buffers, or has replaced one."""
        return (
            self._versions != [t._version for t in self._watched]
            or any(holder.get(key) is not buffer for holder, key, buffer in self._places)
            or self._at != [p.data_ptr() for p in self._parameters]
        )

    @torch.no_grad()
    def _write_others(self, buffers: Mapping[str, Tensor] | None) -> None:
        """Write frozen parameters and buffers, some of these with values that are given."""
        for holder, key, buffer in self._places:
            holder[key] = buffer
        values = self._others | dict(buffers or {})
        names = [name for name in self._other_slots if name in values]
        if names:
            torch._foreach_copy_([self._other_slots[n] for n in names], [values[n] for n in names])
        self._buffers_written = buffers
        self._versions = [t._version for t in self._watched]

    def _take_turn(self) -> None:
        """Put the checkpoint, the mode, the type and the device of this problem in place."""
        session, problem = self._session, self.problem
        assert session is not None
        if session.turn is not None:
            session.put_back()
        session.turn = self._token
        session.deliver()
        self.install(problem.dtype)

    def move_to(self, dtype: torch.dtype) -> None:
        """Start from the owner's model again, in a type; weights are vectors of that type then."""
        assert self._session is not None
        self._session.put_back()
        self._session.turn = self._token
        self.install(dtype)

    @torch.no_grad()
    def install(self, dtype: torch.dtype) -> None:
        """Move the model to a type and the problem's device, and write the checkpoint into it."""
        problem, model = self.problem, self.model
        assert self._session is not None
        self._dtype = dtype
        self._set_mode()
        chosen, state = set(problem.space.names), problem.state()
        split = shards() is not None
        if split:
            state = split_parameters(model, state, dtype, problem.device)
            self._session.moves += 1
        named = dict(model.named_parameters())
        tensors = named | dict(model.named_buffers())
        plain = {id(t) for t in tensors.values() if is_plain(t)}
        self._split_names = {id(p): name for name, p in named.items()} if split else {}
        for name, tensor in tensors.items():
            if split and name in named:
                continue
            self._place(tensor, state.get(name, tensor.detach()))
        for name, parameter in named.items():
            parameter.grad = None
            # As its owner would freeze and unfreeze it.
            if parameter.is_leaf and parameter.requires_grad != (name in chosen):
                parameter.requires_grad_(name in chosen)
        problem.restore_extra_state()
        _write_out_embeddings(model)
        self._parameters = [named[name] for name in problem.space.names]
        self._slots = [p.data for p in self._parameters]
        self._at = [p.data_ptr() for p in self._parameters]
        others = {n: t for n, t in tensors.items() if n not in chosen and id(t) in plain}
        self._other_slots = {name: tensor.data for name, tensor in others.items()}
        self._others = {name: state.get(name, t.detach()).to(t) for name, t in others.items()}
        self._places = [
            (part._buffers, key, buffer)
            for part in model.modules()
            if isinstance(part._buffers, dict)
            for key, buffer in part._buffers.items()
            if buffer is not None
        ]
        self._watched = [*self._parameters, *others.values()]
        self._written = (_nothing, 0)
        self._write_others(None)
        # What is written through .data leaves no trace in the version counters.
        self.restore_always = problem.mode == "train" or problem.trials.writes_unseen

    def _set_mode(self) -> None:
        """Set train or eval mode, without what some models do to their weights on that occasion."""
        training = self.problem.mode == "train"
        if training:  # by the model's own method, which may keep some layers in eval mode
            before = [p._version for p in self.model.parameters()]
            self.model.train()
            if before == [p._version for p in self.model.parameters()]:
                return
            assert self._session is not None
            self._session.put_back()
            self._session.turn = self._token
        for part in self.model.modules():
            part.training = training

    def _place(self, tensor: Tensor, value: Tensor) -> None:
        """Give a tensor its type and device, in its own memory if that will do."""
        assert self._session is not None
        alias = self._session.snapshot.alias_of(tensor)
        wanted = self._dtype if value.is_floating_point() else value.dtype
        if (alias.dtype, alias.device) == (wanted, self.problem.device):
            if tensor.dtype != wanted or tensor.device != alias.device:
                tensor.data = alias
                self._session.moves += 1
        else:
            tensor.data = value.to(self.problem.device, wanted, copy=True)
            self._session.moves += 1

    def is_written(self) -> bool:
        """Tell whether weights or buffers in the model are not those that were put there."""
        vector = self._written[0]()
        if not isinstance(vector, Tensor):
            return False
        pairs = list(zip(self._slots, self.problem.space.views(vector.detach()), strict=True))
        pairs += [(slot, self._others[name]) for name, slot in self._other_slots.items()]
        return not all(_same_bits(slot, value) for slot, value in pairs)

    def _differentiated(
        self, vector: Weights, batch: Any, index: int
    ) -> tuple[BatchTerms, list[Tensor | None]]:
        with torch.enable_grad(), noting_reentrant() as reentrant:
            terms = self.terms(vector, batch, index)
        return terms, self._gradients(terms, reentrant=bool(reentrant))

    def _gradients(self, terms: BatchTerms, *, reentrant: bool) -> list[Tensor | None]:
        if not reentrant:
            return differentiate(terms.total, self._parameters)
        with torch.enable_grad():  # torch.autograd.grad passes over these parameters
            terms.total.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self._parameters]
        for p in self.model.parameters():
            p.grad = None
        return gradients

    def require_dependence(self) -> None:
        """Refuse a loss that no parameter of the model moves; idle parts have slope zero."""
        owned = Session.snapshot_of(self.model)
        assert owned is not None
        split = shards() is not None
        others = [p for p in self.model.parameters() if split or owned.requires_grad(p)]
        flags = [p.requires_grad for p in others]
        try:
            for p in others:
                p.requires_grad_(True)
            with torch.enable_grad():
                terms = self.terms(None, next(iter(self._batches)), 0)
                gradients = differentiate(terms.total, others)
        finally:
            for p, flag in zip(others, flags, strict=True):
                p.requires_grad_(flag)
        if all(gradient is None for gradient in gradients):
            raise LossError(INDEPENDENT)


def _nothing() -> None:
    """Stand for a reference to a tensor that is gone."""


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other.to(one)) or torch.equal(one.nan_to_num(), other.nan_to_num())


@contextmanager
def _settings() -> Iterator[None]:
    """Compute in full precision, and one function, with gradients and without."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(forked_rng())
        stack.enter_context(float32_products(tf32=False))
        stack.enter_context(gathering())
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        # An autocast context around the call would go on with its casts of other weights.
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        # Without gradients the fused encoder layer puts zeros at padded places.
        torch.backends.mha.set_fastpath_enabled(False)
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            # Code compiled by its owner has no second derivative; the plain code has.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _write_out_embeddings(model: nn.Module) -> None:
    """Let embeddings have dense gradients, and renormalise a copy of their rows differentiably."""
    holders = [id(p) for m in model.modules() for p in m._parameters.values() if p is not None]
    for name, part in model.named_modules():
        if not isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
            continue
        part.sparse = False
        if part.max_norm is None or "forward" in vars(part):
            continue
        if holders.count(id(part.weight)) > 1:
            msg = (
                f"{name} has max_norm and shares its weight with another layer, which sees rows "
                "renormalised or not by the order of the calls: renormalise the weight once, and "
                "set max_norm to None to measure"
            )
            raise ProblemError(msg)
        _renormalise_in_forward(part)


def _renormalise_in_forward(part: nn.Embedding | nn.EmbeddingBag) -> None:
    forward, limit = part.forward, part.max_norm
    assert limit is not None

    def renormalising(*args: Any, **kwargs: Any) -> Any:
        weight = part.weight
        norm = partial(torch.linalg.vector_norm, ord=part.norm_type, dim=1, keepdim=True)
        with torch.no_grad():
            over = norm(weight) > limit
        scale = torch.where(over, limit / (norm(torch.where(over, weight, 1.0)) + 1e-7), 1.0)
        holder: dict[str, Any] = part._parameters
        holder["weight"] = weight * scale
        part.max_norm = None
        try:
            return forward(*args, **kwargs)
        finally:
            holder["weight"] = weight
            part.max_norm = limit

    vars(part)["forward"] = renormalising


def require_finite(value: float, problem: Problem) -> None:
    """Refuse to go on from a loss that is not finite."""
    if not math.isfinite(value):
        msg = (
            f"the loss of {problem.name} on the {problem.split} data is {value}: nothing can be "
            "measured from there; check the data for NaN, or choose another checkpoint"
        )
        raise NonFiniteError(msg)
