"""The loss at many weight vectors over one data set, in the fastest way that gives its numbers.

`choose_plan` finds the way for a model, its data and a machine; an `Engine` goes it.
"""

from landscape.engine.choosing import choose_plan
from landscape.engine.engine import Engine
from landscape.engine.plans import PLAIN, PRECISIONS, Plan

__all__ = ["PLAIN", "PRECISIONS", "Engine", "Plan", "choose_plan"]
