from __future__ import annotations

import argparse
import copyreg
import enum
import http
import importlib
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from landscape.errors import CheckpointError, CheckpointWarning
from landscape.problem import Problem
from landscape.problem._checkpoint import _USUAL_KEYS, load_weights, read_checkpoint

NOBODY = 65534


class Net(nn.Module):
    """A layer, a BatchNorm with its buffers, and a head; module level, so that it pickles."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.fc1(x)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 3, bias=False)
        self.head.weight = self.embed.weight


State = dict[str, Tensor]


def weights(seed: int = 1) -> State:
    """A state dict of `Net` with nothing at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(1, 99, t.shape, generator=generator)
        if t.dtype == torch.int64
        else torch.randn(t.shape, generator=generator)
        for name, t in Net().state_dict().items()
    }


def holds(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[name], tensor.to(own[name].dtype)) for name, tensor in state.items())


def loaded(source: Any, **options: Any) -> Net:
    model = Net()
    load_weights(model, source, **options)
    return model


# Formats


def save_zip(state: Any, file: Path) -> None:
    torch.save(state, file)


def save_legacy(state: Any, file: Path) -> None:
    torch.save(state, file, _use_new_zipfile_serialization=False)


def save_safetensors(state: Any, file: Path) -> None:
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, file)


FORMATS = [save_zip, save_legacy, save_safetensors]


@pytest.mark.parametrize("save", FORMATS)
@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.ckpt", "a.bin", "a.safetensors", "a"])
def test_every_format_under_every_name(
    save: Callable[..., None], name: str, tmp_path: Path
) -> None:
    save(weights(), tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        assert holds(loaded(path), weights())


@pytest.mark.parametrize("save", FORMATS)
def test_the_hash_of_a_checkpoint_is_of_its_values(
    save: Callable[..., None], tmp_path: Path
) -> None:
    problem = Problem(Net(), nn.MSELoss(), (torch.zeros(2, 3), torch.zeros(2, 2)))
    save(weights(), tmp_path / "a.pt")
    assert problem.at(tmp_path / "a.pt").checkpoint_hash == problem.at(weights()).checkpoint_hash
    for name in weights():
        other = weights()
        other[name] = other[name] + 1
        assert problem.at(other).checkpoint_hash != problem.at(weights()).checkpoint_hash


@pytest.mark.parametrize("save", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_are_read_as_they_are_and_the_model_keeps_its_dtype(
    save: Callable[..., None], dtype: torch.dtype, tmp_path: Path
) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights().items()}
    save(state, tmp_path / "a.pt")
    model = loaded(tmp_path / "a.pt")
    assert holds(model, state)
    assert model.fc1.weight.dtype == torch.float32


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_views_and_transposed_tensors(save: Callable[..., None], tmp_path: Path) -> None:
    state = weights()
    state["fc1.weight"] = state["fc1.weight"].T.contiguous().T
    state["head.weight"] = torch.randn(9, 9)[2:4, 1:9:2]
    assert not any(state[name].is_contiguous() for name in ("fc1.weight", "head.weight"))
    save(state, tmp_path / "a.pt")
    assert holds(loaded(tmp_path / "a.pt"), state)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_a_file_saved_on_a_gpu(
    save: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gpu.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        save(weights(), file)
    assert b"cuda:0" in file.read_bytes()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
            torch.load(file, weights_only=True)  # so the file does ask for a GPU

    model = loaded(file)

    assert holds(model, weights())
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_parameters_and_modules_as_sources() -> None:
    other = loaded(weights())
    assert holds(loaded(other), weights())
    assert holds(loaded(dict(other.named_parameters()) | dict(other.named_buffers())), weights())


def test_the_model_does_not_share_memory_with_what_was_loaded() -> None:
    state = weights()
    model = loaded(state)
    state["fc1.weight"].zero_()
    assert holds(model, weights())


# Where the weights stand in the file


@pytest.mark.parametrize("key", [*_USUAL_KEYS, "generator_of_last_week"])
@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_nested_under_a_key(key: str, save: Callable[..., None], tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1, momentum=0.9).state_dict()
    everything = {"epoch": 3, "loss": 0.25, "optimizer": optimizer, key: OrderedDict(weights())}
    save(everything, tmp_path / "a.pt")
    assert holds(loaded(tmp_path / "a.pt"), weights())


def test_nested_deeper_with_loose_tensors_beside_it() -> None:
    tree = {"step": torch.tensor(3), "trainer": {"best": {"state_dict": weights()}}}
    assert holds(loaded(tree), weights())


def test_a_module_in_the_tree() -> None:
    assert holds(loaded({"model": loaded(weights()), "epoch": 1}), weights())


def test_the_averaged_weights_are_chosen_by_key(tmp_path: Path) -> None:
    torch.save(
        {"model": weights(1), "ema": {"module": weights(2)}, "old": weights(3)}, tmp_path / "a"
    )
    taken = r"several state dicts .*: 'model' is taken, not ema\.module, old; choose by key="
    with pytest.warns(CheckpointWarning, match=taken):
        assert holds(loaded(tmp_path / "a"), weights(1))
    assert holds(loaded(tmp_path / "a", key="model"), weights(1))
    assert holds(loaded(tmp_path / "a", key="ema"), weights(2))
    assert holds(loaded(tmp_path / "a", key="ema.module"), weights(2))
    assert holds(loaded(tmp_path / "a", key="old"), weights(3))


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    torch.save({"model": weights(1), "ema": weights(2)}, tmp_path / "a.pt")
    match = r"a\.pt has no state dict 'emma' \(nearest: ema\); it has: model, ema"
    with pytest.raises(CheckpointError, match=match):
        loaded(tmp_path / "a.pt", key="emma")


def test_the_one_that_fits_is_found_among_others() -> None:
    other = nn.Linear(3, 3).state_dict()
    assert holds(loaded({"state_dict": other, "teacher": weights(), "model": other}), weights())


def test_two_that_fit_alike_are_not_chosen_between() -> None:
    tree = {"student": weights(1), "teacher": weights(2)}
    match = r"several state dicts that fit the model alike: student, teacher; .*key='student'"
    with pytest.raises(CheckpointError, match=match):
        loaded(tree)
    assert holds(loaded(tree, key="teacher"), weights(2))


# What wrappers do to the names


PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "module.model.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers(prefix: str) -> None:
    assert holds(loaded({prefix + name: t for name, t in weights().items()}), weights())


def test_a_part_that_was_compiled() -> None:
    state = {name.replace("fc1.", "fc1._orig_mod."): t for name, t in weights().items()}
    assert set(state) != set(weights())
    assert holds(loaded(state), weights())


def test_a_prefix_that_the_model_has_itself() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.model = nn.Linear(2, 2), nn.Linear(2, 2)

    state = {k: torch.randn_like(v) for k, v in Outer().state_dict().items()}
    for prefix in ("", "module."):
        model = Outer()
        load_weights(model, {prefix + name: tensor for name, tensor in state.items()})
        assert holds(model, state)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_checkpoints_of_wrappers_and_models_that_are_wrapped(wrap: Callable[..., Any]) -> None:
    wrapped = wrap(loaded(weights()))
    assert holds(loaded(wrapped.state_dict()), weights())
    fresh = wrap(Net())
    load_weights(fresh, weights())
    assert holds(fresh.module, weights())


def test_a_compiled_model_takes_a_plain_checkpoint() -> None:
    model = torch.compile(Net(), backend="eager")
    load_weights(model, weights())
    assert holds(model._orig_mod, weights())


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("name", ["model.fc1.weight", "_orig_mod.fc1.weight"])
@pytest.mark.parametrize("first", [True, False])
def test_the_exact_name_wins_over_a_wrapped_one(name: str, first: bool) -> None:
    wrapped = {name: torch.zeros(4, 3)}
    state = wrapped | weights() if first else weights() | wrapped
    if name.startswith("_"):
        assert holds(loaded(state), weights())
    else:
        with pytest.warns(CheckpointWarning, match=rf"1 tensors .* left out: {name}$"):
            assert holds(loaded(state), weights())


@given(
    prefixes=st.lists(
        st.sampled_from(["module", "_orig_mod", "model", "net", "my_thing", "0"]), max_size=4
    )
)
def test_any_prefixes_come_off(prefixes: list[str]) -> None:
    assert holds(loaded(under("".join(f"{p}." for p in prefixes), weights())), weights())


def test_a_model_around_one_network_takes_its_checkpoint() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

    model = Around()
    load_weights(model, {"state_dict": weights()})
    assert holds(model.net, weights())
    with pytest.raises(CheckpointError, match=r"0 of 2 names agree"):  # 1 is not 0
        load_weights(nn.Sequential(nn.Linear(3, 4)), under("1.", nn.Linear(3, 4).state_dict()))


def test_parts_wrapped_for_sharding_and_recomputation() -> None:
    state = {
        name.replace("norm.", "_fsdp_wrapped_module.norm._checkpoint_wrapped_module."): tensor
        for name, tensor in weights().items()
    }
    assert holds(loaded(under("_fsdp_wrapped_module.", state)), weights())


# Networks in one flat file


TWO = under("student.backbone.", weights(1)) | under("teacher.backbone.", weights(2))


@pytest.mark.parametrize("entry", ["", "model", "my_entry"])
@pytest.mark.parametrize("key", ["teacher", "teacher.backbone"])
def test_a_prefix_that_fits_two_networks(entry: str, key: str) -> None:
    state = TWO | {"center": torch.zeros(3)}
    tree = {entry: state} if entry else state
    at = f"{entry}." if entry else ""
    match = rf"alike: {at}student.backbone, {at}teacher.backbone; .*--key {at}student.backbone\)"
    with pytest.raises(CheckpointError, match=match):
        loaded(tree)
    assert holds(loaded(tree, key=key), weights(2))
    assert holds(loaded(tree, key=f"{at}{key}"), weights(2))
    with pytest.raises(CheckpointError, match=rf"no state dict 'other'; it has: .*{at}student"):
        loaded(tree, key="other")


def test_one_network_under_two_prefixes_needs_no_choice() -> None:
    state = under("net.", weights()) | under("alias.", weights()) | {"n_averaged": torch.tensor(1)}
    with pytest.warns(CheckpointWarning, match=r"8 tensors .* left out: alias.fc1.weight, "):
        assert holds(loaded(state), weights())


def test_the_two_encoders_of_contrastive_learning(tmp_path: Path) -> None:
    state = under("module.encoder_q.", weights(1)) | under("module.encoder_k.", weights(2))
    torch.save({"state_dict": state | {"module.queue": torch.zeros(4)}}, tmp_path / "moco.pth")
    with pytest.raises(CheckpointError, match=r"alike: state_dict.module.encoder_q, "):
        loaded(tmp_path / "moco.pth")
    assert holds(loaded(tmp_path / "moco.pth", key="module.encoder_q"), weights(1))
    assert holds(loaded(tmp_path / "moco.pth", key="encoder_k"), weights(2))


def test_bare_names_win_over_a_prefix_and_say_so() -> None:
    state = weights(1) | under("ema.", weights(2))
    with pytest.warns(CheckpointWarning) as caught:
        assert holds(loaded(state), weights(1))
    assert "'(top level)' is taken, not ema; choose by key='ema'" in str(caught[0].message)
    assert holds(loaded(state, key="ema"), weights(2))


def test_a_key_of_a_network_of_other_shapes() -> None:
    state = weights() | under("old.", weights())
    state["old.head.weight"] = torch.zeros(5, 4)
    with pytest.raises(CheckpointError, match=r"wrong shape \(1\): head.weight \(5, 4\)"):
        loaded(state, key="old")


def test_parts_that_agree_by_chance_are_no_network() -> None:
    state = under("encoder.norm.", nn.LayerNorm(4).state_dict()) | {"a": torch.zeros(1)}
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(CheckpointError, match=r"does not fit .*: 0 of 6 names agree"):
        load_weights(model, state)


@pytest.mark.parametrize("trainable_only", [True, False])
def test_averages_kept_as_a_list(trainable_only: bool, tmp_path: Path) -> None:
    model, average = Net(), loaded(weights(2))
    model.fc1.weight.requires_grad_(False)
    shadow = [
        own.detach()
        for own, p in zip(average.parameters(), model.parameters(), strict=True)
        if p.requires_grad or not trainable_only
    ]
    ema = {"decay": 0.99, "num_updates": 3, "shadow_params": shadow, "collected_params": None}
    torch.save({"net_of_mine": weights(1), "ema": ema}, tmp_path / "a.pt")
    load_weights(model, tmp_path / "a.pt", key="ema")
    names = {name for name, p in model.named_parameters() if p.requires_grad or not trainable_only}
    mixed = {name: weights(2 if name in names else 1)[name] for name in weights()}
    assert holds(model, mixed)  # the buffers are those beside the averages
    with pytest.raises(
        CheckpointError, match=r"missing \(2\): norm.running_mean, norm.running_var"
    ):
        load_weights(loaded(weights()), ema | {"shadow_params": list(average.parameters())})


def test_a_list_of_other_shapes_is_no_average() -> None:
    with pytest.raises(CheckpointError, match="holds no state dict"):
        loaded({"shadow_params": [torch.zeros(1)] * 5})


# Names that the model lacks, and names that the file lacks


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    "extra",
    [
        {"criterion.pos_weight": torch.tensor(3.2)},
        {"train_acc.tp": torch.tensor(3), "train_acc.fp": torch.tensor(4)},
        {"best_loss": torch.tensor(torch.inf)},
        {"model.aux.weight": torch.ones(2)},
    ],
)
def test_more_names_than_the_model_has(prefix: str, extra: State) -> None:
    match = rf"holds {len(extra)} tensors that the model lacks, .*: .*{list(extra)[-1][-9:]}$"
    with pytest.warns(CheckpointWarning, match=match):
        assert holds(loaded({"state_dict": under(prefix, weights()) | extra}), weights())


@pytest.mark.parametrize("prefix", ["", "model."])
def test_fewer_names_only_on_request(prefix: str, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in weights().items() if name.startswith("fc1")}
    torch.save(under(prefix, state), tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"missing \(5\): norm.*\n  .*partial=True \(--partial"
    ):
        loaded(tmp_path / "a.pt")
    model, before = Net(), loaded(weights(3)).state_dict()
    load_weights(model, before)
    match = r"a.pt is loaded in part: 5 of 8 tensors stay as model\(\) made them: norm.weight, norm"
    with pytest.warns(CheckpointWarning, match=match):
        load_weights(model, tmp_path / "a.pt", partial=True)
    assert holds(model, before | state)


def test_nothing_in_common_is_no_part() -> None:
    with pytest.raises(CheckpointError, match="0 of 8 names agree"):
        loaded({"other": torch.zeros(1)}, partial=True)
    wrong = weights() | {"head.weight": torch.zeros(5, 4)}
    with pytest.raises(CheckpointError, match="wrong shape"):
        loaded(wrong, partial=True)


# Adapters


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 4)
        self.lora_A = nn.Parameter(torch.zeros(2, 3))
        self.lora_B = nn.Parameter(torch.zeros(4, 2))


def test_adapters_alone_load_over_the_base(tmp_path: Path) -> None:
    adapters = {"lora_A": torch.ones(2, 3), "lora_B": torch.ones(4, 2)}
    safetensors.torch.save_file(adapters, tmp_path / "a.safetensors")
    model = Adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    match = r"holds adapters alone: 2 of 4 tensors stay as .* made them: base.weight, base.bias$"
    with pytest.warns(CheckpointWarning, match=match):
        load_weights(model, tmp_path / "a.safetensors")
    assert holds(model, before | adapters)
    with pytest.raises(CheckpointError, match=r"missing \(1\): base.bias"):
        load_weights(model, adapters | {"base.weight": torch.zeros(4, 3)})


@pytest.mark.parametrize("name", ["default", "mine"])
@pytest.mark.parametrize("kind", ["LoraConfig", "dora", "IA3Config", "head"])
def test_a_folder_of_adapters_of_peft(kind: str, name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        options: dict[str, Any] = {"target_modules": ["0"]}
        if kind == "IA3Config":
            options["feedforward_modules"] = ["0"]
        if kind == "dora":
            options |= {"use_dora": True, "r": 2}
        if kind == "head":
            options["modules_to_save"] = ["2"]
        config = getattr(peft, kind if kind == "IA3Config" else "LoraConfig")(**options)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        made: nn.Module = peft.get_peft_model(net, config, adapter_name=name)
        return made

    trained, other = model(1), model(2)
    adapters = {n for n, p in trained.named_parameters() if p.requires_grad}
    for n, p in trained.named_parameters():
        p.data.normal_() if n in adapters else None
    trained.save_pretrained(tmp_path)  # type: ignore[operator]
    before = {n: t.clone() for n, t in other.state_dict().items()}
    folder = tmp_path if name == "default" else tmp_path / name
    with pytest.warns(CheckpointWarning, match="holds adapters alone: . of . tensors stay"):
        load_weights(other, folder)
    after = trained.state_dict()
    assert holds(other, {n: after[n] if n in adapters else t for n, t in before.items()})


# Values of other types


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64])
def test_integers_for_floating_point_weights_are_refused(dtype: torch.dtype) -> None:
    state = weights() | {"fc1.weight": torch.ones(4, 3, dtype=dtype)}
    match = rf"for floating-point weights \(fc1.weight \({str(dtype)[6:]}\)\); give the checkpoint"
    with pytest.raises(CheckpointError, match=match):
        loaded(state)


@pytest.mark.parametrize(
    "quantised",
    [
        {"fc1.qweight": torch.ones(1, dtype=torch.int32), "fc1.qzeros": torch.ones(1)},
        {"fc1.weight": torch.ones(12, 1, dtype=torch.uint8), "fc1.weight.absmax": torch.ones(1)},
        {"fc1.weight": torch.ones(4, 3), "fc1.weight_scale_inv": torch.ones(1)},
    ],
    ids=["gptq", "bitsandbytes", "fp8"],
)
def test_quantised_weights_are_refused(quantised: State) -> None:
    match = r"holds quantised weights \(fc1\..*give the checkpoint from before.*dequantize\(\)"
    with pytest.raises(CheckpointError, match=match):
        loaded(weights() | quantised)


def test_tensors_without_values_are_refused(tmp_path: Path) -> None:
    torch.save(weights() | {"fc1.weight": torch.ones(4, 3, device="meta")}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"fc1.weight was saved on the meta device"):
        loaded(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_a_sparse_buffer(layout: str, tmp_path: Path) -> None:
    class Graph(nn.Linear):
        def __init__(self, scale: float) -> None:
            super().__init__(2, 2)
            self.register_buffer("adjacency", getattr(scale * torch.eye(3), layout)())

    trained, fresh = Graph(2.0), Graph(1.0)
    torch.save(trained.state_dict() | {"extra": Settings()}, tmp_path / "a.pt")
    load_weights(fresh, tmp_path / "a.pt")
    assert torch.equal(fresh.adjacency.to_dense(), 2 * torch.eye(3))
    broken = Graph(torch.nan).state_dict()
    with pytest.raises(CheckpointError, match=r"NaN or infinity in 1 tensors \(adjacency\)"):
        load_weights(fresh, broken)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_layers_that_have_no_shape_yet() -> None:
    fresh = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    trained = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    load_weights(fresh, under("net.", trained.state_dict()))
    assert holds(fresh, trained.state_dict())


def test_weight_norm_of_older_versions() -> None:
    state = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)).state_dict()
    older = {
        {"weight.original0": "weight_g", "weight.original1": "weight_v"}.get(
            name.removeprefix("parametrizations."), name
        ): tensor
        for name, tensor in state.items()
    }
    assert set(older) == {"weight_g", "weight_v", "bias"}
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    load_weights(model, under("net.", older))
    assert holds(model, state)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_tensors_of_torch_are_refused(tmp_path: Path) -> None:
    tensor = torch.quantize_per_tensor(torch.ones(4, 3), 0.1, 0, torch.qint8)
    torch.save(weights() | {"fc1.weight": tensor}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"holds quantised weights \(fc1\.weight\)"):
        loaded(tmp_path / "a.pt")


# Tied weights


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_tied_weights(save: Callable[..., None], tmp_path: Path) -> None:
    save(Tied().state_dict(), tmp_path / "a.pt")
    model = Tied()
    load_weights(model, tmp_path / "a.pt")
    assert model.head.weight is model.embed.weight


def test_tied_weights_of_which_the_file_keeps_one(tmp_path: Path) -> None:
    original = Tied()
    safetensors.torch.save_model(original, str(tmp_path / "a.safetensors"))
    assert len(read_checkpoint(tmp_path / "a.safetensors")) == 1
    model = Tied()
    load_weights(model, tmp_path / "a.safetensors")
    assert torch.equal(model.head.weight, original.head.weight)
    assert model.head.weight is model.embed.weight


def test_untied_weights_for_a_model_that_ties_them() -> None:
    state = {"embed.weight": torch.zeros(3, 3), "head.weight": torch.ones(3, 3)}
    match = r"embed.weight and head.weight are one tensor in the model Tied, but .* other values"
    with pytest.raises(CheckpointError, match=match):
        load_weights(Tied(), state)


# What does not fit


def test_names_that_do_not_agree(tmp_path: Path) -> None:
    state = weights()
    state["fc1.wieght"] = state.pop("fc1.weight")
    state["head.weight"] = torch.zeros(5, 4)
    state["other"] = torch.zeros(1)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        loaded(tmp_path / "a.pt")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("a.pt does not fit the model Net: 7 of 8 names agree.")
    assert lines[1:] == [
        "  missing (1): fc1.weight (nearest: fc1.wieght)",
        "  unexpected (2): other, fc1.wieght (nearest: fc1.weight)",
        "  wrong shape (1): head.weight (5, 4), the model has (2, 4)",
    ]


def test_a_missing_counter_of_batches_is_no_matter() -> None:
    state = weights()
    del state["norm.num_batches_tracked"]
    assert holds(loaded(state), state)


@pytest.mark.parametrize("name", ["norm.running_mean", "norm.running_var", "norm.weight"])
def test_everything_else_must_be_there(name: str) -> None:
    state = weights()
    del state[name]
    with pytest.raises(CheckpointError, match=rf"missing \(1\): {name}"):
        loaded(state)


def test_long_lists_are_cut() -> None:
    state = {f"extra{i}": torch.zeros(1) for i in range(11)}
    with pytest.raises(CheckpointError, match=r"unexpected \(11\): .*, … and 3 more"):
        loaded(state)


@pytest.mark.parametrize("name", ["fc1.weight", "norm.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(name: str, value: float) -> None:
    state = weights()
    state[name].view(-1)[0] = value
    match = rf"holds NaN or infinity in 1 tensors \({name}\): the training has diverged"
    with pytest.raises(CheckpointError, match=match):
        loaded(state)


def test_a_mask_of_infinities_that_the_model_has_itself_is_no_matter() -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    state = Masked().state_dict()
    model = Masked()
    load_weights(model, state)
    state["mask"] = -state["mask"]
    with pytest.raises(CheckpointError, match=r"NaN or infinity in 1 tensors \(mask\)"):
        load_weights(model, state)


@pytest.mark.parametrize(
    ("tree", "found"),
    [
        ({"epoch": 3, "lr": 0.1}, "a dict with the keys epoch, lr"),
        ({}, r"a dict with the keys \(none\)"),
        ([1, 2], "a list"),
        (torch.zeros(2), "a Tensor"),
    ],
)
def test_a_file_without_a_state_dict(tree: Any, found: str, tmp_path: Path) -> None:
    torch.save(tree, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"a\.pt holds no state dict .*; found {found}"):
        loaded(tmp_path / "a.pt")


# Files that are damaged, or none


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for save in FORMATS:
        save(weights(), folder / "a")
        found[save.__name__] = (folder / "a").read_bytes()
    return found


@pytest.mark.parametrize("save", [f.__name__ for f in FORMATS])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file(
    save: str, suffix: str, part: float, whole: dict[str, bytes], tmp_path: Path
) -> None:
    content = whole[save]
    file = tmp_path / f"cut{suffix}"
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(
        CheckpointError, match=r"cut\.\w+ .*(truncated|empty|no checkpoint)"
    ) as caught:
        loaded(file)
    assert "unsafe" not in str(caught.value)  # more trust would not help


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_a_truncated_file_with_trust(save: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    save(weights(), file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        loaded(file, unsafe_pickle=True)


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"is empty \(0 bytes\): was the disk full"),
        (b"epoch,loss\n1,0.5\n", r"is no checkpoint: neither .* \(it starts with b'epoch,lo'\)"),
        (b"settings{lr: 0.1}", r"is no checkpoint: neither .* \(it starts with b'settings'\)"),
        (png(), r"is no checkpoint: neither .*PNG"),
        (b"\x80", "truncated or no checkpoint"),
        (b"PK\x03\x04 and so on", "truncated or no checkpoint"),
        (pickle.dumps([1, 2, 3], protocol=2), "holds no state dict .*; found a list"),
        (b"GGUF\3", "is a GGUF file of quantised weights; dequantise it by transformers"),
        (b"\x89HDF\r\n\x1a\n", r"is an HDF5 \(Keras\) file; read it with .*numpy.savez"),
        (b"\x1f\x8b\x08", "is compressed; unpack it"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer; .*git lfs pull"),
        (b"<!DOCTYPE html>", "is a web page; download"),
    ],
    ids=[
        *("empty", "text", "brace", "png", "byte", "zip", "pickle"),
        *("gguf", "hdf5", "gzip", "lfs", "html"),
    ],
)
def test_a_file_that_is_no_checkpoint(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.pt .*{match}"):
        loaded(tmp_path / "a.pt")


def test_an_empty_safetensors_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(CheckpointError, match="is empty"):
        loaded(tmp_path / "a.safetensors")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "model_best.pt").touch()
    match = r"no such checkpoint file: .*model_bset\.pt \(nearest: model_best\.pt\)"
    with pytest.raises(CheckpointError, match=match):
        loaded(tmp_path / "model_bset.pt")
    with pytest.raises(CheckpointError, match=r"no such checkpoint file: .*nowhere/a\.pt$"):
        loaded(tmp_path / "nowhere/a.pt")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a directory; name a file in it: none fits"):
        loaded(tmp_path)
    for name in ("b.pt", "a.safetensors", "log.txt"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"is a directory; .*: a\.safetensors, b\.pt$"):
        loaded(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save(weights(), file)
    file.chmod(0)
    as_root = os.geteuid() == 0
    if as_root:  # who may read everything, so be someone else for a while
        os.seteuid(NOBODY)
    try:
        with pytest.raises(CheckpointError, match=r"a\.pt cannot be read: Permission denied"):
            read_checkpoint(file)
    finally:
        if as_root:
            os.seteuid(0)


# Code in the file


class Payload:
    """Touches a file when it is unpickled: as harmless as such a thing can be."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.mark,))


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("where", ["alone", "beside the weights"])
def test_code_in_a_file_is_not_run(save: Callable[..., None], where: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "a.pt"
    save(Payload(mark) if where == "alone" else weights() | {"x": Payload(mark)}, file)
    match = (
        r"a\.pt is not loaded: it holds more than tensors, .* run code \(it asks for posix\.mkdir\)"
        r".*Save model\.state_dict\(\) instead.*unsafe_pickle=True \(--unsafe-pickle\)"
    )
    with pytest.raises(CheckpointError, match=match):
        loaded(file)
    assert not mark.exists()


def test_code_in_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        mark, file = tmp_path / "mark", tmp_path / "a.pt"
        file.write_bytes(pickle.dumps(Payload(mark), protocol=protocol))
        with pytest.raises(CheckpointError, match=r"a\.pt is (not loaded|no checkpoint)"):
            loaded(file)
        assert not mark.exists()


@pytest.mark.parametrize(
    "save", [torch.save, partial(torch.save, _use_new_zipfile_serialization=False), None]
)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("as_arrays", [True, False])
def test_pickles_of_any_protocol(
    save: Callable[..., None] | None, protocol: int, as_arrays: bool, tmp_path: Path
) -> None:
    state = {name: t.numpy() for name, t in weights().items()} if as_arrays else weights()
    with (tmp_path / "a.pkl").open("wb") as stream:
        if save:
            save({"model": state}, stream, pickle_protocol=protocol)
        else:
            pickle.dump({"model": state}, stream, protocol=protocol)
    assert holds(loaded(tmp_path / "a.pkl"), weights())


def test_code_in_a_file_runs_only_if_asked_for_and_is_no_state_dict(tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "a.pt"
    torch.save(Payload(mark), file)
    with pytest.raises(CheckpointError, match=r"a\.pt holds no state dict .*; found a NoneType"):
        loaded(file, unsafe_pickle=True)
    assert mark.exists()


def test_code_that_fails_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "mark").mkdir()
    torch.save(Payload(tmp_path / "mark"), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt cannot be unpickled: FileExistsError"):
        loaded(tmp_path / "a.pt", unsafe_pickle=True)


def write_pickle(raw: bytes, file: Path, legacy: bool) -> None:
    """Put a pickle where torch.save has its own, in either format."""
    if legacy:
        head = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {})
        file.write_bytes(
            b"".join(pickle.dumps(part, 2) for part in head) + raw + pickle.dumps([], 2)
        )
        return
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", raw), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"a/{name}", content)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


ATTACKS = {
    "posix": lambda mark: b"cposix\nmkdir\n" + text(mark) + b"\x85R.",
    "eval": lambda mark: (
        b"cbuiltins\neval\n" + text(f"__import__('os').mkdir({mark!r})") + b"\x85R."
    ),
    "python 2": lambda mark: (
        b"c__builtin__\neval\n" + text(f"__import__('os').mkdir({mark!r})") + b"\x85R."
    ),
    "inst": lambda mark: b"(" + text(mark) + b"iposix\nmkdir\n.",
    "obj": lambda mark: b"(cposix\nmkdir\n" + text(mark) + b"o.",
    "import": lambda mark: b"cimportlib\nimport_module\n" + text("os") + b"\x85R.",
    "extension": lambda mark: b"\x82\xf0" + text(mark) + b"\x85R.",
    "getattr": lambda mark: (
        b"cbuiltins\ngetattr\nctorch.serialization\nos\n"
        + text("mkdir")
        + b"\x86R"
        + text(mark)
        + b"\x85R."
    ),
    "dotted": lambda mark: (
        b"\x80\x04"
        + text("torch")
        + text("serialization.os.mkdir")
        + b"\x93"
        + text(mark)
        + b"\x85R."
    ),
    "member of an allowed class": lambda mark: (
        b"\x80\x04"
        + text("collections")
        + text("OrderedDict.__init__.__globals__")
        + b"\x93"
        + text(mark)
        + b"\x85R."
    ),
    "call of an allowed result": lambda mark: (
        b"ccollections\nOrderedDict\n)R" + text(mark) + b"\x85R."
    ),
    "class of torch that loads": lambda mark: b"ctorch\nload\n" + text(mark) + b"\x85R.",
    "state of an allowed function": lambda mark: (
        b"ctorch._utils\n_rebuild_tensor_v2\nN}"
        + text("__defaults__")
        + text(mark)
        + b"\x85s\x86b."
    ),
    "nested pickle": lambda mark: (
        b"ctorch.storage\n_load_from_bytes\nc_codecs\nencode\n"
        + text("cposix\nmkdir\n")
        + text("latin1")
        + b"\x86R\x85R."
    ),
    "storage of a foreign module": lambda mark: b"cevil\nMyStorage\n" + text(mark) + b"\x85R.",
    "source of an old module": lambda mark: (
        b"("
        + text("module")
        + b"cevil\nNet\n"
        + text(mark)
        + text("class Net: dump_patches = True")
        + b"tQ."
    ),
}


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_pickle_runs_anything(
    attack: str, legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("posix", "mkdir", 0xF0)
    try:
        write_pickle(ATTACKS[attack](str(tmp_path / "mark")), tmp_path / "a.pt", legacy)
        with pytest.raises(CheckpointError, match=r"a\.pt (is not loaded|holds no|.*truncated)"):
            loaded(tmp_path / "a.pt")
    finally:
        copyreg.remove_extension("posix", "mkdir", 0xF0)
    assert os.listdir() == ["a.pt"]
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_harmless_objects_beside_the_weights(save: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "module_of_mine.py").write_text(
        "import pathlib\npathlib.Path('imported').touch()\n"
        "class Settings(dict): pass\nclass Items(list): pass\n"
        "class Slots:\n    __slots__ = ('a',)\n"
    )
    sys.path.insert(0, str(tmp_path))
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        mine = importlib.import_module("module_of_mine")
        slots = mine.Slots()
        slots.a = 1
        foreign = [mine.Settings(a=1), mine.Items([1, 2]), slots, mine.Settings]
        extras = {
            "best": np.float64(0.93),
            "history": np.arange(3.0),
            "objects": np.array([None, {}], dtype=object),
            "dtype": np.dtype("f4"),
            "args": argparse.Namespace(lr=0.1, path=Path("/data"), colour=Colour.RED),
            "when": [datetime.now(timezone.utc), timedelta(1)],
            "numbers": [Decimal("0.1"), Fraction(1, 3), 1j, 2**70, slice(1), range(2)],
            "containers": [defaultdict(list, a=[1]), Counter("ab"), deque([1], maxlen=2), {1}],
            "more": [
                SimpleNamespace(a=1),
                http.HTTPStatus.OK,
                frozenset([1]),
                bytearray(b"a"),
                b"b",
            ],
            "functions": [torch.relu, nn.ReLU, nn.ReLU(), partial(max, 1)],
            "foreign": foreign,
        }
        save({"hyper_parameters": extras, "state_dict": weights()}, tmp_path / "a.ckpt")
        Path("imported").unlink()
        del sys.modules["module_of_mine"]
        assert holds(loaded(tmp_path / "a.ckpt"), weights())
        assert not Path("imported").exists()
    finally:
        os.chdir(here)
        sys.path.remove(str(tmp_path))


def test_weights_in_a_container_of_a_foreign_class(tmp_path: Path) -> None:
    torch.save({"model": Settings(weights())}, tmp_path / "a.pt")
    assert holds(loaded(tmp_path / "a.pt"), weights())


class Settings(dict[str, Any]):
    pass


class Keyed:
    def __new__(cls, *, a: int) -> Keyed:
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"a": 1}


def test_an_object_that_is_made_with_keywords(tmp_path: Path) -> None:
    torch.save({"model": weights(), "it": Keyed(a=1)}, tmp_path / "a.pt", pickle_protocol=4)
    assert holds(loaded(tmp_path / "a.pt"), weights())


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_a_whole_pickled_module(save: Callable[..., None], tmp_path: Path) -> None:
    model = loaded(weights())
    model.register_buffer("passing", torch.ones(1), persistent=False)
    save({"model": model, "epoch": 3}, tmp_path / "a.pt")
    assert holds(loaded(tmp_path / "a.pt"), weights())
    assert holds(loaded(tmp_path / "a.pt", unsafe_pickle=True), weights())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*TorchScript:UserWarning")
@pytest.mark.parametrize(
    "compiled", [torch.jit.script, partial(torch.jit.trace, example_inputs=torch.ones(2, 3))]
)
def test_the_weights_of_a_torchscript_program(compiled: Callable[..., Any], tmp_path: Path) -> None:
    compiled(loaded(weights()).eval()).save(str(tmp_path / "a.pt"))
    assert holds(loaded(tmp_path / "a.pt"), weights())


# Several files, and other formats


SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder with half of the tensors in each of two files, and their index."""
    names = list(weights())
    weight_map = {name: SHARDS[i % 2] for i, name in enumerate(names)}
    for shard in SHARDS:
        save_safetensors(
            {n: weights()[n] for n in names if weight_map[n] == shard}, tmp_path / shard
        )
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_shards_by_their_index_their_folder_and_their_numbers(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    for source in (index, sharded, str(sharded)):
        assert holds(loaded(source), weights())
    index.rename(sharded / "other.index.json")
    assert holds(loaded(sharded), weights())
    (sharded / "other.index.json").unlink()
    assert holds(loaded(sharded), weights())


def test_only_some_shards(sharded: Path) -> None:
    with pytest.raises(
        CheckpointError, match="it is one of 2 shards: give their folder or their index"
    ):
        loaded(sharded / SHARDS[0])
    with pytest.warns(CheckpointWarning, match="loaded in part"):
        loaded(sharded / SHARDS[0], partial=True)
    (sharded / SHARDS[1]).unlink()
    index = sharded / "model.safetensors.index.json"
    match = rf"of 2 shards, 1 of which are missing: {SHARDS[1]}; copy them"
    for source in (index, sharded):
        with pytest.raises(CheckpointError, match=match):
            loaded(source)
    index.unlink()
    save_safetensors({"other": torch.zeros(1)}, sharded / "extra.safetensors")
    with pytest.raises(CheckpointError, match=match):
        loaded(sharded)


def test_an_index_that_does_not_fit_its_shards(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"] | {"head.bias": SHARDS[0]}
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"names 1 tensors that no shard holds: head.bias"):
        loaded(index)
    for content in ("{}", "[1]", "{", '{"weight_map": 3}'):
        index.write_text(content)
        with pytest.raises(CheckpointError, match="is no index of shards: it has no weight_map"):
            loaded(sharded)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_folder_with_one_file_of_weights_among_others(suffix: str, tmp_path: Path) -> None:
    save = save_zip if suffix == "bin" else save_safetensors
    stem = "pytorch_model" if suffix == "bin" else "model"
    save(weights(), tmp_path / f"{stem}.{suffix}")
    torch.save({}, tmp_path / "optimizer.pt")
    torch.save({}, tmp_path / "training_args.bin")
    assert holds(loaded(tmp_path), weights())


def test_a_folder_that_transformers_writes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    config = transformers.BertConfig(**sizes, num_attention_heads=2, vocab_size=20)
    trained, fresh = (transformers.BertForMaskedLM(config) for _ in range(2))
    trained.save_pretrained(tmp_path, max_shard_size="5KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    load_weights(fresh, tmp_path)
    assert holds(fresh, trained.state_dict())


def test_a_checkpoint_that_lightning_writes(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, net: nn.Module, path: Path = Path("/data")) -> None:
            super().__init__()
            self.save_hyperparameters(ignore=["net"])
            self.my_thing, self.criterion = net, nn.CrossEntropyLoss(torch.ones(2))

    trainer = lightning.Trainer(logger=False, barebones=True, accelerator="cpu")
    trainer.strategy.connect(Module(loaded(weights())))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.warns(CheckpointWarning, match=r"1 tensors .* left out: criterion.weight"):
        assert holds(loaded(tmp_path / "a.ckpt"), weights())


TWO_PROCESSES = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/store", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
state = torch.load("weights.pt")
copies = {n: distribute_tensor(t, mesh, [Replicate()]) for n, t in state.items()}
sharded = {n: distribute_tensor(t, mesh, [Shard(0)]) if t.dim() else t for n, t in state.items()}
dcp.save({"model": sharded, "optim": {"lr": 0.1, "m": [torch.ones(2)]}}, checkpoint_id="saved")
torch.save({"model": copies}, f"copies{rank}.pt")
torch.save({"model": sharded}, f"sharded{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes save, each with its half of every tensor."""
    folder = tmp_path_factory.mktemp("distributed")
    torch.save(weights(), folder / "weights.pt")
    command = [sys.executable, "-W", "ignore", "-c", TWO_PROCESSES]
    started = [
        subprocess.Popen([*command, rank, str(folder)], cwd=folder, stderr=subprocess.PIPE)
        for rank in "01"
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert not any(process.returncode for process in started), errors
    return folder


def test_a_distributed_checkpoint_of_two_processes(distributed: Path, tmp_path: Path) -> None:
    assert holds(loaded(distributed / "saved"), weights())
    assert holds(loaded(distributed / "saved" / ".metadata"), weights())
    with pytest.raises(
        CheckpointError, match=r"one file of a torch.distributed.checkpoint folder; give"
    ):
        loaded(distributed / "saved" / "__0_0.distcp")
    (saved := tmp_path / "saved").mkdir()
    for name in (".metadata", "__0_0.distcp"):
        (saved / name).write_bytes((distributed / "saved" / name).read_bytes())
    match = r"of 2 files \(each process wrote its own\), 1 of which are missing: __1_0.distcp"
    with pytest.raises(CheckpointError, match=match):
        loaded(saved)
    (saved / "__1_0.distcp").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"is no whole folder of .*dcp_to_torch"):
        loaded(saved)
    (saved / ".metadata").write_bytes(b"cposix\nmkdir\n" + text(str(tmp_path / "mark")) + b"\x85R.")
    with pytest.raises(CheckpointError, match="is no whole folder of"):
        loaded(saved)
    assert not (tmp_path / "mark").exists()


def test_distributed_tensors_in_a_file_of_one_process(distributed: Path) -> None:
    assert holds(loaded(distributed / "copies1.pt"), weights())
    match = r"model.fc1.weight is one process's part \(2, 3\) of a tensor \(4, 3\); save the whole"
    with pytest.raises(CheckpointError, match=match):
        loaded(distributed / "sharded0.pt")


def test_a_numpy_archive(tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in weights().items()}
    arrays["head.weight"] = np.asfortranarray(arrays["head.weight"].astype(">f8"))
    np.savez(tmp_path / "a.npz", **arrays, note=np.array("text"))
    assert holds(loaded(tmp_path / "a.npz"), weights())
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    assert holds(loaded(tmp_path / "b.npz"), weights())
    np.savez(tmp_path / "c.npz", **arrays, object=np.array([{}], dtype=object))
    with pytest.raises(CheckpointError, match=r"c.npz .* Object arrays cannot be loaded"):
        loaded(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", weight=np.zeros(2, dtype="V2"))
    with pytest.raises(CheckpointError, match=r"such as bfloat16 \(weight\); save them as float32"):
        loaded(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("a.onnx", r"is an ONNX graph; read it with onnx.load.*to_array, and write .*numpy.savez"),
        ("a.msgpack", r"is a Flax \(msgpack\) file; read it with flax.*numpy.savez"),
        ("a.index", r"is a TensorFlow checkpoint; read it with tf.train.load_checkpoint"),
    ],
)
def test_formats_that_are_named(name: str, match: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x08\x09 and so on")
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(CheckpointError, match=match):
            loaded(source)


@pytest.mark.parametrize(
    ("members", "match"),
    [
        (["config.json", "model.weights.h5"], "is a Keras file; read it with keras"),
        (
            ["net/archive_format"],
            r"is a program of torch.export; .*torch.export.load",
        ),
        (["word/document.xml"], "is an archive of word/document.xml"),
    ],
)
def test_archives_that_are_named(members: list[str], match: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for member in members:
            archive.writestr(member, "")
    with pytest.raises(CheckpointError, match=match):
        loaded(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "match"),
    [("zero_to_fp32.py", "is a DeepSpeed ZeRO folder; run"), ("saved_model.pb", "is a TensorFlow")],
)
def test_folders_that_are_named(name: str, match: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=match):
        loaded(tmp_path)


# At a checkpoint


def test_the_command_line_loads_a_part_and_a_network_by_prefix(here: Path, run: Any) -> None:
    state = torch.load("a.pt")
    (first, *rest) = state
    torch.save({name: state[name] for name in rest}, "part.pt")
    torch.save(under("student.", state) | under("teacher.", torch.load("b.pt")), "two.pt")
    command = ("sharpness", "--problem", "task.py", "--json")
    refused = run(*command, "part.pt")
    assert (refused.code, "--partial" in refused.err, first in refused.err) == (1, True, True)
    loaded_in_part = run(*command, "part.pt", "--partial")
    assert loaded_in_part.code == 0
    assert f"stay as model() made them: {first}" in loaded_in_part.err
    refused = run(*command, "two.pt")
    assert refused.code == 1
    assert "alike: student, teacher; choose one" in refused.err
    values = [
        json.loads(run(*command, *more).out)[0]["value"]
        for more in (("two.pt", "--key", "teacher"), ("b.pt",))
    ]
    assert values[0] == values[1]


def test_a_part_goes_over_the_weights_of_the_problem() -> None:
    data = torch.zeros(2, 3), torch.zeros(2, 2)
    base = Problem(Net(), nn.MSELoss(), data).at(weights(1))
    part = {"fc1.weight": weights(2)["fc1.weight"]}
    with pytest.warns(CheckpointWarning, match="loaded in part"):
        state = base.at(part, partial=True).state()
    for name, tensor in (weights(1) | part).items():
        assert torch.equal(state[name], tensor)


class Counting(nn.Linear):
    """A layer whose state holds more than tensors."""

    count = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"count": self.count}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.count = state["count"]


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_the_extra_state_of_a_layer(save: Callable[..., None], tmp_path: Path) -> None:
    trained, fresh = Counting(2, 2), Counting(2, 2)
    trained.count = 7
    save(under("net.", trained.state_dict()), tmp_path / "a.pt")
    load_weights(fresh, tmp_path / "a.pt")
    assert fresh.count == 7
    load_weights(
        Counting(2, 2), {k: v for k, v in trained.state_dict().items() if "extra" not in k}
    )


def test_at_leaves_the_problem_as_it_was(tmp_path: Path) -> None:
    data = torch.zeros(2, 3), torch.zeros(2, 2)
    problem = Problem(Net(), nn.MSELoss(), data, name="fresh")
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    torch.save(weights(), tmp_path / "sgd.pt")

    other = problem.at(tmp_path / "sgd.pt")

    assert all(torch.equal(other.state()[name], tensor) for name, tensor in weights().items())
    assert (other.name, problem.name) == ("sgd.pt", "fresh")
    assert problem.at(weights()).name == "fresh"
    assert problem.at(weights(), name="mine").name == "mine"
    assert holds(problem.model, before)
    assert other.batches is problem.batches
