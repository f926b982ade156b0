"""Does a free-running model live on the right attractor?

Chaos makes forecasts worthless after a few Lyapunov times, also those of the truth
itself. What a good model shares with its system is where the orbit spends its time, its
spectrum, and how fast neighbours part. Shapes: T steps, N dimensions.

Source: Koppe et al., "Identifying nonlinear dynamical systems via generative recurrent
neural networks", 2019; Mikhaeil et al., "On the difficulty of learning chaotic dynamics
with RNNs", NeurIPS 2022; exponents after Benettin et al., 1980.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_MOST_DIMENSIONS = 5  # bins^N cells: 30^5 of them are 97 MB


def state_space_divergence(
    reference: Float[Array, "T N"],
    generated: Array,
    *,
    bins: int = 30,
    smoothing: float = 1e-5,
) -> Float[Array, ""]:
    """KL divergence in nats of how two orbits fill space, `D_stsp`.

        D = Σ_k p_k log(p_k / q_k),   p, q histograms, `smoothing` added to each count

    The box reaches 0.1 standard deviations beyond the reference, `bins` cells along
    each axis. Points of the generated orbit outside it, or not finite, count in the
    total and in no cell: a model that left for good has a divergence near 15, not NaN.

    Args:
        reference: the true orbit.
        generated: the model's, `[S, N]`.
        bins: cells along an axis.
        smoothing: count added to every cell.

    Raises:
        ValueError: for orbits of different dimension, or more than 5 of them.
    """
    if generated.ndim != 2 or generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"generated must have {reference.shape[1]} dimensions as reference, got "
            f"the shape {generated.shape}."
        )
    if reference.shape[1] > _MOST_DIMENSIONS:
        raise ValueError(
            f"reference must have at most {_MOST_DIMENSIONS} dimensions, got "
            f"{reference.shape[1]}: {bins} bins along each do not fit into memory; "
            "compare projections."
        )
    margin = 0.1 * reference.std(0)
    low, high = reference.min(0) - margin, reference.max(0) + margin

    def share(x):
        cell = jnp.floor((x - low) / (high - low) * bins)
        inside = jnp.all((cell >= 0) & (cell < bins), -1)  # False for NaN
        cell = jnp.where(inside[:, None], cell, 0).astype(jnp.int32)
        weights = bins ** jnp.arange(x.shape[1])
        count = jnp.zeros(bins ** x.shape[1]).at[cell @ weights].add(inside)
        return (count + smoothing) / (len(x) + smoothing * count.size)

    p, q = share(reference), share(generated)
    return jnp.sum(p * jnp.log(p / q))


def power_spectrum_error(
    reference: Float[Array, "T N"], generated: Float[Array, "T N"], *, width: float = 20
) -> Float[Array, ""]:
    """Hellinger distance of the two power spectra, mean over dimensions; in [0, 1].

    Spectra of the standardised series, smoothed by a Gaussian of `width` frequency bins
    and normalised to sum to 1. An orbit that is not finite is at distance 1.
    """

    def spectrum(x):
        x = (x - x.mean()) / jnp.maximum(x.std(), 1e-12)
        power = jnp.abs(jnp.fft.rfft(x)) ** 2
        reach = min(int(4 * width), (len(power) - 1) // 2)
        kernel = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / width) ** 2)
        power = jnp.convolve(power, kernel / kernel.sum(), "same")
        return power / jnp.maximum(power.sum(), 1e-12)

    def distance(x, y):
        overlap = jnp.sum(jnp.sqrt(spectrum(x) * spectrum(y)))
        return jnp.sqrt(jnp.maximum(1 - overlap, 0.0))

    each = jax.vmap(distance, 1)(reference, generated)
    return jnp.mean(jnp.where(jnp.isfinite(each), each, 1.0))


def lyapunov_exponents(
    step: Callable,
    start: Float[Array, " N"],
    num_steps: int,
    *,
    dt: float = 1.0,
    num: int | None = None,
    transient: int = 0,
) -> Float[Array, " K"]:
    """The `num` largest Lyapunov exponents of a map, per time unit.

    Orthonormal tangent vectors are pushed along the orbit by the Jacobian and made
    orthonormal again by QR at every step, so that float32 suffices;
    `λ_k = mean_t log |R_kk| / dt`.

    Args:
        step: `x [N] -> x [N]`, differentiable.
        start: a point in the basin.
        num_steps: of the mean; the statistical error falls as one over its square root.
        dt: time per step.
        num: K, all N if None.
        transient: steps of the orbit and its tangents that are not counted.
    """
    num = start.shape[0] if num is None else num
    tangents = jnp.eye(start.shape[0], num)

    def push(carry, _):
        x, q = carry
        x, linear = jax.linearize(step, x)
        q, r = jnp.linalg.qr(jax.vmap(linear, 1, 1)(q))
        return (x, q), jnp.log(jnp.abs(jnp.diag(r)))

    carry, _ = jax.lax.scan(push, (start, tangents), None, length=transient)
    _, growth = jax.lax.scan(push, carry, None, length=num_steps)
    return jnp.mean(growth, 0) / dt
