from __future__ import annotations

import os
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

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


def test_the_exact_name_wins_over_a_wrapped_one() -> None:
    for names in (("fc1.weight", "model.fc1.weight"), ("model.fc1.weight", "fc1.weight")):
        state = weights()
        exact = state.pop("fc1.weight")
        state |= {name: exact if name == "fc1.weight" else exact + 1 for name in names}
        assert holds(loaded(state), weights())


def test_two_models_under_two_prefixes_are_not_mixed() -> None:
    state = {
        f"{p}.{name}": t + i
        for i, p in enumerate(("net", "model"))
        for name, t in weights().items()
    }
    match = r"holds fc1.weight under 2 names, net.fc1.weight, model.fc1.weight; hand over"
    with pytest.raises(CheckpointError, match=match):
        loaded(state)


@given(
    prefixes=st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "net."]), max_size=4),
    name=st.sampled_from(list(Net().state_dict())),
)
def test_any_prefixes_come_off(prefixes: list[str], name: str) -> None:
    assert own_name("".join(prefixes) + name, set(Net().state_dict())) == name


def test_a_name_that_the_model_has_not_keeps_what_says_where_it_is() -> None:
    assert own_name("module.model.extra.weight", {"fc1.weight"}) == "model.extra.weight"


def test_the_names_come_back_with_their_tensors() -> None:
    found = find_state_dict({"net": {"module.a": torch.ones(1)}}, {"a": torch.zeros(1)})
    assert list(found) == ["a"]
    assert found["a"].item() == 1
    assert holds(loaded(find_state_dict(loaded(weights()), Net().state_dict())), weights())


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
    state = weights() | {f"extra{i}": torch.zeros(1) for i in range(11)}
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
        (pickle.dumps([1, 2, 3], protocol=2), "truncated or no checkpoint: Invalid magic number"),
    ],
    ids=["empty", "text", "brace", "png", "byte", "zip", "pickle"],
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


@pytest.mark.parametrize("save", [partial(torch.save, pickle_protocol=4), pickle.dump])
def test_a_file_of_another_pickle_protocol(save: Callable[..., None], tmp_path: Path) -> None:
    with (tmp_path / "a.pt").open("wb") as stream:
        save(weights(), stream)
    match = r"a\.pt is not loaded: .*\(Unsupported operand \d+ of pickle: was it saved with"
    with pytest.raises(CheckpointError, match=match) as caught:
        loaded(tmp_path / "a.pt")
    assert "\x1b" not in str(caught.value)


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


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_a_whole_pickled_module(save: Callable[..., None], tmp_path: Path) -> None:
    save(loaded(weights()), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"it asks for \S*test_checkpoint\.Net\)"):
        loaded(tmp_path / "a.pt")
    assert holds(loaded(tmp_path / "a.pt", unsafe_pickle=True), weights())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*TorchScript:UserWarning")
def test_a_torchscript_program(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(3, 2)).save(str(tmp_path / "a.pt"))
    match = r"a\.pt is a TorchScript program, not weights; save model\.state_dict\(\) instead"
    with pytest.raises(CheckpointError, match=match):
        loaded(tmp_path / "a.pt")


# At a checkpoint


def test_at_leaves_the_problem_as_it_was(tmp_path: Path) -> None:
    data = torch.zeros(2, 3), torch.zeros(2, 2)
    problem = Problem(Net(), nn.MSELoss(), data, name="fresh")
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    torch.save(weights(), tmp_path / "sgd.pt")

    other = problem.at(tmp_path / "sgd.pt")

    assert holds(other.model, weights())
    assert (other.name, problem.name) == ("sgd.pt", "fresh")
    assert problem.at(weights()).name == "fresh"
    assert problem.at(weights(), name="mine").name == "mine"
    assert holds(problem.model, before)
    assert other.batches is problem.batches
