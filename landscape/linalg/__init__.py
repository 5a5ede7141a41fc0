"""Top eigenpairs of a symmetric operator that is known only by its products with vectors.

Nothing here knows of networks or data: a function v ↦ Hv, its size, a dtype and a device.
"""

from landscape.linalg.krylov import EigenSolution
from landscape.linalg.lanczos import lanczos
from landscape.linalg.power import power_iteration

__all__ = ["EigenSolution", "lanczos", "power_iteration"]
