"""The words that arguments of public functions take, as types; `get_args` lists them."""

from typing import Literal

# curvature
Operator = Literal["hessian", "ggn", "fisher"]
Scale = Literal["none", "elementwise", "filterwise"]
Products = Literal[
    "auto", "fastest", "double-backward", "checkpointed", "forward-over-reverse", "differences"
]
EigenMethod = Literal["lanczos", "power"]
Evidence = Literal["full", "residuals"]
Basis = Literal["device", "host"]
TraceMethod = Literal["krylov", "hutch++", "xtrace", "hutchinson"]

# sharpness; its adaptive balls have the scales above
Protocol = Literal["search", "auto-pgd"]
Distribution = Literal["gaussian", "ball", "sphere", "box"]

# surfaces, lines and paths
Statistics = Literal["frozen", "recalibrated", "interpolated"]
Precision = Literal["exact", "bfloat16", "float16", "tf32"]
Criterion = Literal["range", "log"]
Normalisation = Literal["filter", "layer", "global", "none"]
Metric = Literal["none", "euclidean", "filter"]
CurveKind = Literal["linear", "bezier", "polygon"]

# training
OptimizerName = Literal["sgd", "adam", "adamw", "sam", "asam", "gsam", "usam"]
BaseName = Literal["sgd", "adam", "adamw"]
Schedule = Literal["cosine", "constant"]
SamScale = Literal["elementwise", "filterwise"]
