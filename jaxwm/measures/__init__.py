"""What a trained network is: its complexity, its spectra, its size as a file.

Functions of any pytree of arrays and any scalar loss `(params) -> nats`.

- `complexity`, `complexity_trajectory`: size of the smallest coarse-graining (low rank
  and bins) whose loss stays within ε; `coarse_grain`, `svd_cache` are its pieces.
- `encode`, `decode`: the same idea as a file from which a working network comes back;
  `report` says per tensor where the bits went.
- `spectral_entropy`, `effective_rank`: how many directions a matrix spreads over.
- `spectral_entropy_penalty`, `with_spectral_entropy`, `spectral_entropy_decay`,
  `weight_noise`: regularisers for any optax loop.
- `description_length`, `naive_length`, `prequential_length`, `generalisation_bound`,
  `local_learning_coefficient`, `raw_byte_size`, `integer_byte_size`, `l2_norm`,
  `mean_effective_rank`: what stands beside the complexity.
- modules of learning theory: `kernels` (tangent kernel, alignment, kernel ridge),
  `ridge`, `hermite`, `perceptron` (mean-field theory, enumeration), `probes`,
  `landscape` (barriers, planes, pruning).

    found = jax.jit(lambda p: measures.complexity(p, loss, epsilon=1.0))(params)
    data = measures.encode(params, loss, epsilon=1.0)
    network = measures.decode(data, like=params)
"""

from jaxwm.measures.coarse import Coarse, Svd, coarse_grain, svd_cache
from jaxwm.measures.code import decode, encode
from jaxwm.measures.complexity import (
    Complexity,
    Grid,
    complexity,
    complexity_trajectory,
)
from jaxwm.measures.description import (
    Bound,
    Prequential,
    description_length,
    generalisation_bound,
    naive_length,
    prequential_length,
)
from jaxwm.measures.learning_coefficient import (
    LearningCoefficient,
    local_learning_coefficient,
)
from jaxwm.measures.regularise import (
    SpectralState,
    spectral_entropy_decay,
    weight_noise,
    with_spectral_entropy,
)
from jaxwm.measures.report import Report, TensorReport, report
from jaxwm.measures.sizes import integer_byte_size, l2_norm, raw_byte_size
from jaxwm.measures.spectral import (
    effective_rank,
    mean_effective_rank,
    spectral_entropy,
    spectral_entropy_penalty,
)

__all__ = [
    "Bound",
    "Coarse",
    "Complexity",
    "Grid",
    "LearningCoefficient",
    "Prequential",
    "Report",
    "SpectralState",
    "Svd",
    "TensorReport",
    "coarse_grain",
    "complexity",
    "complexity_trajectory",
    "decode",
    "description_length",
    "effective_rank",
    "encode",
    "generalisation_bound",
    "integer_byte_size",
    "l2_norm",
    "local_learning_coefficient",
    "mean_effective_rank",
    "naive_length",
    "prequential_length",
    "raw_byte_size",
    "report",
    "spectral_entropy",
    "spectral_entropy_decay",
    "spectral_entropy_penalty",
    "svd_cache",
    "weight_noise",
    "with_spectral_entropy",
]
