"""A network proposes the directions along which a linear system is solved.

    q = f_θ(r / |r|),  made A-orthogonal to the last two directions
    x += q (q·r) / (q·A q),   r = b - A x

f_θ is convolutional and learns to undo A up to a factor, from right-hand sides alone:

    L(θ) = |b - s A y|²,   y = f_θ(b),   s = (y·b) / (y·A y)

Solving stays sure: the line search is exact, so that the error falls in the A-norm
whatever is proposed. The network decides about speed only.

On a CPU it does not pay: an iteration of the reduced setting takes 586 µs beside 7 µs
of plain conjugate gradients, ten of which it replaces; conjugate gradients
preconditioned by a multigrid cycle need 5 to 6 iterations of 145 µs.

Source: Kaneda et al., "A Deep Conjugate Direction Method for Iteratively Solving Linear
Systems", ICML 2023. Departs: grids in the plane; no biases, so that the network is
positively homogeneous as A⁻¹ is; on a box the eigenvectors are known (sines), Ritz
vectors (Lanczos) serve elsewhere.
Shapes: `*N` the grid, B right-hand sides, M Ritz vectors.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from jaxwm.core import checks, loop, optimise
from jaxwm.nn import ResidualUNet
from jaxwm.physics import conjugate
from jaxwm.physics import poisson as grid
from jaxwm.types import Metrics, ModelState, Params, Predictor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A minute on one core: the equation of Poisson on 32 x 32 cells."""

    side: int = 32  # cells per axis while training
    dims: int = 2
    channels: int = 16
    levels: int = 4  # grids; each has half the side of the one before
    pairs: int = 1  # of residual convolutions, per level, down and up
    low_gain: float = 9.0  # of the smooth half of the spectrum in right-hand sides
    margin: int = 0  # eigenvectors beyond the half that are amplified too
    keep: int = 2  # directions to orthogonalise against
    tol: float = 1e-4  # of the relative residual
    max_iter: int = 4000  # an untrained network takes 700 to 2000
    batch: int = 8
    steps: int = 700
    learning_rate: float = 2e-3

    def __post_init__(self):
        checks.finite(self)
        factor = 2 ** (self.levels - 1)
        if self.side % factor:
            raise ValueError(
                f"side must be divisible by {factor}, the halvings of {self.levels} "
                f"levels, got {self.side}; use fewer levels or pad the grid."
            )
        checks.at_least(1, self, "dims", "batch", "steps", "max_iter")
        if self.keep < 0:
            raise ValueError(
                f"keep must be at least 0, got {self.keep}; 0 does not orthogonalise."
            )
        if not self.tol > 0:
            raise ValueError(f"tol must be positive, got {self.tol}.")


# A grid of 64³; 20,000 right-hand sides, up to 1000 times.
PAPER = Config(
    side=64,
    dims=3,
    levels=2,
    pairs=3,
    margin=500,
    batch=10,
    steps=1_800_000,
    learning_rate=1e-4,
)
_KINDS = ("random", "dipole", "training", "l_shape")  # of right-hand sides
TINY = Config(side=8, channels=4, levels=2, batch=2, steps=2, max_iter=200)


def deep_conjugate_direction(
    config: Config, apply: Callable = grid.poisson
) -> Predictor:
    """Builds a solver of `A x = b` that learns its directions.

    Args:
        config: its settings.
        apply: A, `u [*N] -> [*N]`, linear, symmetric and positive definite.

    Returns:
        `init(key) -> ModelState`; `step(key, state, b [B, *N]) -> (state, metrics)`,
        one update on right-hand sides of any norm; `predict(params, b [*N], apply=A) ->
        (x, SolveInfo)`, also on other grids whose sides the halvings divide. b = 0
        gives 0; where `max_iter` was not enough `converged` is False, where A is not
        positive definite `broken` is True.

    Raises:
        ValueError: if A is not symmetric or not positive definite, as far as two random
            fields tell; not looked at where its values are traced.
    """
    shape = (config.side,) * config.dims
    if not isinstance(apply(jnp.zeros(shape)), jax.core.Tracer):
        conjugate.require_symmetric(jax.random.key(0), apply, shape)
    network = _network(config)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimiser = optax.adam(schedule)

    def init(key: Key[Array, ""]) -> ModelState:
        params = network.init(key, jnp.zeros(shape))
        return optimise.init_state(optimiser, params)

    def step(key, state: ModelState, b: Float[Array, "B *N"]):
        del key  # right-hand sides are drawn by the caller
        loss = lambda params, b: direction_loss(
            apply, lambda r: network.apply(params, r), b
        )
        return optimise.gradient_step(optimise.batched(loss), optimiser, state, b)

    def predict(params: Params, b: Float[Array, "*N"], apply: Callable = apply):
        return conjugate.solve(
            apply,
            b,
            as_preconditioner(lambda r: network.apply(params, r)),
            tol=config.tol,
            max_iter=config.max_iter,
            keep=config.keep,
        )

    return Predictor(init, step, predict)


def as_preconditioner(network: Callable) -> Callable:
    """`r -> f(r / |r|)`, for `conjugate.solve`; 0 gives 0."""

    def precondition(r: Float[Array, "*N"]) -> Float[Array, "*N"]:
        norm = jnp.linalg.norm(r.ravel())
        return network(r / jnp.where(norm > 0, norm, 1.0))

    return precondition


def direction_loss(
    apply: Callable, network: Callable, b: Float[Array, "*N"]
) -> Float[Array, ""]:
    """`|b - s A y|²` after the best step s along `y = f(b)`, for b made unit.

    What one exact line search from 0 leaves of a unit residual. Neither the scale of y
    nor that of b matters.
    """
    b = b / jnp.maximum(jnp.linalg.norm(b.ravel()), 1e-30)
    y = network(b)
    image = apply(y)
    curvature = jnp.vdot(y, image)
    s = jnp.vdot(y, b) / jnp.where(curvature > 0, curvature, 1.0)
    return jnp.sum((b - s * image) ** 2)


def smooth_noise(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    num: int,
    *,
    low_gain: float = 9.0,
    margin: int = 0,
) -> Float[Array, "B *N"]:
    """Unit right-hand sides on a box: normal coefficients of its eigenvectors.

    `low_gain` times larger for the lower half of the spectrum and `margin` more.
    """
    values = grid.eigenvalues(shape)
    rank = np.argsort(np.argsort(values.ravel())).reshape(shape)
    gain = np.where(rank <= values.size / 2 + margin, low_gain, 1.0)
    c = gain * jax.random.normal(key, (num, *shape))
    return jax.vmap(lambda c: _unit(grid.sine_transform(c)))(c)


def ritz_vectors(
    key: Key[Array, ""], apply: Callable, start: Float[Array, "*N"], num: int
) -> tuple[Float[Array, " M"], Float[Array, "M *N"]]:
    """Ritz values, ascending, and vectors of A: its spectrum as Lanczos sees it.

    Args:
        key: draws the first vector, where `start` is not 0.
        apply: A.
        start: 1 where the first vector may be nonzero, 0 on walls.
        num: M, at most the unknowns; every new vector is orthogonalised against all.
    """
    if not 1 <= num <= start.size:
        raise ValueError(f"num must be in [1, {start.size}] unknowns, got {num}.")
    first = _unit(start * jax.random.normal(key, start.shape))

    def body(carry, i):
        basis, v = carry
        basis = basis.at[i].set(v)
        w = apply(v)
        alpha = jnp.vdot(v, w)
        for _ in range(2):  # once is not enough in float32
            w = w - jnp.tensordot(jnp.tensordot(basis, w, w.ndim), basis, 1)
        beta = jnp.linalg.norm(w.ravel())
        return (basis, w / jnp.maximum(beta, 1e-12)), (alpha, beta)

    basis = jnp.zeros((num, *start.shape), start.dtype)
    (basis, _), (alpha, beta) = jax.lax.scan(body, (basis, first), jnp.arange(num))
    tridiagonal = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, mix = jnp.linalg.eigh(tridiagonal)
    return values, jnp.tensordot(mix.T, basis, 1)


def ritz_noise(
    key: Key[Array, ""],
    vectors: Float[Array, "M *N"],
    num: int,
    *,
    low_gain: float = 9.0,
    margin: int = 0,
) -> Float[Array, "B *N"]:
    """As `smooth_noise`, of Ritz vectors in ascending order."""
    half = vectors.shape[0] / 2 + margin
    gain = jnp.where(jnp.arange(vectors.shape[0]) <= half, low_gain, 1.0)
    c = gain * jax.random.normal(key, (num, vectors.shape[0]))
    return jax.vmap(_unit)(jnp.tensordot(c, vectors, 1))


def train(key: Key[Array, ""], config: Config) -> tuple[ModelState, Metrics]:
    """Trains on fresh right-hand sides on a box; metrics per update."""
    init_key, loop_key = jax.random.split(key)
    model = deep_conjugate_direction(config)
    shape = (config.side,) * config.dims

    def step(key, state, _):
        b = smooth_noise(
            key, shape, config.batch, low_gain=config.low_gain, margin=config.margin
        )
        return model.step(key, state, b)

    return optimise.repeat(step, model.init(init_key), loop_key, None, config.steps)


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Iterations of a trained network beside those of conjugate gradients.

    Three right-hand sides of each kind: "random" (white noise), "dipole" (a source and
    a sink, blurred), "training" (as seen in training), "large" (random, on a grid twice
    as wide), "l_shape" (random, a quarter of the box walled off).

    Returns:
        `iterations/KIND`, means, of the trained network; `cg/KIND` and
        `multigrid/KIND` of conjugate gradients, plain and preconditioned by a V-cycle
        (not for the L); `forgetful/random`: the network without orthogonalising;
        `untrained/random`: before training. `.../converged`: shares of the solves.
        `loss` of the last tenth of training.
    """
    train_key, start_key, test_key = jax.random.split(key, 3)
    state, rows = train(train_key, config)
    shape = (config.side,) * config.dims
    keys = loop.fold_in_each(test_key, 4)
    free, walled = jnp.ones((9, *shape)), jnp.stack([_l_shape(shape)] * 3)
    noise = jax.random.normal(keys[0], (3, *shape))
    poles = jax.vmap(lambda key: _dipole(key, shape))(loop.fold_in_each(keys[1], 3))
    like = smooth_noise(keys[2], shape, 3, low_gain=config.low_gain)
    small = jnp.concatenate([noise, poles, like, walled * noise])  # [12, *N]
    masks = jnp.concatenate([free, walled])
    large = jax.random.normal(keys[3], (3, *(2 * config.side,) * config.dims))

    def counts(solver, b, masks=None):
        """Iterations of each solve, and whether it converged."""

        def one(x):
            apply = grid.poisson
            if masks is not None:
                apply = lambda u: grid.poisson(u, x[1])
            _, info = solver(x[0], apply)
            return info.iterations.astype(jnp.float32), info.converged

        return jax.lax.map(one, (b, masks))  # side by side all wait for the slowest

    def gradients(precondition):
        limits = {"tol": config.tol, "max_iter": config.max_iter}
        return lambda b, apply: conjugate.solve(apply, b, precondition, **limits)

    def solves(config, params):
        return lambda b, apply: deep_conjugate_direction(config).predict(
            params, b, apply
        )

    network = solves(config, state.params)
    plain, cycle = gradients(lambda r: r), gradients(grid.multigrid)
    metrics = {"loss": jnp.mean(rows["loss"][-config.steps // 10 :])}
    for name, solver in (("iterations", network), ("cg", plain), ("multigrid", cycle)):
        num = 9 if name == "multigrid" else 12  # the cycle knows no walls
        found, converged = counts(solver, small[:num], masks[:num])
        by_kind = zip(_KINDS, jnp.mean(found.reshape(-1, 3), 1), strict=False)
        metrics |= {f"{name}/{kind}": mean for kind, mean in by_kind}
        metrics[f"{name}/large"] = jnp.mean(counts(solver, large)[0])
        if solver is network:
            metrics["l_shape/converged"] = jnp.mean(converged[9:] * 1.0)
    forgetful = solves(dataclasses.replace(config, keep=0), state.params)
    start = deep_conjugate_direction(config).init(start_key).params
    for name, solver, b in (
        ("forgetful", forgetful, noise),
        ("untrained", solves(config, start), noise),
    ):
        iterations, converged = counts(solver, b)
        metrics[f"{name}/random"] = jnp.mean(iterations)
        metrics[f"{name}/converged"] = jnp.mean(converged * 1.0)
    return metrics


def _network(config: Config) -> ResidualUNet:
    return ResidualUNet(config.channels, config.levels, config.pairs)


def _unit(x):
    return x / jnp.linalg.norm(x.ravel())


def _l_shape(shape):
    """1 but for the last quarter of the box."""
    mask = np.ones(shape, np.float32)
    mask[tuple(slice(side // 2, None) for side in shape)] = 0
    return jnp.asarray(mask)


def _dipole(key, shape):
    """A source and a sink of the width of an eighth of the box, anywhere."""
    centres = jax.random.uniform(key, (2, len(shape)), minval=0.2, maxval=0.8)
    axes = [(np.arange(side) + 0.5) / side for side in shape]
    x = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)
    blob = lambda c: jnp.exp(-0.5 * jnp.sum((x - c) ** 2, -1) / 0.0625**2)
    return blob(centres[0]) - blob(centres[1])
