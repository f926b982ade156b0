"""Tester-learner for halfspaces: learn a noisy halfspace and certify it, or reject.

A learner of halfspaces under label noise is near optimal only where the inputs behave,
and fails silently where they do not. A tester-learner checks, on other data, what its
proof needs: that w is nearly stationary, and that orthogonal moments in a band around
the boundary and in strips beyond it are bounded. If it accepts,
`err(w) - opt <= excess` holds whatever the distribution; on well-behaved inputs it
accepts.

Source: Gollakota et al., "An Efficient Tester-Learner for Halfspaces", ICLR 2024; the
learner is that of Diakonikolas et al., "Learning Halfspaces with Massart Noise Under
Structured Distributions", COLT 2020.
Shapes: N samples, D dimensions, S band widths. Halfspaces go through the origin; labels
are -1 and 1 and flipped with probability η(x) <= η (Massart noise).
Departs: the tests are one data-dependent inequality with explicit constants, in place
of the paper's list of tests with unspecified ones.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxwm.core import checks
from jaxwm.types import Metrics

_CHUNK = 20_000  # samples whose sums are taken at once: float32 sums stay accurate
_STRIPS = 60  # of width tan θ; those beyond are one
_FAMILIES = ("gaussian", "cube", "degenerate", "ball", "heavy", "understated")


def _check_eta(eta):
    if not isinstance(eta, jax.core.Tracer) and not 0 <= eta < 0.5:
        raise ValueError(
            f"eta must be in [0, 0.5), got {eta}; at one half labels say nothing."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Two minutes on one core, most of it spent drawing samples."""

    num: int = 2_000_000  # samples to learn from, and as many to certify with
    size: int = 4  # D
    eta: float = 0.2  # noise bound
    eps: float = 0.1  # accepted excess
    band: float = 0.006  # final width of the learner's ramp
    # widths of the certificate's band that are tried
    bands: tuple[float, ...] = (0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.2, 0.3)
    restarts: int = 1  # starts of the learner; each costs the certificate a little
    steps: int = 400  # on minibatches, while the ramp narrows from 0.5
    batch: int = 20_000
    final_steps: int = 150  # on all samples near the band
    near: int = 131_072  # at most so many of them

    def __post_init__(self):
        checks.finite(self)
        _check_eta(self.eta)
        if self.size < 2:
            raise ValueError(
                f"size must be at least 2 dimensions, got {self.size}; a threshold on "
                "a line needs no tester."
            )
        if not 0 < self.eps < 1 or not 0 < self.band < 0.5:
            raise ValueError(
                "eps must be in (0, 1) and band in (0, 0.5), got "
                f"{self.eps} and {self.band}."
            )
        if list(self.bands) != sorted(set(self.bands)) or min(self.bands) <= 0:
            raise ValueError(f"bands must increase from above 0, got {self.bands}.")
        checks.at_least(
            1, self, "num", "restarts", "steps", "batch", "final_steps", "near"
        )


TINY = Config(num=4000, steps=20, batch=500, final_steps=5, near=512)


class Sample(NamedTuple):
    """Points and their labels."""

    x: Float[Array, "N D"]
    y: Float[Array, " N"]  # -1 or 1


class Certificate(NamedTuple):
    """A bound on `err(w) - opt`, and what it was made of, at the band that gave it."""

    accept: Bool[Array, ""]
    excess: Float[Array, ""]  # infinite where nothing could be certified
    tan_theta: Float[Array, ""]  # bound on the tangent of the angle to the truth
    gradient: Float[Array, ""]  # |g| plus its deviation
    band: Float[Array, ""]  # width
    band_mass: Float[Array, ""]
    band_count: Float[Array, ""]
    lmin: Float[Array, ""]  # of the in-band orthogonal second moment
    lmax: Float[Array, ""]
    m4: Float[Array, ""]  # bound on the orthogonal fourth moment, 3 for a Gaussian
    strips: Float[Array, " strips"]  # mass of every strip


def massart_data(
    key: Key[Array, ""],
    num: int,
    size: int,
    truth: Float[Array, " D"],
    noise: Callable,
    marginal: Callable,
) -> Sample:
    """Points of `marginal(key, num, size)`; labels flip with probability `noise(x)`."""
    x_key, flip_key = jax.random.split(key)
    x = marginal(x_key, num, size)
    is_flipped = jax.random.uniform(flip_key, (num,)) < noise(x)
    y = jnp.where(x @ truth >= 0, 1.0, -1.0)
    return Sample(x, jnp.where(is_flipped, -y, y))


def ramp_gradient(
    sample: Sample, w: Float[Array, " D"], width: float | Array
) -> Float[Array, " D"]:
    """Gradient of the ramp loss across w: `-E[y x_perp 1(|w x| <= s/2)] / s`."""
    in_band = jnp.abs(sample.x @ w) <= width / 2
    g = -(sample.y * in_band) @ sample.x / (sample.x.shape[0] * width)
    return g - (g @ w) * w


def _unit(w):
    return w / jnp.maximum(jnp.linalg.norm(w), 1e-12)


def error(sample: Sample, w: Float[Array, " D"]) -> Float[Array, ""]:
    """Share of labels that sign(w x) misses."""
    return jnp.mean((sample.y * (sample.x @ w) < 0).astype(jnp.float32))


def learn_halfspace(
    key: Key[Array, ""], sample: Sample, config: Config
) -> Float[Array, "restarts D"]:
    """Projected descent on a ramp loss whose width shrinks to `config.band`.

    Starts from the mean of y x, later ones from a random tilt of it. Small steps of
    `0.2 sqrt(s)` on minibatches, then on all points near the band.
    """
    num, size = sample.x.shape
    mean = _unit(sample.y @ sample.x)

    def learn(i):
        tilt_key, batch_key = jax.random.split(jax.random.fold_in(key, i))
        w = _unit(
            mean + jnp.where(i == 0, 0, 0.5) * jax.random.normal(tilt_key, (size,))
        )

        def anneal(w, i):
            start = jax.random.randint(
                jax.random.fold_in(batch_key, i), (), 0, max(num - config.batch, 1)
            )
            part = Sample(
                *(
                    jax.lax.dynamic_slice_in_dim(a, start, min(config.batch, num))
                    for a in sample
                )
            )
            width = 0.5 * (config.band / 0.5) ** (i / config.steps)
            g = ramp_gradient(part, w, width)
            return _unit(w - 0.2 * jnp.sqrt(width) * g), None

        w, _ = jax.lax.scan(anneal, w, jnp.arange(config.steps))
        reach = jnp.abs(sample.x @ w)
        size_near = min(config.near, num)
        found = jnp.nonzero(reach <= 8 * config.band, size=size_near, fill_value=num)[0]
        # Where fewer are found, rows of label 0 fill up: they have no gradient.
        take = lambda a: a.at[found].get(mode="fill", fill_value=0.0)
        near = Sample(take(sample.x), take(sample.y))

        def settle(w, _):
            g = ramp_gradient(near, w, config.band) * (size_near / num)
            return _unit(w - 0.2 * config.band**0.5 * g), None

        return jax.lax.scan(settle, w, None, config.final_steps)[0]

    return jax.lax.map(learn, jnp.arange(config.restarts))


def certify_halfspace(
    sample: Sample,
    w: Float[Array, " D"],
    eta: float | Array,
    bands: Sequence[float],
    *,
    eps: float = 0.1,
    candidates: int = 1,
) -> Certificate:
    """Bounds `err(w) - opt` on fresh data, whatever the distribution of x.

    With θ the angle between w and the truth, P the mass of a band of width s, A the
    least mean of |v x| in it over unit v orthogonal to w, and G the ramp's gradient:

        tan θ <= T = s / ((1 - 2η) A - G s / P)
        err(w) - opt <= p_0 + Σ_i p_i min(1, l_i / i²)

    with p_i and l_i the mass and the largest orthogonal second moment of the strip
    `i T <= |w x| < (i + 1) T`. A comes from Hölder, `E|z| >= E[z²]^1.5 / E[z⁴]^0.5`.

    Args:
        sample: NOT what w was learnt from: deviations are those of independent data.
        w: unit vector with error below one half (else its negative is meant).
        eta: bound on the noise, in [0, 1/2).
        bands: widths s to try, increasing; deviations allow for all of them.
        eps: largest excess that is accepted.
        candidates: among how many w was chosen by the error on `sample`.

    Returns:
        The certificate at the band with the least T.
    """
    _check_eta(eta)
    _check_labels(sample)
    num, size = sample.x.shape
    widths = jnp.asarray(bands, jnp.float32)
    # Columns that span the complement of w.
    basis = jnp.linalg.qr(jnp.column_stack([w, jnp.eye(size)]))[0][:, 1:size]

    def features(part):
        """What is averaged in a band, per sample."""
        z = part.x @ basis  # [n, D - 1]
        square = (z[:, :, None] * z[:, None, :]).reshape(len(z), -1)
        excess = square - jnp.eye(size - 1).ravel()
        fourth = (excess[:, :, None] * excess[:, None, :]).reshape(len(z), -1)
        one = jnp.ones((len(z), 1))
        return jnp.concatenate([one, part.y[:, None] * z, square, fourth], -1)

    # Sums between consecutive widths; a band holds all that lie inside it.
    inside = lambda part: jnp.searchsorted(widths / 2, jnp.abs(part.x @ w))
    sums = jnp.cumsum(_segment_sums(sample, inside, features, len(bands)), 0)
    count, m = sums[:, 0], size - 1
    mean = sums[:, 1:] / jnp.maximum(count, 1.0)[:, None]
    mass = count / num
    second = mean[:, m : m + m**2].reshape(-1, m, m)
    fourth = mean[:, m + m**2 :].reshape(-1, m**2, m**2)
    slack = 3 * jnp.sqrt(size / jnp.maximum(count, 1.0))
    eigenvalues = jnp.linalg.eigvalsh(second)
    lmin = eigenvalues[:, 0] * jnp.maximum(1 - slack, 0.0)
    lmax = eigenvalues[:, -1] * (1 + slack)
    m4 = (2 * eigenvalues[:, -1] - 1 + jnp.linalg.eigvalsh(fourth)[:, -1]) * (1 + slack)
    spread = lmin**1.5 / jnp.sqrt(jnp.maximum(m4, 1e-12))  # A
    deviation = m**0.5 + 2 + jnp.sqrt(2 * jnp.log(len(bands) * candidates))
    gradient = jnp.linalg.norm(mean[:, :m], axis=-1) * mass / widths
    gradient = gradient + deviation * jnp.sqrt(mass / num) / widths
    below = (1 - 2 * eta) * spread - gradient * widths / jnp.maximum(mass, 1e-12)
    is_enough = (count >= 50 * size**2) & (below > 0)
    tangents = jnp.where(is_enough, widths / jnp.where(below > 0, below, 1.0), jnp.inf)
    best = jnp.argmin(tangents)
    tangent = tangents[best]

    excess, strips = _disagreement(sample, w, basis, tangent)
    # Else w may be close to the negative of the truth.
    is_aligned = error(sample, w) + 3 / num**0.5 < 1 - eta - excess
    excess = jnp.where(jnp.isfinite(tangent) & is_aligned, excess, jnp.inf)
    return Certificate(
        excess <= eps,
        excess,
        tangent,
        gradient[best],
        widths[best],
        mass[best],
        count[best],
        lmin[best],
        lmax[best],
        m4[best],
        strips,
    )


def _disagreement(sample, w, basis, tangent):
    """Bound on P(sign(w x) != sign(w' x)) for any w' within the angle, by Chebyshev."""
    num, size = sample.x.shape
    width = jnp.where(jnp.isfinite(tangent), tangent, 1.0)
    m = size - 1

    def strip(part):
        return jnp.minimum(jnp.abs(part.x @ w) / width, _STRIPS).astype(jnp.int32)

    def features(part):
        z = part.x @ basis
        square = (z[:, :, None] * z[:, None, :]).reshape(len(z), -1)
        return jnp.concatenate([jnp.ones((len(z), 1)), square], -1)

    sums = _segment_sums(sample, strip, features, _STRIPS + 1)
    count = jnp.maximum(sums[:, 0], 1.0)
    slack = 1 + 3 * jnp.sqrt(size / count)
    second = (sums[:, 1:] / count[:, None]).reshape(-1, m, m)
    top = jnp.linalg.eigvalsh(second)[:, -1] * slack
    index = jnp.arange(_STRIPS + 1)
    share = jnp.where(index == 0, 1.0, jnp.minimum(top / jnp.maximum(index, 1) ** 2, 1))
    return jnp.minimum(jnp.sum(count / num * slack * share), 1.0), sums[:, 0] / num


def _segment_sums(sample, segment, features, num_segments):
    """Sums of features per segment, chunk by chunk; segments beyond are left out."""
    num = sample.x.shape[0]
    chunk = min(_CHUNK, num)
    count = -(-num // chunk)
    padding = count * chunk - num
    is_real = jnp.pad(jnp.ones(num), (0, padding)).reshape(count, chunk)
    parts = jax.tree.map(
        lambda a: jnp.pad(a, ((0, padding), *[(0, 0)] * (a.ndim - 1))).reshape(
            count, chunk, *a.shape[1:]
        ),
        sample,
    )

    def add(_, part):
        part, is_real = part
        member = jax.nn.one_hot(segment(part), num_segments) * is_real[:, None]
        return None, member.T @ features(part)

    return jnp.sum(jax.lax.scan(add, None, (parts, is_real))[1], 0)


def halfspace_tester_learner(
    key: Key[Array, ""], learn: Sample, certify: Sample, config: Config = Config()
) -> tuple[Bool[Array, ""], Float[Array, " D"], Certificate]:
    """Learns from one sample, picks a candidate and certifies it on the other.

    Args:
        key: of the learner.
        learn: S1.
        certify: S2, independent of S1.
        config: noise bound, accepted excess, learner.

    Returns:
        Whether to accept, the unit vector w, and its certificate. Rejecting says
        nothing about w; accepting bounds its excess error.

    Raises:
        ValueError: where both samples are the same arrays, shapes do not fit, or labels
            are not -1 and 1.
    """
    if learn.x is certify.x or learn.y is certify.y:
        raise ValueError(
            "certify must be another sample than learn, got the same arrays; split the "
            "data, since the certificate's deviations hold for fresh data alone."
        )
    if learn.x.shape[1] != certify.x.shape[1] or learn.x.shape[1] < 2:
        raise ValueError(
            "learn and certify must have the same number of dimensions, at least 2, "
            f"got {learn.x.shape[1]} and {certify.x.shape[1]}."
        )
    _check_labels(learn)
    found = learn_halfspace(key, learn, config)
    candidates = jnp.concatenate([found, -found])
    errors = jax.lax.map(lambda w: error(certify, w), candidates)
    w = candidates[jnp.argmin(errors)]
    certificate = certify_halfspace(
        certify, w, config.eta, config.bands, eps=config.eps
    )
    return certificate.accept, w, certificate


def moment_test(
    x: Float[Array, "N D"], degree: int = 4, tolerance: float = 0.15
) -> tuple[Bool[Array, ""], Float[Array, ""]]:
    """The older, label-free tester: are all moments up to `degree` Gaussian?

    Returns:
        Whether no moment of the standard Gaussian is missed by more than `tolerance`,
        and the largest miss.
    """
    size = x.shape[1]
    grid = np.stack(np.meshgrid(*[np.arange(degree + 1)] * size), -1).reshape(-1, size)
    powers = grid[(grid.sum(1) > 0) & (grid.sum(1) <= degree)]  # [monomials, D]
    one = np.array([1.0, 0.0, 1.0, 0.0, 3.0, 0.0, 15.0, 0.0, 105.0])  # E z^k
    expected = np.prod(one[powers], 1)

    def features(part):
        table = part.x[:, :, None] ** jnp.arange(degree + 1)  # [n, D, degree + 1]
        return jnp.prod(table[:, np.arange(size), powers], -1)

    sample = Sample(x, jnp.ones(x.shape[0]))
    everything = lambda part: jnp.zeros(part.y.shape, jnp.int32)
    found = _segment_sums(sample, everything, features, 1)[0] / x.shape[0]
    miss = jnp.max(jnp.abs(found - expected))
    return miss <= tolerance, miss


def logistic_regression(sample: Sample, num_steps: int = 10) -> Float[Array, " D"]:
    """What a learner without a tester hands out: Newton steps on the logistic loss."""

    def step(w, _):
        p = jax.nn.sigmoid(-sample.y * (sample.x @ w))
        g = -(sample.y * p) @ sample.x
        weight = (p * (1 - p))[:, None]
        return w - jnp.linalg.solve((weight * sample.x).T @ sample.x, g), None

    start = jnp.zeros(sample.x.shape[1])
    return _unit(jax.lax.scan(step, start, None, num_steps)[0])


def _check_labels(sample):
    if isinstance(sample.y, jax.core.Tracer):
        return
    if not bool(jnp.all(jnp.abs(sample.y) == 1)):
        raise ValueError(
            f"labels must be -1 or 1, got values such as {np.unique(sample.y)[:3]}; "
            "map them first."
        )


# --- inputs, good and bad -----------------------------------------------------


def _gaussian(key, num, size):
    return jax.random.normal(key, (num, size))


def _cube(key, num, size):
    return jax.random.uniform(key, (num, size), minval=-(3**0.5), maxval=3**0.5)


def _degenerate(key, num, size):
    """Inside |x_1| < 0.3 the second coordinate all but vanishes."""
    x = _gaussian(key, num, size)
    shrunk = jnp.where(jnp.abs(x[:, 0]) < 0.3, 0.02 * x[:, 1], x[:, 1])
    return x.at[:, 1].set(shrunk)


def _ball(key, num, size):
    """Three tenths of the mass on a small ball beside the boundary."""
    x_key, which_key = jax.random.split(key)
    x = _gaussian(x_key, num, size)
    centre = jnp.zeros(size).at[:2].set(jnp.array([0.02, 1.5]))
    in_ball = jax.random.bernoulli(which_key, 0.3, (num, 1))
    return jnp.where(in_ball, centre + 0.01 * x, x)


def _heavy(key, num, size):
    """Student's t with three degrees of freedom, unit variance."""
    normal_key, uniform_key = jax.random.split(key)
    z = jax.random.normal(normal_key, (2, num, size))
    # A chi-square of three degrees: one of one, and one of two (exponential).
    chi = z[1] ** 2 + 2 * jax.random.exponential(uniform_key, (num, size))
    return z[0] / jnp.sqrt(chi)


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Verdicts on six families of inputs, with the true excess beside the bound.

    `gaussian` and `cube` behave; `degenerate` and `ball` break the learner's premises;
    `heavy` has t_3 coordinates; in `understated` labels are noisier than the tester is
    told. `slack/worst` is the least certified minus true excess where it accepted
    (infinite excess counts as 1).
    """
    marginals = (_gaussian, _cube, _degenerate, _ball, _heavy, _gaussian)
    truth = jnp.eye(config.size)[0]

    def one(i):
        data_key, learn_key = jax.random.split(jax.random.fold_in(key, i))
        scale = jnp.where(i == _FAMILIES.index("understated"), 1.5, 1.0)
        rate = lambda x: (
            jnp.where(jnp.abs(x[:, 1]) < 0.5, 1.0, 0.5) * config.eta * scale
        )
        marginal = lambda key, num, size: jax.lax.switch(
            i, [lambda key, f=f: f(key, num, size) for f in marginals], key
        )
        draw = lambda key: massart_data(
            key, config.num, config.size, truth, rate, marginal
        )
        learn, certify = (draw(key) for key in jax.random.split(data_key))
        _, w, certificate = halfspace_tester_learner(learn_key, learn, certify, config)

        def true_excess(w):
            differs = (certify.x @ w >= 0) != (certify.x @ truth >= 0)
            return jnp.mean((1 - 2 * rate(certify.x)) * differs)

        return {
            "accept": certificate.accept.astype(jnp.float32),
            "bound": jnp.minimum(certificate.excess, 1.0),
            "excess": true_excess(w),
            "excess_logistic": true_excess(logistic_regression(learn)),
            "moments": moment_test(certify.x)[0].astype(jnp.float32),
        }

    found = jax.lax.map(one, jnp.arange(len(_FAMILIES)))
    metrics = {
        f"{name}/{family}": value[i]
        for name, value in found.items()
        for i, family in enumerate(_FAMILIES)
    }
    slack = jnp.where(found["accept"] > 0, found["bound"] - found["excess"], 1.0)
    return metrics | {"slack/worst": jnp.min(slack)}
