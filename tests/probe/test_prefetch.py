"""What is read next is sent for ahead, as it was read before."""

import torch
from torch import Tensor, fx

from flerm_fx.probe.prefetch import Gather, Prefetch

CPU = torch.device("cpu")
NAMES = "abcd"


class Told(Gather):
    """Writes down what it is asked for."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, tensor: Tensor) -> Tensor:
        self.said.append(f"begin {NAMES[int(tensor)]}")
        return tensor.clone()

    def finish(self, tensor: Tensor, device: torch.device) -> Tensor:
        self.said.append(NAMES[int(tensor)])
        return tensor


def read(graph: fx.GraphModule, names: str, among: str = NAMES) -> list[str]:
    tensors = {name: torch.tensor(NAMES.index(name)) for name in among}
    gather = Told()
    with Prefetch(graph, tensors, CPU, gather) as prefetch:
        assert [int(prefetch.take(name)) for name in names] == [NAMES.index(n) for n in names]
    return gather.said


def empty() -> fx.GraphModule:
    return fx.GraphModule({}, fx.Graph())


def test_the_second_run_sends_for_each_ahead_forward_and_back() -> None:
    graph = empty()
    assert read(graph, "abccba") == list("abccba")
    sent = ["a", "begin b", "b", "begin c", "c", "begin c", "c", "begin b", "b", "begin a", "a"]
    assert read(graph, "abccba") == sent


def test_a_wrong_guess_is_waited_for_and_let_go_and_the_next_one_is_right() -> None:
    graph = empty()
    read(graph, "abc")
    assert read(graph, "abd") == ["a", "begin b", "b", "begin c", "c", "d"]
    assert read(graph, "abd") == ["a", "begin b", "b", "begin d", "d"]
    # What was begun at the end is waited for, since all ranks began it.
    assert read(graph, "ab") == ["a", "begin b", "b", "begin d", "d"]


def test_what_this_run_does_not_have_is_not_sent_for() -> None:
    graph = empty()
    read(graph, "abc")
    assert read(graph, "ab", among="ab") == ["a", "begin b", "b"]
