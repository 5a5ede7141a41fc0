"""A causal language model of Hugging Face: replace the lines marked "yours".

A folder of the model is a checkpoint: landscape eigs path/to/folder --problem THIS_FILE
"""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM


def model() -> nn.Module:
    """Build the network; its weights come from the checkpoint."""
    config = AutoConfig.for_model("gpt2", n_layer=2, n_head=2, n_embd=32, vocab_size=100)  # yours
    return AutoModelForCausalLM.from_config(config)


def data(split: str) -> list[dict[str, torch.Tensor]]:
    """Return batches as the model takes them; labels of −100 count nothing."""
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)
    tokens = torch.randint(100, (32, 16), generator=generator)  # yours: the tokenizer's output
    mask = torch.ones_like(tokens)
    labels = tokens.masked_fill(mask == 0, -100)
    names = ("input_ids", "attention_mask", "labels")
    parts = zip(tokens.split(8), mask.split(8), labels.split(8), strict=True)
    return [dict(zip(names, part, strict=True)) for part in parts]


def batch_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Return the summed loss of the batch and its number of predicted tokens."""
    n = int((batch["labels"][:, 1:] != -100).sum())
    return model(**batch).loss * n, n
