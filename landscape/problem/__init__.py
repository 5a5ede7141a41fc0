"""What is measured: a model with its weights, a loss, and data."""

from landscape.problem.chunks import chunked_cross_entropy
from landscape.problem.problem import Problem, check_problem
from landscape.problem.task import Task, load_problem, load_task

__all__ = [
    "Problem",
    "Task",
    "check_problem",
    "chunked_cross_entropy",
    "load_problem",
    "load_task",
]
