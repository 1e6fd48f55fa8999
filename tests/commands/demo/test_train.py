"""Training at one rate."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from flerm_fx.commands.demo.corpus import Corpus
from flerm_fx.commands.demo.train import DIVERGED, Task, cross_entropy, train, validate
from tests.rounding import rounding

TASK = Task(steps=30, batch=8, context=8, validation_windows=20)


@pytest.fixture
def corpus() -> Corpus:
    text = torch.arange(4000, dtype=torch.int64).remainder(7).to(torch.uint8)
    return Corpus(text, text[:500], files=1)


def bigram(seed: int = 0) -> nn.Module:
    """The smallest byte-level model: logits from the byte before."""
    torch.manual_seed(seed)
    return nn.Embedding(256, 256)


def test_training_lowers_the_validation_loss(corpus: Corpus) -> None:
    model = bigram()
    before = validate(model, corpus, TASK)
    assert before > 5
    assert train(model, 0.3, corpus, TASK) < 0.5


def test_equal_models_get_equal_losses(corpus: Corpus) -> None:
    assert train(bigram(), 0.1, corpus, TASK) == train(bigram(), 0.1, corpus, TASK)


def test_the_first_step_of_adam_has_the_size_of_the_rate(corpus: Corpus) -> None:
    model = bigram()
    before = next(model.parameters()).detach().clone()
    train(model, 0.25, corpus, Task(steps=1, batch=8, context=8))
    step = (next(model.parameters()).detach() - before).abs()
    assert step.max() == pytest.approx(0.25, rel=1e-3)


def test_warm_up_raises_the_rate_linearly(corpus: Corpus) -> None:
    model = bigram()
    before = next(model.parameters()).detach().clone()
    train(model, 0.25, corpus, Task(steps=1, batch=8, context=8, warmup=4))
    step = (next(model.parameters()).detach() - before).abs()
    assert step.max() == pytest.approx(0.25 / 5, rel=1e-3)


def deep() -> nn.Module:
    return nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 8), nn.Linear(8, 256))


def test_a_run_that_ends_far_worse_than_guessing_has_diverged(corpus: Corpus) -> None:
    # Validated backwards: logits this large may be right about the text that they were trained on.
    backwards = dataclasses.replace(corpus, validation=corpus.validation.flip(0))
    assert math.isnan(train(deep(), 1e5, backwards, TASK))


def test_a_loss_that_is_not_finite_ends_the_run(corpus: Corpus) -> None:
    steps: list[None] = []
    assert math.isnan(train(deep(), 2.0**64, corpus, TASK, lambda: steps.append(None)))
    assert len(steps) < TASK.steps


def test_a_loss_that_is_high_only_at_first_is_no_divergence(corpus: Corpus) -> None:
    model = bigram()
    with torch.no_grad():
        next(model.parameters()).mul_(30)
    assert validate(model, corpus, TASK) > DIVERGED
    assert train(model, 3.0, corpus, dataclasses.replace(TASK, steps=100)) < 1


def test_every_step_is_reported(corpus: Corpus) -> None:
    steps: list[None] = []
    train(bigram(), 0.1, corpus, TASK, lambda: steps.append(None))
    assert len(steps) == TASK.steps


def test_validation_is_the_mean_over_the_windows_and_leaves_the_model_in_eval(
    corpus: Corpus,
) -> None:
    class Uniform(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return torch.zeros(*tokens.shape, 256)

    model = Uniform()
    assert validate(model, corpus, TASK) == pytest.approx(math.log(256), rel=rounding(256))
    assert not model.training


def test_validation_weighs_every_window_equally(corpus: Corpus) -> None:
    model = bigram()
    losses = [validate(model, corpus, dataclasses.replace(TASK, batch=n)) for n in (1, 8, 20)]
    summed = 256 + len(corpus.validation)  # classes, then places
    assert losses == pytest.approx([losses[0]] * 3, rel=rounding(summed))


def test_cross_entropy_is_over_all_positions() -> None:
    logits, targets = torch.randn(3, 5, 11), torch.randint(11, (3, 5))
    chosen = logits.log_softmax(-1).gather(-1, targets[..., None])
    found, expected = cross_entropy(logits, targets).item(), -chosen.mean().item()
    assert found == pytest.approx(expected, rel=rounding(11 + 15))  # classes, then places
