"""transformers' models under the recipe: shapes, roles, rates by hand, and the runner's work."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.axes import AXES
from experiments.methods import METHODS
from experiments.rules_by_hand import PLACES, mup_rates, roles
from experiments.runner import applies
from experiments.store import Run
from experiments.work import Compiling, Recording, Training, build
from tests.experiments.small import inputs, tiny


@pytest.mark.parametrize("kind", PLACES)
def test_heads_keep_their_width_and_nothing_is_said(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    axis = AXES[f"{kind}-width"]
    for scale in (1, 4):
        model = axis.build(scale)
        width = axis.settings["width"] * scale
        assert model.config.hidden_size == width
        assert model.config.num_attention_heads == 4 * scale
        assert model(inputs(axis)).logits.shape[-1] == (10 if kind == "vit" else 256)
    assert capfd.readouterr().err == ""


def test_llamas_readout_is_its_own_and_gpt2s_is_the_embedding() -> None:
    llama, gpt2 = AXES["llama-width"].build(1), AXES["gpt2-width"].build(1)
    assert len({id(p) for n, p in llama.named_parameters() if p.shape == (256, 48)}) == 2
    assert gpt2.get_submodule("lm_head").weight is gpt2.get_submodule("transformer.wte").weight


def test_depth_adds_blocks_and_both_scale_both() -> None:
    both = AXES["llama-both"]
    for axis, scale, width, depth in (
        (AXES["llama-depth"], 8, 48, 16),
        (AXES["gpt2-depth"], 4, 48, 8),
        (both, 2, 96, 4),
    ):
        config = axis.build(scale).config
        assert (config.hidden_size, config.num_hidden_layers) == (width, depth)
    assert (both.width(2), both.depth(2)) == (2, 2)


def test_initial_weights_scale_with_the_axis_that_scales_them() -> None:
    axis = AXES["gpt2-init"]
    base, large = (
        axis.build(scale).get_parameter("transformer.wte.weight").std().item() for scale in (1, 4)
    )
    assert math.isclose(large / base, 4, rel_tol=0.05)


@pytest.mark.parametrize("kind", PLACES)
def test_mups_rates_by_hand_are_1_over_what_a_matrix_reads(kind: str) -> None:
    axis = tiny(f"{kind}-width")
    base, large = (dict(axis.build(s).named_parameters()) for s in (1, 2))
    assert set(mup_rates(axis, 1).values()) == {1.0}
    rates = mup_rates(axis, 2)
    found = roles(axis, axis.build(2))
    assert rates.keys() == found.keys() == large.keys()
    for name, rate in rates.items():
        assert rate == (0.5 if found[name] in ("hidden", "readout") else 1.0)
        grown = sum(a != b for a, b in zip(base[name].shape, large[name].shape, strict=True))
        assert (grown == 2) == (found[name] == "hidden"), name
    readouts = {n for n, role in found.items() if role == "readout"}
    named = {"gpt2": set(), "vit": {"classifier.weight"}}
    assert readouts == named.get(kind, {"lm_head.weight"})


@pytest.mark.parametrize(
    "key, kinds",
    [
        ("mlp-width", {"mup", "mup-rates", "law"}),
        ("mlp-depth", {"law"}),
        ("mlp-width-readout", {"law"}),
        ("mlp-width-adamw", {"law"}),
        ("mlp-recipe-width", {"mup-rates", "law"}),
        ("llama-width", {"mup-rates", "completep", "law"}),
        ("llama-both", {"mup-rates", "completep", "law"}),
        ("gpt2-depth", {"completep", "law"}),
        ("gpt2-init", set()),
        ("vit-width", {"mup-rates", "completep", "law"}),
        ("olmo2-width", {"mup-rates", "completep", "law"}),
    ],
)
def test_a_rule_has_runs_where_it_says_something(key: str, kinds: set[str]) -> None:
    found = {method.kind for method in METHODS.values() if applies(method, AXES[key])}
    assert found == kinds | {"standard", "compile", "match"}


@pytest.mark.usefixtures("brown")
def test_compiling_the_base_itself_leaves_its_rates(tmp_path: Path) -> None:
    for key in ("llama-width", "gpt2-width"):
        axis, method = tiny(key), replace(METHODS["compile"], seeds=1)
        profile, path = tmp_path / f"{key}.safetensors", tmp_path / f"{key}.json"
        Recording(axis, method, 0.01, profile)()
        Compiling(axis, method, 1, 1_000, profile, path)()
        found = json.loads(path.read_text())
        assert found.keys() == {name for name, _ in build(axis, 1, 0).named_parameters()}
        assert all(math.isclose(m, 1, rel_tol=1e-4) for m in found.values())
        run = Run(key, "compile", 1, 0, 0.01)
        standard = Training(axis, METHODS["standard"], run, None, None)()
        compiled = Training(axis, method, run, None, path)()
        assert math.isclose(compiled.loss, standard.loss, rel_tol=1e-4)
