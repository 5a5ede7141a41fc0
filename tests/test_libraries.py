"""What libraries write is measured as it is: against their own losses, by double backward."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import landscape as ls
from landscape.errors import (
    CheckpointError,
    DataError,
    InvalidArgumentError,
    LandscapeError,
    LossError,
    ProblemError,
)
from landscape.evaluate import Evaluator
from landscape.problem import Problem
from landscape.problem.data import tensors_in

pytestmark = pytest.mark.filterwarnings(
    # of the libraries themselves
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:.*treespec.*",
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a b c d e f g h i j k l m n".split()]
N_WORDS = len(WORDS)
TEXTS = ["a b c d", "e f g h i j", "k l", "m n a c e g", "b d f"]


@pytest.fixture
def transformers() -> Any:
    found = pytest.importorskip("transformers")
    found.utils.logging.disable_progress_bar()
    return found


@pytest.fixture
def folder(transformers: Any, tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny model, and its tokenizer."""

    def save(kind: str, name: str = "checkpoint-10", seed: int = 0, **options: Any) -> Path:
        torch.manual_seed(seed)
        model = network(transformers, kind, **options)
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / name)
        (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
        made = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
        made.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def network(transformers: Any, kind: str, **options: Any) -> nn.Module:
    if kind.startswith("GPT2"):
        sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 16}
        ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
        config = transformers.GPT2Config(vocab_size=N_WORDS, **sizes, **ids | options)
    else:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        sizes |= {"num_attention_heads": 2, "max_position_embeddings": 16}
        config = transformers.BertConfig(vocab_size=N_WORDS, **sizes, **options)
    return getattr(transformers, kind)(config)  # type: ignore[no-any-return]


def tokens(file: Path, n: int = 100, dtype: str = "<u2") -> Path:
    ids = np.random.RandomState(0).randint(N_WORDS, size=n).astype(dtype)
    np.save(file, ids) if file.suffix == ".npy" else ids.tofile(file)
    return file


def rows(file: Path, **columns: list[Any]) -> Path:
    lines = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    if file.suffix == ".csv":
        cells = [",".join(columns), *(",".join(map(str, line.values())) for line in lines)]
        file.write_text("\n".join(cells) + "\n")
    else:
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def check(problem: Problem, loss: Callable[[], Tensor], *, rel: float = 1e-6) -> None:
    """Compare loss and λmax with a plain loss of the library, and products by double backward."""
    model = problem.model.double().eval()
    with Evaluator(problem) as evaluator:
        assert evaluator.loss().value == pytest.approx(float(loss().detach()), rel=rel)
    chosen = [dict(model.named_parameters())[name] for name in problem.space.names]

    def flat(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(loss(), chosen, create_graph=True, materialize_grads=True)
    gradient = flat(gradients)

    def times(vector: Any) -> Any:
        along = torch.from_numpy(vector.reshape(-1))
        options = {"retain_graph": True, "materialize_grads": True}
        return flat(torch.autograd.grad(gradient @ along, chosen, **options)).numpy()

    hessian = LinearOperator((len(gradient),) * 2, matvec=times, dtype=np.float64)
    start = np.ones(len(gradient))
    (top,) = eigsh(hessian, k=1, which="LA", v0=start, tol=1e-10, return_eigenvectors=False)
    assert ls.top_eigenpairs(problem, 1, tol=1e-7).values[0] == pytest.approx(top, rel=rel)


@pytest.fixture
def double_losses(transformers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the losses of transformers in float64, which they cast to float32."""
    monkeypatch.setattr(Tensor, "float", lambda tensor: tensor)


# Folders of transformers


@pytest.mark.usefixtures("double_losses")
@pytest.mark.parametrize("data", ["tokens.bin", "tokens.npy", "text.csv"])
def test_a_causal_model_on_tokens_and_text(data: str, folder: Any, tmp_path: Path) -> None:
    where = folder("GPT2LMHeadModel")
    file = tmp_path / data
    if file.suffix == ".csv":
        rows(file, text=TEXTS)
    else:
        tokens(file)
    options = {"data": file, "length": 8, "examples": 5, "dtype": "float64"}
    problem = ls.load_problem(f"hf:{where}", **options)
    (batch,) = problem.batches
    inputs, target = batch
    if file.suffix == ".csv":
        labels = inputs["input_ids"].where(inputs["attention_mask"] == 1, -100)
        assert inputs["attention_mask"].sum(1).tolist() == [6, 8, 4, 8, 5]
    else:
        ids = np.random.RandomState(0).randint(N_WORDS, size=100)
        chosen = [ids[8 * i : 8 * i + 8].tolist() for i in (0, 2, 4, 7, 9)]  # of 12
        assert inputs["input_ids"].tolist() == chosen
        labels = inputs["input_ids"]
    assert int((target != -100).sum()) == int((labels[:, 1:] != -100).sum())
    model = problem.model
    check(problem, lambda: model(**inputs, labels=labels).loss)


@pytest.mark.usefixtures("double_losses")
def test_a_mixture_of_experts_has_second_derivatives(transformers: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 19}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    torch.manual_seed(0)
    saved = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads))
    saved.save_pretrained(tmp_path / "moe")
    data = tokens(tmp_path / "tokens.npy")
    problem = ls.load_problem(f"hf:{tmp_path / 'moe'}", data=data, length=8, dtype="float64")
    (((inputs, _)),) = problem.batches
    model = problem.model
    check(problem, lambda: model(**inputs, labels=inputs["input_ids"]).loss)


@pytest.mark.usefixtures("double_losses")
def test_the_loss_is_over_all_tokens_however_they_are_batched(folder: Any, tmp_path: Path) -> None:
    where, file = folder("GPT2LMHeadModel"), rows(tmp_path / "text.jsonl", text=TEXTS)
    found = [
        ls.evaluation(ls.load_problem(f"hf:{where}", data=file, dtype="float64", batch_size=size))
        for size in (1, 2, 5)
    ]
    assert found[0].loss == pytest.approx(found[2].loss, rel=1e-12)
    assert found[1].loss == pytest.approx(found[2].loss, rel=1e-12)


@pytest.mark.usefixtures("double_losses")
@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({"num_labels": 3}, [0, 2, 1, 2, 0]),
        ({"num_labels": 1}, [0.5, -1.0, 2.0, 0.0, 1.5]),
        (
            {"num_labels": 2, "problem_type": "multi_label_classification"},
            [[0, 1], [1, 1], [0, 0], [1, 0], [0, 1]],
        ),
        (
            {"label2id": {"no": 0, "yes": 1}, "id2label": {0: "no", 1: "yes"}},
            ["yes", "no"] * 2 + ["no"],
        ),
    ],
    ids=["classes", "regression", "several", "names"],
)
def test_a_classifier_of_sequences(
    options: dict[str, Any], labels: list[Any], folder: Any, tmp_path: Path
) -> None:
    where = folder("BertForSequenceClassification", **options)
    file = rows(tmp_path / "text.jsonl", text=TEXTS, label=labels)
    problem = ls.load_problem(f"hf:{where}", data=file, dtype="float64")
    (batch,) = problem.batches
    numbers = options.get("label2id", {})
    given = torch.tensor([numbers.get(x, x) if isinstance(x, str) else x for x in labels])
    if given.ndim == 2 or given.is_floating_point():
        given = given.double()
    model = problem.model
    check(problem, lambda: model(**batch[0], labels=given).loss)


def test_a_classifier_that_finds_the_end_of_a_text_by_its_padding(
    folder: Any, tmp_path: Path
) -> None:
    where = folder("GPT2ForSequenceClassification", pad_token_id=None)
    file = rows(tmp_path / "text.csv", text=TEXTS, label=[0, 1, 1, 0, 1])
    together, alone = (
        ls.evaluation(ls.load_problem(f"hf:{where}", data=file, batch_size=size)).loss
        for size in (5, 1)
    )
    assert together == pytest.approx(alone, rel=1e-6)


@pytest.mark.usefixtures("double_losses")
def test_a_classifier_of_tokens_counts_the_first_token_of_a_word(
    folder: Any, tmp_path: Path
) -> None:
    where = folder("BertForTokenClassification", num_labels=3)
    words = [text.split() for text in TEXTS]
    labels = [[len(text) % 3 for _ in range(len(text))] for text in words]
    file = rows(tmp_path / "text.jsonl", text=words, labels=labels)
    problem = ls.load_problem(f"hf:{where}", data=file, dtype="float64")
    ((inputs, target),) = problem.batches
    assert target[0].tolist() == [-100, *labels[0], *[-100] * 3]
    model = problem.model
    check(problem, lambda: model(**inputs, labels=target).loss)


@pytest.mark.usefixtures("double_losses")
def test_a_masked_model_predicts_the_same_tokens_on_each_pass(folder: Any, tmp_path: Path) -> None:
    where, file = folder("BertForMaskedLM"), rows(tmp_path / "text.jsonl", text=TEXTS * 4)
    options = {"data": file, "dtype": "float64", "batch_size": 20}
    problem = ls.load_problem(f"hf:{where}", **options)
    ((inputs, target),) = problem.batches
    again = ls.load_problem(f"hf:{where}", **options)
    other = ls.load_problem(f"hf:{where}", **options, seed=1)
    assert problem.batches.fingerprint == again.batches.fingerprint != other.batches.fingerprint
    predicted = target != -100
    assert 0 < int(predicted.sum()) < int(inputs["attention_mask"].sum()) // 2
    assert (inputs["input_ids"][predicted] == WORDS.index("[MASK]")).any()
    model = problem.model
    check(problem, lambda: model(**inputs, labels=target).loss)


# The command line


@pytest.fixture
def gpt2(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two checkpoints of one run, and a file of tokens, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder("GPT2LMHeadModel", "run/checkpoint-10")
    folder("GPT2LMHeadModel", "run/checkpoint-20", seed=1)
    return tokens(tmp_path / "tokens.bin")


@pytest.mark.usefixtures("gpt2")
def test_one_command_measures_a_folder_and_its_neighbours(run: Any) -> None:
    options = [
        "--problem",
        "hf:run/checkpoint-10",
        "--data",
        "tokens.bin",
        "--length",
        "8",
        "--json",
    ]
    one, same, both = (
        run("loss", *files, *options)
        for files in ((), ["run/checkpoint-10"], ["run/checkpoint-20", "run/checkpoint-10"])
    )
    assert [ran.code for ran in (one, same, both)] == [0, 0, 0], one.err + both.err
    (first,), (again,), (other, last) = (json.loads(ran.out) for ran in (one, same, both))
    assert first["provenance"]["checkpoint"] == again["provenance"]["checkpoint"] == "checkpoint-10"
    assert last["loss"] == first["loss"] == again["loss"] != other["loss"]
    assert first["provenance"]["n_examples"] == 12


@pytest.mark.usefixtures("gpt2")
def test_each_split_has_its_file(run: Any) -> None:
    tokens(Path("test.bin"), 40)
    options = ["--problem", "hf:run/checkpoint-10", "--length", "8"]
    data = ["--data", "tokens.bin", "--data", "test=test.bin"]
    ran = run("loss", *options, *data, "--split", "test", "--data", "x.bin")
    assert ran.code == 1
    assert "no such file of data: x.bin" in ran.err
    ran = run("loss", *options, *data, "--split", "validation")
    assert ran.code == 0, ran.err  # a file without a name is of the split that is measured
    ran = run("loss", *options, "--data", "train=tokens.bin", "--split", "test")
    assert ran.code == 2
    assert "has no data of the split 'test': give --data test=FILE" in ran.err


def test_what_libraries_take_is_refused_elsewhere(here: Path, run: Any) -> None:
    ran = run("loss", "a.pt", "--problem", "task.py", "--data", "x.bin")
    assert ran.code == 2
    assert "the problem task.py has no data to choose (hf: takes data, task" in ran.err
    ran = run("train", "--problem", "hf:x", "-o", "x.pt")
    assert ran.code == 1
    assert "hf:x is measured, and trained by its own library: give a" in ran.err


# Adapters of PEFT


@pytest.fixture
def adapter(transformers: Any, folder: Any, tmp_path: Path) -> Callable[[str], Path]:
    """Save a LoRA adapter with values of its own over the folder base."""
    peft = pytest.importorskip("peft")

    def save(kind: str) -> Path:
        of_gpt2 = kind.startswith("GPT2")
        base = folder(kind if of_gpt2 else "BertModel", "base")
        config = peft.LoraConfig(
            r=2,
            target_modules=["c_attn" if of_gpt2 else "query"],
            task_type="CAUSAL_LM" if of_gpt2 else "SEQ_CLS",
            fan_in_fan_out=of_gpt2,
        )
        torch.manual_seed(5)
        sizes = {} if of_gpt2 else {"num_labels": 3}
        model = peft.get_peft_model(
            getattr(transformers, kind).from_pretrained(base, **sizes), config
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.2)
        model.save_pretrained(tmp_path / "lora")
        return tmp_path / "lora"

    return save


@pytest.mark.usefixtures("double_losses")
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "merged"])
def test_an_adapter_alone_and_merged(alone: bool, adapter: Any, tmp_path: Path) -> None:
    where, file = adapter("GPT2LMHeadModel"), tokens(tmp_path / "tokens.bin")
    options = {"data": file, "length": 8, "dtype": "float64"}
    problem = ls.load_problem(f"hf:{where}", **options, adapter=alone)
    other = ls.load_problem(f"hf:{where}", **options, adapter=not alone)
    assert ls.evaluation(problem).loss == pytest.approx(ls.evaluation(other).loss, rel=1e-6)
    names = set(problem.space.names)
    assert all("lora_" in name for name in names) if alone else problem.space.n > 5000
    assert problem.parameters == ("adapter" if alone else "")
    assert problem.at(where).checkpoint_hash == problem.checkpoint_hash
    ((inputs, _),) = problem.batches
    model = problem.model
    check(problem, lambda: model(**inputs, labels=inputs["input_ids"]).loss)


@pytest.mark.usefixtures("double_losses")
def test_an_adapter_with_a_head_of_its_own(adapter: Any, tmp_path: Path) -> None:
    where = adapter("BertForSequenceClassification")
    file = rows(tmp_path / "text.csv", text=TEXTS, label=[0, 2, 1, 2, 0])
    problem = ls.load_problem(f"hf:{where}", data=file, adapter=True, dtype="float64")
    heads = [name for name in problem.space.names if "lora_" not in name]
    assert len(heads) == 2
    assert all("classifier.modules_to_save" in name for name in heads)
    ((inputs, target),) = problem.batches
    model = problem.model
    assert model(**inputs).logits.shape == (5, 3)
    check(problem, lambda: model(**inputs, labels=target).loss)


def test_the_parameters_of_an_adapter_are_chosen_by_its_name(
    adapter: Any, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter("GPT2LMHeadModel")
    tokens(tmp_path / "tokens.bin")
    options = ["--problem", "hf:lora", "--data", "tokens.bin", "--length", "8", "--json"]
    alone, merged = run("loss", *options, "--params", "adapter"), run("loss", *options)
    assert (alone.code, merged.code) == (0, 0), alone.err + merged.err
    sizes = [json.loads(ran.out)[0]["provenance"]["n_parameters"] for ran in (alone, merged)]
    assert sizes[0] == 2 * 2 * (16 + 48) < sizes[1]
    ran = run("loss", *options, "--params", "adapter", "--problem", "hf:base")
    assert ran.code == 2
    assert "base holds no adapter (adapter_config.json), so --params adapter" in ran.err


# Folders of accelerate


@pytest.mark.parametrize("safe", [True, False])
def test_a_state_that_accelerate_saves(safe: bool, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    states = pytest.importorskip("accelerate.state")
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    trained, fresh = nn.Linear(3, 2), nn.Linear(3, 2)
    accelerator = accelerate.Accelerator(cpu=True)
    try:
        prepared = accelerator.prepare(trained, torch.optim.Adam(trained.parameters()))
        prepared[0](x).sum().backward()
        prepared[1].step()
        accelerator.save_state(str(tmp_path / "state"), safe_serialization=safe)
    finally:
        for state in (states.AcceleratorState, states.GradientState, states.PartialState):
            state._reset_state()
    problem = Problem(fresh, nn.MSELoss(), (x, x[:, :2])).at(tmp_path / "state")
    assert torch.equal(problem.state()["weight"], trained.weight)
    expected = nn.functional.mse_loss(trained(x), x[:, :2])
    assert ls.evaluation(problem).loss == pytest.approx(float(expected.detach()), rel=1e-6)


# Lightning

MODULE = """
import torch
from torch import nn
import lightning

X = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
Y = (X.sum(1) > 0).long()


class Module(lightning.LightningModule):
    def __init__(self, width, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return {"loss": loss, "epoch": self.current_epoch}

    def validation_step(self, batch):
        return nn.functional.mse_loss(self.net(batch[0])[:, 0], batch[1].to(batch[0].dtype))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.validation_step(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Other(lightning.LightningModule):
    def __init__(self, width=3):
        super().__init__()
        self.other = nn.Linear(3, width)


class Bare(Module):
    def __init__(self, network, width=4):
        super().__init__(width)


class Data(lightning.LightningDataModule):
    def __init__(self, size=4):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        self.data = torch.utils.data.TensorDataset(X, Y)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.data, self.hparams.size, shuffle=True)

    def val_dataloader(self):
        return [torch.utils.data.DataLoader(self.data, self.hparams.size)]

    test_dataloader = val_dataloader


class Both(Module):
    setup, train_dataloader = Data.setup, lambda self: torch.utils.data.DataLoader(self.data, 5)
"""


@pytest.fixture
def lit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that was trained for two steps, beside its checkpoint last.ckpt."""
    lightning = pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lit_module.py").write_text(MODULE)
    import lit_module  # type: ignore[import-not-found]

    torch.manual_seed(0)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=2, limit_val_batches=0, enable_checkpointing=False, **quiet
    )
    trainer.fit(lit_module.Module(width=4), datamodule=lit_module.Data())
    trainer.save_checkpoint("last.ckpt")
    yield lit_module
    del sys.modules["lit_module"]


LIT = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*num_workers")


@LIT
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_module_of_lightning_with_its_data(split: str, lit: Any) -> None:
    options = {"checkpoint": "last.ckpt", "split": split, "dtype": "float64"}
    problem = ls.load_problem("lightning:lit_module.Module,lit_module.Data", **options)
    assert problem.batches.n_batches == 3  # of 4 examples, in the order of the data
    assert torch.equal(next(iter(problem.batches))[0], lit.X[:4].double())
    module, batch = problem.model, (lit.X.double(), lit.Y)

    def loss() -> Tensor:
        output = module.net(batch[0])  # type: ignore[operator]
        if split == "train":
            return nn.functional.cross_entropy(output, batch[1])
        return nn.functional.mse_loss(output[:, 0], batch[1].double())

    check(problem, loss)


@LIT
def test_one_command_measures_a_checkpoint_of_lightning(lit: Any, run: Any) -> None:
    ran = run(
        "loss", "last.ckpt", "--problem", "lightning:lit_module.Module,lit_module.Data", "--json"
    )
    assert ran.code == 0, ran.err
    module = lit.Module.load_from_checkpoint("last.ckpt", weights_only=True)
    expected = nn.functional.cross_entropy(module.net(lit.X), lit.Y)
    assert json.loads(ran.out)[0]["loss"] == pytest.approx(float(expected.detach()), rel=1e-6)
    ran = run("loss", "last.ckpt", "--problem", "lightning:lit_module.Both")  # its own dataloader
    assert ran.code == 0, ran.err
    ran = run("loss", "--problem", "lightning:lit_module.Module")
    assert ran.code == 2
    assert "Missing argument '[NAME=]CHECKPOINT...'" in ran.err
    with pytest.raises(
        InvalidArgumentError, match=r"needs a .ckpt file, which holds the hyper-par"
    ):
        ls.load_problem("lightning:lit_module.Module")


@LIT
def test_the_data_module_that_lightning_cli_names(lit: Any) -> None:
    saved = torch.load("last.ckpt", weights_only=True)
    saved["datamodule_hyper_parameters"] = {"_class_path": "lit_module.Data", "size": 5}
    torch.save(saved, "cli.ckpt")
    problem = ls.load_problem("lightning:lit_module.Module", checkpoint="cli.ckpt")
    assert [len(batch[0]) for batch in problem.batches] == [5, 5]


@LIT
def test_only_a_mean_of_lightning_has_no_fisher_matrix(lit: Any) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(lit.X, lit.Y), 4)
    problem = Problem.from_lightning(lit.Module(4), loader, step="validation_step")
    with pytest.raises(LossError, match="needs the loss of each example"):
        ls.top_eigenpairs(problem, 1, operator="fisher")


@LIT
@pytest.mark.parametrize(
    ("classes", "split", "message"),
    [
        ("lit_nowhere.Module", "train", "there is no module 'lit_nowhere' to import"),
        ("Module", "train", "there is no module 'Module' to import; give package.Class"),
        ("lit_module.Modul", "train", r"has no LightningModule .* called Modul \(nearest: Module"),
        ("lit_module.Other", "train", "holds the weights of another class than Other: Missing key"),
        ("lit_module.Bare", "train", r"does not hold all that Bare is built from .*'network'"),
        ("lit_module.Module", "train", "train_dataloader"),
        ("lit_module.Module,lit_module.Data", "test", "test_step of Module returned NoneType"),
        ("lit_module.Module,lit_module.Data", "tset", "unknown split 'tset' .*nearest: test"),
    ],
)
def test_what_lightning_cannot_load(classes: str, split: str, message: str, lit: Any) -> None:
    def measure() -> None:
        ls.evaluation(ls.load_problem(f"lightning:{classes}", checkpoint="last.ckpt", split=split))

    with pytest.raises(LandscapeError, match=message):
        measure()


@LIT
def test_a_module_that_optimises_by_hand_is_refused(lit: Any) -> None:
    module = lit.Module(4)
    module.automatic_optimization = False
    with pytest.raises(ProblemError, match=r"Module optimises by hand"):
        Problem.from_lightning(module, [(lit.X, lit.Y)])
    with pytest.raises(ProblemError, match="expected a LightningModule with training_step, got a"):
        Problem.from_lightning(nn.Linear(3, 2), [(lit.X, lit.Y)])
    with pytest.raises(InvalidArgumentError, match="unknown step 'step'"):
        Problem.from_lightning(module, [(lit.X, lit.Y)], step="step")


@LIT
def test_hyper_parameters_that_would_run_code_are_refused(lit: Any) -> None:
    saved = torch.load("last.ckpt", weights_only=True)
    saved["hyper_parameters"]["lr"] = pickle.Pickler
    torch.save(saved, "bad.ckpt")
    with pytest.raises(CheckpointError, match="--unsafe-pickle"):
        ls.load_problem("lightning:lit_module.Module,lit_module.Data", checkpoint="bad.ckpt")
    torch.save({"state_dict": saved["state_dict"]}, "plain.pt")
    with pytest.raises(CheckpointError, match="is no checkpoint of Lightning"):
        ls.load_problem("lightning:lit_module.Module,lit_module.Data", checkpoint="plain.pt")


# What cannot be read of a folder


Spoil = Callable[[Path, Path], dict[str, Any]]


def without(name: str) -> Spoil:
    def spoil(where: Path, data: Path) -> dict[str, Any]:
        for file in where.glob(name):
            file.unlink()
        return {}

    return spoil


def with_config(**settings: Any) -> Spoil:
    def spoil(where: Path, data: Path) -> dict[str, Any]:
        held = json.loads((where / "config.json").read_text())
        (where / "config.json").write_text(json.dumps(held | settings))
        return {}

    return spoil


def with_data(name: str, text: str, **options: Any) -> Spoil:
    def spoil(where: Path, data: Path) -> dict[str, Any]:
        data.with_name(name).write_text(text)
        return {"data": data.with_name(name), **options}

    return spoil


def with_ids(name: str, ids: list[int], dtype: str = "<u2", **options: Any) -> Spoil:
    def spoil(where: Path, data: Path) -> dict[str, Any]:
        made = np.array(ids, dtype)
        np.save(data.with_name(name), made) if name[-1] == "y" else made.tofile(
            data.with_name(name)
        )
        return {"data": data.with_name(name), **options}

    return spoil


def options_of(**options: Any) -> Spoil:
    return lambda where, data: options


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("config.json"), "holds no config.json: give a folder of save_pre"),
        (without("*.safetensors"), r"is not read by its library: OSError: .*model"),
        (without("[tv]*"), "hold no tokenizer: write it there by tokenizer.save_p"),
        (with_config(n_embd=8), "is not read by its library: RuntimeError"),
        (with_config(n_layer=3), r"holds no weights for .*h\.2\.attn.* GPT2LMHead"),
        (with_config(architectures=["T5Model"]), "T5Model.* has no head whose task is"),
        (with_config(architectures=None), "no architectures.* has no head whose task"),
        (
            with_config(auto_map={"AutoModelForCausalLM": "own.Mine"}, model_type="mine"),
            "is not read by its library: ValueError",
        ),
        (
            options_of(task="token-classification"),
            r"GPT2LMHeadModel.* has a head for causal-lm, not for token-classification: leave",
        ),
        (options_of(task="causal"), "unknown task 'causal' .*causal-lm"),
        (options_of(adapter=True), "holds no adapter"),
        (options_of(data=None), "has no data of the split 'train': give"),
        (options_of(data={"test": "x"}), "no data of the split 'train'"),
        (options_of(data="nothing.bin"), "no such file of data: nothing.bin"),
        (options_of(checkpoint="x"), "has no checkpoint to choose"),
        (with_data("t.csv", "txet\na b\n"), r"no column 'text' \(nearest: txet\); its col"),
        (with_data("t.csv", "text\n"), "t.csv has no rows"),
        (with_data("t.txt", "a b"), "data are a .bin or .npy file of token ids, a .csv"),
        (with_ids("t.bin", [1, 2, 3]), "holds 3 tokens, and a sequence has 16: give --l"),
        (with_ids("t.bin", [1, 2, 3, 400] * 4), r"outside of the model's 19 .*: 400; are"),
        (with_ids("t.npy", [1, 2, 3, -4] * 4, "<i8"), r"outside of the model's 19 .*: -4"),
        (with_ids("t.bin", [1, 2, 3, 4] * 4, "<u4"), "every second token .* is 0: it is"),
    ],
)
def test_what_is_wrong_in_a_folder_or_its_data(
    spoil: Spoil, message: str, folder: Any, tmp_path: Path
) -> None:
    where = folder("GPT2LMHeadModel")
    options = {"data": rows(tmp_path / "text.csv", text=TEXTS)} | spoil(where, tmp_path / "data")

    def measure() -> None:
        _ = ls.load_problem(f"hf:{where}", **options).batches

    with pytest.raises(LandscapeError, match=message):
        measure()


@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        ("Sequence", {"lable": [0]}, r"no column 'label' \(nearest: lable\); its columns are text"),
        ("Sequence", {"label": ["maybe"]}, "unknown label 'maybe'.*; known: LABEL_0, LABEL_1"),
        ("Sequence", {"label": [2]}, "labels out of range: the model has 2 outputs"),
        ("Token", {"label": [0]}, "token-classification needs lists of words"),
        ("Token", {"text": [["a"]], "label": [[2]]}, "labels outside of the model's 2"),
    ],
)
def test_labels_that_do_not_fit(
    kind: str, columns: dict[str, Any], message: str, folder: Any, tmp_path: Path
) -> None:
    where = folder(f"BertFor{kind}Classification")
    file = rows(tmp_path / "text.jsonl", **{"text": ["a b"], **columns})

    def measure() -> None:
        ls.evaluation(ls.load_problem(f"hf:{where}", data=file))

    with pytest.raises(LandscapeError, match=message):
        measure()
    with pytest.raises(LandscapeError, match=r"holds no labels for .*: give a .csv or .jsonl"):
        ls.load_problem(f"hf:{where}", data=tokens(tmp_path / "t.bin"))


def test_a_base_of_an_adapter_that_is_not_there(adapter: Any, tmp_path: Path) -> None:
    where = adapter("GPT2LMHeadModel")
    (tmp_path / "base").rename(tmp_path / "moved")
    match = r"is an adapter of .*base, .*no such folder.*\. Write its folder into adapter_config"
    with pytest.raises(CheckpointError, match=match):
        ls.load_problem(f"hf:{where}", data="x.bin")


# The hub


def test_the_hub_is_asked_only_for_what_is_no_folder(
    folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    where, file = folder("GPT2LMHeadModel"), tokens(tmp_path / "tokens.bin")
    later = folder("GPT2LMHeadModel", "checkpoint-20", seed=1)
    asked = []

    def snapshot_download(name: str, *, revision: str | None, **options: Any) -> str:
        asked.append((name, revision))
        if name != "org/model":
            raise OSError("no network\nat all")
        return str(later if revision == "step20" else where)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    problem = ls.load_problem("hf:org/model@step10", data=file, length=8)
    other = problem.at("hf:org/model")
    assert asked == [("org/model", "step10"), ("org/model", None)]
    assert problem.checkpoint_hash == other.checkpoint_hash
    assert (problem.name, other.name) == ("model@step10", "model")
    match = r"^org/none is no folder here, and is not had from the hub: no network$"
    with pytest.raises(ProblemError, match=match):
        ls.load_problem("hf:org/none", data=file)
    asked.clear()
    monkeypatch.chdir(tmp_path)
    steps = ["--run", "pythia=hf:org/model@step10,hf:org/model@step20"]
    options = ["--problem", "hf:org/model@step10", "--data", str(file), "--length", "8"]
    ran = run("loss", *options, *steps)
    assert ran.code == 0, ran.err
    assert {revision for _, revision in asked} == {"step10", "step20"}
    with ls.Study("landscape.db") as study:
        assert study.runs() == {"pythia": {"model@step10": 10.0, "model@step20": 20.0}}
    asked.clear()
    (tmp_path / "run").mkdir()
    for name in ("run/checkpoint-7", "nowhere", "/no/such/folder"):
        with pytest.raises(ProblemError, match="no such folder of a model"):
            ls.load_problem(f"hf:{name}", data=file)
    assert asked == []


# In Python


@pytest.mark.usefixtures("double_losses")
@pytest.mark.parametrize("form", ["loader", "batches", "rows"])
def test_a_model_of_transformers_with_its_data(form: str, transformers: Any) -> None:
    torch.manual_seed(0)
    model = network(transformers, "GPT2LMHeadModel").double()
    ids = torch.randint(5, N_WORDS, (6, 7), generator=torch.Generator().manual_seed(0))
    examples = [{"input_ids": row, "labels": row, "name": "x"} for row in ids]
    data: Any = examples if form == "rows" else [{"input_ids": ids}]
    if form == "loader":
        data = torch.utils.data.DataLoader(examples, 4, shuffle=True)  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in model.train().state_dict().items()}
    problem = Problem.from_transformers(model, data)
    assert problem.batches.n_examples == 6
    assert all(part.training for part in model.modules())
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    check(problem, lambda: model(input_ids=ids, labels=ids).loss)


@pytest.mark.usefixtures("double_losses")
def test_the_layers_of_a_model_of_transformers_are_checkpointed(transformers: Any) -> None:
    torch.manual_seed(0)
    model = network(transformers, "GPT2LMHeadModel").double()
    assert model.config.use_cache  # of keys and values, which a layer adds to as it is evaluated
    ids = torch.randint(5, N_WORDS, (6, 7), generator=torch.Generator().manual_seed(0))
    problem = Problem.from_transformers(model, [{"input_ids": ids}])
    expected = ls.top_eigenpairs(problem, tol=1e-6)
    found = ls.top_eigenpairs(problem, tol=1e-6, products="checkpointed")
    assert "blocks checkpointed" in found.products
    assert found.values == pytest.approx(expected.values, rel=1e-10)
    assert model.config.use_cache


def test_a_model_with_another_loss_is_refused(transformers: Any) -> None:
    class Regularised(transformers.GPT2LMHeadModel):  # type: ignore[name-defined, misc]
        def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
            output = super().forward(input_ids, labels=labels, **kwargs)
            if labels is not None:
                output.loss = output.loss + 0.1 * output.logits.square().mean()
            return output

    model = Regularised(network(transformers, "GPT2LMHeadModel").config)
    model.lm_head.weight.data.mul_(10)
    data = [{"input_ids": torch.tensor([[5, 6, 7]])}]
    with pytest.raises(LossError, match=r"loss that Regularised .*, and not the .* of causal-lm"):
        Problem.from_transformers(model, data)
    with pytest.raises(ProblemError, match="expected a model of transformers, got a Linear"):
        Problem.from_transformers(nn.Linear(3, 2), data)
    with pytest.raises(InvalidArgumentError, match="has a head for causal-lm, not for masked-lm"):
        Problem.from_transformers(model, data, task="masked-lm")
    bert = network(transformers, "BertForMaskedLM")
    with pytest.raises(DataError, match="a batch has no labels, only input_ids: masked-lm needs"):
        Problem.from_transformers(bert, data)
    with pytest.raises(DataError, match="a batch has no input_ids, only text: tokenise"):
        Problem.from_transformers(bert, [{"text": ["a"]}])


def test_a_folder_of_datasets(folder: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    where = folder("BertForSequenceClassification")
    table = pytest.importorskip("pyarrow").table({"text": TEXTS, "label": [0, 1, 1, 0, 1]})
    parts = {
        split: datasets.Dataset(datasets.table.InMemoryTable(table[:n]), fingerprint=split)
        for split, n in {"train": 5, "test": 3}.items()
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    parts["train"].save_to_disk(str(tmp_path / "one"))
    csv = rows(tmp_path / "text.csv", text=TEXTS, label=[0, 1, 1, 0, 1])
    found = [
        ls.load_problem(f"hf:{where}", data=data).batches.fingerprint
        for data in (csv, tmp_path / "one", tmp_path / "both")
    ]
    assert len(set(found)) == 1
    files = {"test": tmp_path / "both"}
    assert ls.load_problem(f"hf:{where}", data=files, split="test").batches.n_examples == 3
    with pytest.raises(InvalidArgumentError, match="unknown split 'tset'"):
        ls.load_problem(f"hf:{where}", data={"tset": tmp_path / "both"}, split="tset")


@pytest.mark.usefixtures("gpt2")
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("odd.bin", b"123", "holds no token ids"),
        ("empty.bin", b"", "holds no token ids"),
        ("broken.jsonl", b'{"text": "a"}\n{', "cannot be read"),
        ("lists.jsonl", b"[1, 2]\n", "each line is one row"),
        ("none.npy", b"no array", "holds no token ids"),
    ],
)
def test_files_that_hold_no_data_are_named(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{words}"):
        ls.load_problem("hf:run/checkpoint-10", data=str(tmp_path / name))


@pytest.mark.usefixtures("gpt2")
def test_token_ids_are_whole_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "real.npy", np.ones(100))
    with pytest.raises(DataError, match="numbers of type float64, and token ids are whole"):
        ls.load_problem("hf:run/checkpoint-10", data=str(tmp_path / "real.npy"))


def test_positions_of_roberta_begin_behind_the_padding(transformers: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = transformers.RobertaConfig(
        vocab_size=N_WORDS, num_attention_heads=2, max_position_embeddings=16, pad_token_id=1,
        is_decoder=True, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.RobertaForCausalLM(config).save_pretrained(tmp_path / "roberta")
    ids = np.random.RandomState(0).randint(2, N_WORDS, size=100)  # but for the padding
    np.save(tmp_path / "ids.npy", ids)
    problem = ls.load_problem(f"hf:{tmp_path / 'roberta'}", data=str(tmp_path / "ids.npy"))
    lengths = {t.shape[1] for batch in problem.batches for t in tensors_in(batch) if t.ndim == 2}
    assert lengths == {14}
    assert np.isfinite(ls.evaluation(problem).loss)


def test_the_entries_of_a_batch_have_one_order_in_every_process(gpt2: Path) -> None:
    """A set of names has another order in each process, and the data's digest is of that order."""
    assert gpt2.exists()
    problem = ls.load_problem("hf:run/checkpoint-10", data="tokens.bin", length=8)
    (names, *_) = [list(part) for part in next(iter(problem.batches)) if isinstance(part, dict)]
    assert names == sorted(names)
