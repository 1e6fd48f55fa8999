"""FSLRs of models in coarser types against those of float64."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import flerm_fx
from benchmarks.accuracy import Estimates, log_errors, rms
from benchmarks.cases import Case, build
from benchmarks.results import PrecisionResult
from benchmarks.settings import Progress, Settings
from flerm_fx.model.inputs import Inputs

CASES = ("resmlp", "transformer-2", "convnet-train")
DRAWS = 4


@dataclass(frozen=True)
class Arithmetic:
    """What a model is measured in.

    Attributes:
        name: for the tables.
        dtype: of its weights and floating inputs.
        autocast: whether the call is made inside of autocast to bfloat16, which the library leaves
            while it measures.
    """

    name: str
    dtype: torch.dtype
    autocast: bool = False

    @contextlib.contextmanager
    def around(self, device: torch.device) -> Iterator[None]:
        """What the call is made inside of."""
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            yield


KINDS = (
    Arithmetic("float32", torch.float32),
    Arithmetic("float32, called under autocast to bfloat16", torch.float32, autocast=True),
    Arithmetic("bfloat16", torch.bfloat16),
)


def run(settings: Settings, progress: Progress) -> list[PrecisionResult]:
    """Every model in every type, by both methods."""
    found = []
    for key in CASES[:1] if settings.quick else CASES:
        case = build(key, settings)
        updates = case.unit_updates()
        for kind in KINDS:
            progress(f"precision: {key}, {kind.name}")
            found += _compare(case, updates, kind, settings)
    return found


def _compare(
    case: Case, updates: dict[str, Tensor], kind: Arithmetic, settings: Settings
) -> list[PrecisionResult]:
    """Against a float64 model of the *rounded* weights, updates and inputs: the same function."""
    coarse = copy.deepcopy(case.model).to(kind.dtype)
    fine = copy.deepcopy(coarse).double()
    rounded = {name: update.to(kind.dtype) for name, update in updates.items()}
    inputs = _as(kind.dtype, case.inputs)

    def measured(method: str, model: nn.Module, around: Arithmetic | None) -> Estimates:
        dtype = next(model.parameters()).dtype
        with around.around(settings.device) if around else contextlib.nullcontext():
            return flerm_fx.measure(
                model,
                {name: update.to(dtype) for name, update in rounded.items()},
                _as(dtype, inputs),
                method=method,  # type: ignore[arg-type]
                samples=DRAWS if method == "sampled" else None,
                generator=torch.Generator(settings.device).manual_seed(0),
            )

    exact = measured("exact", fine, None)
    rows = []
    for method, name in (("exact", "exact"), ("sampled", f"sampled, m = {DRAWS}")):
        same = exact if method == "exact" else measured(method, fine, None)
        found = measured(method, coarse, kind)
        rounding = _against(same, exact, found)
        rows.append(
            PrecisionResult(
                title=case.title,
                arithmetic=kind.name,
                method=name,
                error=rms(log_errors(found, exact)),
                rounding=rms(rounding),
                worst=max(map(abs, rounding)),
            )
        )
    return rows


def _against(same: Estimates, exact: Estimates, found: Estimates) -> list[float]:
    """log(found / same), of the parameters that count in exact."""
    pairs = zip(log_errors(found, exact), log_errors(same, exact), strict=True)
    return [one - other for one, other in pairs]


def _as(dtype: torch.dtype, inputs: Inputs) -> Inputs:
    """Inputs with their floating tensors in a type; token ids stay what they are."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    converted: Inputs = pytree.tree_map_only(Tensor, convert, inputs)
    return converted
