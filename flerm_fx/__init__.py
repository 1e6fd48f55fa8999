"""Function-space learning rates as a torch.fx compiler pass.

Record small models, compile a large one, and train it at the small ones' learning rate:

    profile = flerm_fx.record_seeds(make_small, make_optimizer, loader)
    model = flerm_fx.compile(make_large(), profile)
    optimizer = make_optimizer(model)

After Milsom, Anson, Aitchison, *Function-Space Learning Rates*, ICML 2025, arXiv 2502.17405.
"""

from flerm_fx.assign.assignment import Assignment
from flerm_fx.emit.checking import Check
from flerm_fx.emit.clip import clip_grad_norm_
from flerm_fx.emit.compiled import CompiledModel
from flerm_fx.emit.compiling import compile
from flerm_fx.errors import (
    CaptureError,
    CaptureWarning,
    DivergenceError,
    EstimateError,
    FlermError,
    InputError,
    LawError,
    MatchError,
    MatchWarning,
    OptimizerError,
    ProfileError,
)
from flerm_fx.laws.building import scaling_law
from flerm_fx.laws.law import ScalingLaw
from flerm_fx.probe.estimate import Estimate
from flerm_fx.probe.instrumenting import instrument
from flerm_fx.probe.measure import Prober, measure
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.training.matcher import Matcher
from flerm_fx.training.matching import match
from flerm_fx.training.recorder import Recorder
from flerm_fx.training.recording import record
from flerm_fx.training.seeds import record_seeds

__version__ = "0.2.0"

__all__ = [
    "Assignment",
    "BaseProfile",
    "CaptureError",
    "CaptureWarning",
    "Check",
    "CompiledModel",
    "DivergenceError",
    "Estimate",
    "EstimateError",
    "FlermError",
    "InputError",
    "LawError",
    "MatchError",
    "MatchWarning",
    "Matcher",
    "OptimizerError",
    "Prober",
    "ProfileError",
    "Recorder",
    "ScalingLaw",
    "clip_grad_norm_",
    "compile",
    "instrument",
    "match",
    "measure",
    "record",
    "record_seeds",
    "scaling_law",
]
