"""Networks drawn at random: matched as built by names, and without them not wrong unsaid."""

from collections.abc import Mapping

import pytest
import torch

from tests.cases import slow
from zoo.depth.inputs import entries
from zoo.drawn import Drawn, Nameless, Names, Network, drawn, main, outcome

FEW, MANY = 3, 60


def test_what_is_drawn_depends_on_seed_and_number() -> None:
    one, again, more, other = (list(drawn(*of)) for of in ((0, 4), (0, 4), (0, 8), (1, 4)))
    assert one == again == more[:4]
    assert [network.plan for network in one] != [network.plan for network in other]
    for network in more:
        pairs = list(zip(network.base, network.target, strict=True))
        assert all(shallow <= deep for shallow, deep in pairs)
        assert any(shallow < deep for shallow, deep in pairs)


def test_without_names_it_is_the_same_network() -> None:
    for one in drawn(0, FEW):
        network = Network(one.plan, one.base)
        expected = network(entries())
        nameless = Nameless(network)
        assert torch.equal(nameless(entries()), expected)
        assert [name for name, _ in nameless.named_parameters()] == list(nameless.names.values())


@pytest.mark.parametrize("count", [FEW, slow(MANY)])
def test_with_names_all_are_matched_as_built(count: int) -> None:
    verdicts = {one.number: outcome(one, "both") for one in drawn(0, count)}
    assert verdicts == dict.fromkeys(verdicts, ("right", ""))


@pytest.mark.parametrize("count", [FEW, slow(MANY)])
@pytest.mark.parametrize("names", ["base", "none"])
def test_without_names_none_is_wrong_without_a_word(names: Names, count: int) -> None:
    verdicts: Mapping[Drawn, str] = {one: outcome(one, names)[0] for one in drawn(0, count)}
    assert [one for one, verdict in verdicts.items() if verdict == "wrong"] == []
    right = sum(verdict in ("right", "in doubt") for verdict in verdicts.values())
    assert right >= 0.75 * count


def test_the_command_counts_and_its_exit_code_says_if_any_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--count", "2", "--names", "both"]
    assert main(options) == 0
    assert capsys.readouterr().out.startswith("names in both: right: 2; false alarms: 0 of 2")
    monkeypatch.setattr("zoo.drawn.outcome", lambda *_: ("wrong", "made up"))
    assert main([*options, "--only", "1"]) == 1
    assert "wrong: made up" in capsys.readouterr().out
