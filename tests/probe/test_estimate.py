"""Arithmetic of estimates."""

import pytest

from flerm_fx import Estimate


@pytest.mark.parametrize("factor", [3.0, -3.0])
def test_an_estimate_scales_with_its_update(factor: float) -> None:
    one = Estimate(2.0, 0.5, "sampled", 4, "a note")
    assert one * factor == Estimate(6.0, 1.5, "sampled", 4, "a note")
    assert (one * factor).relative_error == one.relative_error
