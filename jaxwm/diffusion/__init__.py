"""Diffusion: noise levels, preconditioned denoisers, one loss, one sampling loop.

The pieces meet in two types.

- `Level(time, signal, noise)`: a noisy sample is `signal * x0 + noise * eps`. A
  schedule is a `Level` of float64 host arrays `[T]`, cleanest first.
- A denoiser `(x, level, cond) -> x0_hat`, for one example, `x` any pytree. `denoiser`
  makes one of a network `(z, level, cond) -> prediction` and a preconditioning.

    schedule = diffusion.cosine_schedule(128)
    denoise = diffusion.denoiser(network, diffusion.predict_x0)
    level = diffusion.uniform(schedule)(key)
    error = diffusion.loss(key, denoise, level, x0, cond)
    steps = diffusion.ancestral(diffusion.stride(schedule, 4))
    result = diffusion.sample(key, denoise, steps, (10, 6), cond=cond, terms=(...))

- Schedules: `cosine_schedule`, `karras`, `exponential`; `stride`, `snap` choose levels.
- Preconditionings: `predict_x0`, `predict_noise`, `predict_velocity`, `edm(...)`.
- Level samplers: `uniform`, `lognormal`, `log_logistic`.
- Samplers: `ancestral`, `ddim`, `euler` and `heun` (with churn), `dpmpp_2m` (`eta` 1 is
  the SDE variant). Each gives a `Steps` table of coefficients, computed on the host;
  `sample` runs any of them. Pass the table as a traced argument, padded by `pad`, and
  every sampler and number of calls shares one compilation; closed over, the loop has a
  static length and can be differentiated in reverse.
- Terms guide: `inpaint`, `clip`, `clip_change`, `energy`, `energy_through_network`,
  `energy_on_mean`, `classifier`, `classifier_free`, `follow_policy` with the rules
  `resample`, `fresh_sample`, `climb_score`, and `search` (candidates chosen by cost).
  All their scales may be traced.
- `best_of_k` draws several samples and keeps one by score.
"""

from jaxwm.diffusion.guidance import (
    classifier,
    classifier_free,
    clip,
    clip_change,
    energy,
    energy_on_mean,
    energy_through_network,
    inpaint,
)
from jaxwm.diffusion.levels import (
    CLEAN,
    Level,
    add_noise,
    cosine_schedule,
    exponential,
    karras,
    log_sigma,
    sigma_level,
    snap,
    stride,
)
from jaxwm.diffusion.loss import log_logistic, lognormal, loss, squared_error, uniform
from jaxwm.diffusion.policy import (
    climb_score,
    follow_policy,
    fresh_sample,
    pull_states,
    resample,
)
from jaxwm.diffusion.precondition import (
    Scalings,
    denoiser,
    edm,
    predict_noise,
    predict_velocity,
    predict_x0,
)
from jaxwm.diffusion.sample import Noise, SampleResult, Step, Term, sample
from jaxwm.diffusion.search import argmin, best_of_k, elite, search, softmax
from jaxwm.diffusion.steps import (
    Steps,
    ancestral,
    ddim,
    dpmpp_2m,
    euler,
    heun,
    pad,
    row_below,
)

__all__ = [
    "CLEAN",
    "Level",
    "Noise",
    "SampleResult",
    "Scalings",
    "Step",
    "Steps",
    "Term",
    "add_noise",
    "ancestral",
    "argmin",
    "best_of_k",
    "classifier",
    "classifier_free",
    "climb_score",
    "clip",
    "clip_change",
    "cosine_schedule",
    "ddim",
    "denoiser",
    "dpmpp_2m",
    "edm",
    "elite",
    "energy",
    "energy_on_mean",
    "energy_through_network",
    "euler",
    "exponential",
    "follow_policy",
    "fresh_sample",
    "heun",
    "inpaint",
    "karras",
    "log_logistic",
    "log_sigma",
    "lognormal",
    "loss",
    "pad",
    "predict_noise",
    "predict_velocity",
    "predict_x0",
    "pull_states",
    "resample",
    "row_below",
    "sample",
    "search",
    "sigma_level",
    "snap",
    "softmax",
    "squared_error",
    "stride",
    "uniform",
]
