"""What theory calls a parameter, and the exponent that it has for it."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from flerm_fx.align.parameter_graph import capture_graph
from flerm_fx.capture.tracing import capture
from flerm_fx.laws.mup import kind_of, mup_exponent
from flerm_fx.recipe.update_rule import UpdateRule


class Net(nn.Module):
    """Convolutions one way and back, and a matrix that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3)
        self.up = nn.ConvTranspose2d(4, 6, 3)
        self.read = nn.Linear(6, 3)
        self.twice = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.read(self.up(self.down(x)).mean((2, 3)))
        return self.twice(torch.relu(self.twice(y)))


GRAPH = capture_graph(capture(Net(), torch.randn(2, 1, 6, 6)))


@pytest.mark.parametrize(
    ("name", "moved", "kind"),
    [
        ("down.weight", (0,), "input"),
        ("down.weight", (0, 1), "hidden"),
        ("up.weight", (0,), "output"),
        ("up.weight", (1,), "input"),
        ("read.weight", (1,), "output"),
        ("down.bias", (0,), "vector"),
        ("read.bias", (), None),
        ("twice.weight", (0, 1), None),
    ],
)
def test_kinds_follow_from_what_grows(name: str, moved: tuple[int, ...], kind: str | None) -> None:
    assert kind_of(GRAPH, name, moved) == kind


def test_exponents_of_theory() -> None:
    muon = partial(torch.optim.Muon, [torch.zeros(2, 2)])
    found = {
        optimizer: [
            mup_exponent(GRAPH, name, moved, UpdateRule.of(rule))
            for name, moved in (
                ("down.weight", (0,)),
                ("down.weight", (0, 1)),
                ("read.weight", (1,)),
            )
        ]
        for optimizer, rule in {
            "adam": torch.optim.Adam,
            "sgd": torch.optim.SGD,
            "muon": muon(),
            "muon as Adam": muon(adjust_lr_fn="match_rms_adamw"),
            "rprop": torch.optim.Rprop,
        }.items()
    }
    assert found == {
        "adam": [0.0, -1.0, -1.0],
        "sgd": [1.0, 0.0, -1.0],
        "muon": [None, 0.0, None],
        "muon as Adam": [None] * 3,
        "rprop": [None] * 3,
    }
