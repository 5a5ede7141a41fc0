"""A classifier: replace the lines marked "yours".

Then: landscape sharpness CHECKPOINT --problem THIS_FILE
"""

import torch
from torch import nn


def model() -> nn.Module:
    """Build the network; its weights come from the checkpoint."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))  # yours


def data(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and labels of a split: tensors, a Dataset or a DataLoader."""
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)
    inputs = torch.randn(256, 1, 28, 28, generator=generator)  # yours
    labels = torch.randint(10, (256,), generator=generator)  # yours
    return inputs, labels


loss = nn.CrossEntropyLoss()


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return 1 for each example that is classified correctly."""
    return (output.argmax(1) == target).float()


metrics = {"accuracy": accuracy}
