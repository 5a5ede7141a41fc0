"""Is this checkpoint, and this problem, set up so that its sharpness can be trusted?"""

from landscape.doctor.diagnosis import PRICE, diagnose

__all__ = ["PRICE", "diagnose"]
