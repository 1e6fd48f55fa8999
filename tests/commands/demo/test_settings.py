"""Settings are checked before anything runs."""

from typing import Any

import pytest

from flerm_fx.commands.demo.settings import Settings, parse_rates
from flerm_fx.commands.demo.train import Task
from flerm_fx.errors import InputError


def test_defaults_are_nine_rates_an_octave_apart() -> None:
    settings = Settings()
    assert len(settings.rates) == 9
    assert all(b == 2 * a for a, b in zip(settings.rates, settings.rates[1:], strict=False))
    assert settings.large_width == 4 * settings.base_width
    assert settings.rates == parse_rates("-10:-2")


@pytest.mark.parametrize(
    ("text", "octaves"),
    [("-3:0", [-3, -2, -1, 0]), ("-2:-1:0.5", [-2, -1.5, -1]), ("-2:1.5:2", [-2, 0])],
)
def test_rates_are_read_in_octaves(text: str, octaves: list[float]) -> None:
    assert parse_rates(text) == tuple(2.0**octave for octave in octaves)


@pytest.mark.parametrize(
    "text", ["", "1", "-2:-10", "a:b", "-3:0:0", "-3:0:-1", "1:2:3:4", "nan:1", "0:inf", "0:1e9"]
)
def test_rates_that_cannot_be_read_are_quoted(text: str) -> None:
    with pytest.raises(InputError, match=r"--rates is .*LOW:HIGH") as raised:
        parse_rates(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 1}, "--width is 1; it must be 2 or more"),
        ({"base_width": 8}, "--base-width is 8; it must be 16 or more"),
        ({"base_width": 40}, "--base-width is 40; it must be a multiple of 16"),
        ({"depth": 0}, "--depth is 0"),
        ({"workers": 0}, "--workers is 0"),
        ({"norm": "layer"}, "--norm is 'layer'; it must be one of pre, post, post-pre-residual"),
        ({"rates": (0.1, 0.2)}, "--rates gives 2 learning rates; an optimum needs 3 or more"),
        ({"task": Task(steps=0)}, "--steps is 0"),
        ({"task": Task(batch=1)}, "--batch is 1; it must be 2 or more"),
        ({"task": Task(context=1)}, "--context is 1"),
        ({"task": Task(warmup=-1)}, "--warmup is -1"),
    ],
)
def test_a_bad_setting_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        Settings(**changes)
    assert message in str(raised.value)
