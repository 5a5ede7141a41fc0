"""Work for processes: a module that is loaded at once, for every process loads it anew."""

from __future__ import annotations

import os
import signal
import time

import runs

from landscape.errors import InvalidArgumentError
from landscape.loss import evaluation
from landscape.results import Evaluation


def held_out_loss(trained: runs.Trained) -> list[Evaluation]:
    return [evaluation(trained.problem(split="test"))]


def patient(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def angry(number: int) -> int:
    if number == 0:
        message = "no zero, please"
        raise InvalidArgumentError(message)
    time.sleep(60)
    return number


def suicidal(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
