from hypothesis import given
from hypothesis import strategies as st

from lorap_exp.reporting.front import front

numbers = st.floats(-5, 5).map(lambda value: round(value, 1))


def test_the_front_of_a_few_points() -> None:
    assert front([]) == []
    assert front([(1, 1)]) == [0]
    assert front([(3, 1), (1, 3), (2, 2), (2, 5), (4, 4)]) == [1, 2, 0]
    assert front([(1, 2), (1, 1), (1, 1), (2, 1)]) == [1], (
        "equal in one number, beaten in the other"
    )


@given(st.lists(st.tuples(numbers, numbers), max_size=12))
def test_no_point_of_the_front_is_dominated_and_every_other_is(
    points: list[tuple[float, float]],
) -> None:
    def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] <= other[0] and one[1] <= other[1]

    chosen = {points[at] for at in front(points)}
    assert chosen == {p for p in points if not any(dominates(q, p) for q in points)}
    assert len(chosen) == len(front(points))
