"""What is measured: a model with its weights, a loss, and data."""

from landscape.problem.problem import Problem
from landscape.problem.task import BUILTIN, Task, load_problem, load_task

__all__ = ["BUILTIN", "Problem", "Task", "load_problem", "load_task"]
