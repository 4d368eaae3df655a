"""The Pareto front: what no other point beats in both of two numbers."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that none dominates, by rising first number; smaller is better.

    A point dominates another that it equals in one number and beats in the other. Of equal points
    the first stays.
    """
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda at: (*points[at], at)):
        if not found or points[index][1] < points[found[-1]][1]:
            found.append(index)
    return found
