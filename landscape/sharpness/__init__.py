"""The sharpness term and its kin: how the loss rises around a checkpoint."""

from landscape.sharpness._average import (
    N_PROBES,
    SamplingOptions,
    average_profile,
    average_sharpness,
    check_profile,
)
from landscape.sharpness._ball import Ball
from landscape.sharpness._flatness import flatness
from landscape.sharpness._k_steps import STEPS, stepwise_sharpness
from landscape.sharpness._m_sharpness import PUBLISHED, m_sharpness
from landscape.sharpness._noise_scale import MOST_SIGMAS
from landscape.sharpness._profile import sharpness_profile
from landscape.sharpness._search import VERSION, n_vertices
from landscape.sharpness._worst_case import sharpness

__all__ = [
    "MOST_SIGMAS",
    "N_PROBES",
    "PUBLISHED",
    "STEPS",
    "VERSION",
    "Ball",
    "SamplingOptions",
    "average_profile",
    "average_sharpness",
    "check_profile",
    "flatness",
    "m_sharpness",
    "n_vertices",
    "sharpness",
    "sharpness_profile",
    "stepwise_sharpness",
]
