"""The size of an output is that of what the weights make of it, whatever masks the rest."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flerm_fx
from flerm_fx.model.inputs import difference
from flerm_fx.start.output_size import output_rms
from tests.cases import features, random_updates

EPSILON = torch.finfo(torch.float32).eps
LEAST = torch.finfo(torch.float32).min
MASKS = [-math.inf, LEAST, -1e9, -1e4]

XS = [features(16, 8) + 0.1 * i for i in range(4)]
YS = [torch.arange(16) % 3 for _ in range(4)]


class Masked(nn.Module):
    """Logits of which the last, and another where the input says so, are masked."""

    def __init__(
        self, width: int = 8, value: float = -math.inf, how: str = "put", gain: float = 1.0
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, width), nn.Linear(width, 5)
        self.value, self.how, self.gain = value, how, gain

    def hidden(self, x: Tensor) -> Tensor:
        last = torch.arange(5) == 4
        return last | ((torch.arange(5) == 3) & (x[:, :1] > 0))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.second(self.first(x).tanh()) * self.gain
        if self.how == "put":
            return logits.masked_fill(self.hidden(x), self.value)
        return logits + torch.where(self.hidden(x), self.value, 0.0)


def recorded(model: nn.Module, **options: Any) -> flerm_fx.BaseProfile:
    """A profile after some training, of which nothing may fail in the end."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with flerm_fx.record(model, optimizer, XS, YS, method="exact", **options) as recorder:
        for x, y in zip(XS, YS, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return recorder.profile


@pytest.mark.parametrize("how", ["put", "added"])
@pytest.mark.parametrize("value", MASKS)
def test_an_output_has_one_size_whatever_masks_it(value: float, how: str) -> None:
    model = Masked(8, value, how)
    profile = recorded(model, settle=2)
    plain = Masked(8, 0.0, "added")
    logits = plain(XS[1]).detach()  # the first step is taken on the second batch
    expected = logits[~plain.hidden(XS[1])].square().mean().sqrt().item()
    # An added -10000 leaves logits beside it 10 bits of a float32, where they do not count; the
    # gradients of what it hides are exp(-10000) = 0.
    assert profile.output_rms[0] == pytest.approx(expected, rel=16 * EPSILON)
    # A target with larger outputs has further to go, by the same whatever masks them.
    reference = recorded(Masked(8, LEAST, how), settle=2)
    large = {"gain": 8.0, "value": value, "how": how}
    with pytest.warns(UserWarning, match="larger than training makes them"):
        found = flerm_fx.compile(Masked(16, **large), profile, method="exact")  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="larger than training makes them"):
        wanted = flerm_fx.compile(
            Masked(16, LEAST, how, 8.0), reference, method="exact"
        ).multipliers
    for name, multiplier in wanted.items():
        assert found.multipliers[name] == pytest.approx(multiplier, rel=1e-4)


@pytest.mark.parametrize("value", MASKS)
def test_masked_outputs_are_compiled_in_every_form(value: float) -> None:
    profile = recorded(Masked(8, value))
    for emit in ("graph", "module", "param_groups"):
        compiled = flerm_fx.compile(Masked(16, value), profile, emit=emit)  # type: ignore[arg-type]
        assert all(check.passed for check in compiled.check())


def test_what_counts_as_made_by_the_weights() -> None:
    weights = {"w": torch.tensor([3.0, 4.0, 12.0]), "zero": torch.zeros(3), "n": torch.arange(3)}
    rms = math.sqrt((9 + 16 + 144) / 3)
    assert output_rms(lambda w: w["w"], weights) == pytest.approx(rms, rel=4 * EPSILON)
    # Behind a zero, as LoRA's B, what the weights make is there all the same.
    assert output_rms(lambda w: w["w"] * (1 + w["zero"]), weights) == pytest.approx(rms)
    assert output_rms(lambda w: w["zero"], weights) == 0.0
    # Of what is normalised, a common factor changes nothing.
    unit = output_rms(lambda w: w["w"] / w["w"].norm(), weights)
    assert unit == pytest.approx(1 / math.sqrt(3), rel=4 * EPSILON)
    # Sums of one sign do not move less than others.
    many = {"w": torch.ones(2**16)}
    assert output_rms(lambda w: w["w"].sum().reshape(1), many) == pytest.approx(2.0**16)
    # Constants, whichever they are, are no output; of these alone, there is none.
    for value in (*MASKS, 0.0, -1.0):
        joined = output_rms(lambda w, v=value: torch.cat([w["w"], torch.full((5,), v)]), weights)
        assert joined == pytest.approx(rms, rel=4 * EPSILON)
        assert output_rms(lambda w, v=value: torch.full((5,), v), weights) == 0.0
    # The square of a large output is no float32.
    large = {"w": torch.tensor([3e30, 4e30])}
    assert output_rms(lambda w: w["w"], large) == pytest.approx(5e30 / math.sqrt(2))
    coarse = {"w": torch.tensor([3.0, 4.0], dtype=torch.bfloat16)}
    hide = torch.tensor([0.0, -1e9], dtype=torch.bfloat16)
    assert output_rms(lambda w: w["w"], coarse) == pytest.approx(5 / math.sqrt(2))
    assert output_rms(lambda w: w["w"] + hide, coarse) == 3.0


def test_a_mask_does_not_hide_a_difference() -> None:
    for value in MASKS:
        one, other = torch.tensor([1.0, 2.0, value]), torch.tensor([1.0, 2.5, value])
        assert difference(one, other) == pytest.approx(0.2)
        assert difference(one, one) == 0.0
    assert math.isnan(difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, -math.inf])))


class Rolled(Masked):
    """Examples see the one before."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.second(self.first(x).tanh())
        return (logits + logits.roll(1, 0)).masked_fill(self.hidden(x), self.value)


@pytest.mark.parametrize("value", MASKS)
def test_coupling_is_found_beside_a_mask_and_not_because_of_one(value: float) -> None:
    for kind, note in ((Masked, ""), (Rolled, "examples influence each other (outputs differ")):
        model = kind(8, value)
        found = flerm_fx.measure(model, random_updates(model), XS[0], method="sampled", samples=2)
        assert {estimate.note[: len(note) or None] for estimate in found.values()} == {note}
