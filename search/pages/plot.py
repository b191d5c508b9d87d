"""A series of recalls as a plot, in the coordinates of an SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from storage.recall import RecallInfo

WIDTH, HEIGHT = 480, 200
LEFT, RIGHT, TOP, BOTTOM = 60, 16, 16, 36
"""Room around the plot, for what is written there."""
HIGHEST_FLOOR = 0.9
"""The axis begins here, or below where a measurement lies below."""
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True, slots=True)
class Dot:
    """One measurement and where it is drawn."""

    x: float
    y: float
    info: RecallInfo


@dataclass(frozen=True, slots=True)
class Tick:
    """A line across the plot, and the recall that it stands for."""

    y: float
    recall: float


@dataclass(frozen=True, slots=True)
class Plot:
    """What to draw.  Measurements stand side by side in their order, whatever time is between."""

    dots: tuple[Dot, ...]
    ticks: tuple[Tick, ...]

    @property
    def points(self) -> str:
        """Return the line through all dots, for a ``polyline``."""
        return " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in self.dots)


def recall_plot(series: Sequence[RecallInfo]) -> Plot:
    """Return the plot of a space's measurements, oldest first, at least one."""
    lowest = min(info.recall for info in series)
    floor = min(HIGHEST_FLOOR, math.floor(lowest * 10) / 10)
    step = next((step for step in STEPS if (1 - floor) / step <= 5 + 1e-9), STEPS[-1])
    n = math.floor((1 - floor) / step + 1e-9)
    recalls = [1 - step * at for at in range(n + 1)]

    def height(recall: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - recall) / (1 - floor)

    wide = WIDTH - LEFT - RIGHT
    gap = wide / max(len(series) - 1, 1)
    first = LEFT + (wide / 2 if len(series) == 1 else 0)
    return Plot(
        dots=tuple(
            Dot(first + gap * at, height(info.recall), info) for at, info in enumerate(series)
        ),
        ticks=tuple(Tick(height(recall), recall) for recall in recalls),
    )
