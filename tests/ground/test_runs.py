"""How long something held without a break."""

import numpy as np
import pytest

from thousandfold.ground.runs import longest_run


@pytest.mark.parametrize(
    ("held", "expected"), [("", 0), ("0", 0), ("1", 1), ("0110", 2), ("1101", 2), ("10111", 3), ("1111", 4)]
)
def test_the_longest_run(held: str, expected: int) -> None:
    assert longest_run(np.array([each == "1" for each in held])) == expected
