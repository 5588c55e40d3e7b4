"""How the learning rate goes: progress of the run, 0 to 1 -> share of the recipe's peak."""

import math


def cosine(progress: float) -> float:
    """Linear warm-up over the first 2 %, then a cosine to a hundredth of the peak."""
    if progress < 0.02:
        return max(progress / 0.02, 0.01)
    wave = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 0.02) / 0.98)))
    return 0.01 + 0.99 * wave


def constant(_progress: float) -> float:
    """Jin et al.: 1e-4 for all epochs."""
    return 1.0


def tenth_after_two_thirds(progress: float) -> float:
    """DLN: divided by ten once, after two thirds of the run.

    The published code asks for it when the epoch is a multiple of 500 * 2/3 = 333.33: never.
    """
    return 0.1 if progress >= 2 / 3 else 1.0


def tenth_every_third(progress: float) -> float:
    """Ri et al.: divided by ten every 50k of 150k steps."""
    return 0.1 ** ((progress >= 1 / 3) + (progress >= 2 / 3))


def tenth_at_quarter_and_half(progress: float) -> float:
    """NEID: divided by ten at epochs 500 and 1000 of 2000."""
    return 0.1 ** ((progress >= 1 / 4) + (progress >= 1 / 2))


def linear_second_half(progress: float) -> float:
    """EnlightenGAN: constant for 100 epochs, then linearly to 0 over 100."""
    return min(1.0, 2 * (1 - progress))
