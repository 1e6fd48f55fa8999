"""A few architectures of the zoo through all its stages; `make zoo` runs the rest."""

import pytest

from tests.cases import slow
from zoo.registry import architectures, chosen
from zoo.stages import STAGES, run

SOME = (
    "batch-norm",
    "branching",
    "custom-function",
    slow("detached"),
    slow("lstm"),
    slow("nested-no-grad"),
    "residual",
    slow("several-outputs"),
    slow("unet"),
    "weight-norm",
)


@pytest.mark.parametrize("name", SOME)
def test_every_stage_passes(name: str) -> None:
    results = list(run(architectures()[name], lambda stage: None))
    assert [result.stage for result in results] == list(STAGES)
    for result in results:
        assert result.status in ("passed", "not defined"), (result.stage, result.message)


def test_a_family_is_chosen_by_its_name() -> None:
    assert {architecture.family for architecture in chosen(["audio", "oddities"])} == {
        "audio",
        "oddities",
    }
    assert [architecture.name for architecture in chosen(["gpt2", "lstm"])] == ["gpt2", "lstm"]
    assert len(chosen([])) == len(architectures())
    with pytest.raises(KeyError):
        chosen(["gpt17"])
