"""The sampling loop: distributions, draws, warm starts, records, one compilation."""

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import diffusion
from jaxwm.diffusion import Noise, Term

SCHEDULE = diffusion.cosine_schedule(128)
LEVELS = diffusion.stride(SCHEDULE, 24)


def draw(key, steps, num=4000, **options):
    """Many one-dimensional samples of the Gaussian data."""
    keys = jax.random.split(key, num)
    one = lambda key: diffusion.sample(key, gaussian.denoise, steps, (1,), **options)
    return jax.vmap(one)(keys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps",
    [
        diffusion.ancestral(SCHEDULE),
        diffusion.ddim(SCHEDULE),
        diffusion.heun(diffusion.karras(32, 0.02, 80.0)),
        diffusion.euler(diffusion.karras(128, 0.02, 80.0), churn=8.0),
        diffusion.dpmpp_2m(diffusion.karras(32, 0.02, 80.0)),
        diffusion.dpmpp_2m(diffusion.karras(32, 0.02, 80.0), eta=1.0),
    ],
    ids=["ancestral", "ddim", "heun", "churn", "dpmpp_2m", "dpmpp_2m_sde"],
)
def test_samples_have_the_moments_of_the_data(steps, key):
    x = jax.jit(lambda key: draw(key, steps).x)(key)
    np.testing.assert_allclose(x.mean(), gaussian.MEAN, atol=0.03)
    np.testing.assert_allclose(x.std(), gaussian.STD, rtol=0.06)


@pytest.mark.slow
def test_every_sampler_and_number_of_calls_shares_one_compilation(key):
    @jax.jit
    def sample(key, steps):
        return diffusion.sample(key, gaussian.denoise, steps, (3,)).x

    tables = [
        diffusion.ancestral(diffusion.stride(diffusion.cosine_schedule(32), n))
        for n in (1, 4, 32)
    ]
    tables.append(diffusion.heun(diffusion.karras(5)))
    tables.append(diffusion.dpmpp_2m(diffusion.exponential(7), eta=1.0))
    for steps in tables:
        once = sample(key, diffusion.pad(steps, 32))
        # Closed over, the table fixes the loop's length: the same numbers.
        closed = diffusion.sample(jax.random.clone(key), gaussian.denoise, steps, (3,))
        np.testing.assert_allclose(once, closed.x, atol=1e-5)
        key = jax.random.fold_in(jax.random.clone(key), 1)
    assert sample._cache_size() == 1


def test_recorded_noise_replaces_the_draws(key):
    steps = diffusion.ancestral(LEVELS)
    start = jnp.array([1.0])
    rows = jax.random.normal(jax.random.key(1), (steps.num, 1))
    out = diffusion.sample(
        key, gaussian.denoise, steps, (1,), noise=Noise(start, rows)
    ).x
    x = start
    for i in range(steps.num):
        level = jax.tree.map(lambda c: c[i], steps.level)  # noqa: B023
        x = steps.x[i] * x + steps.x0[i] * gaussian.denoise(x, level)
        x = x + steps.noise[i] * rows[i]
    np.testing.assert_allclose(out, x, rtol=1e-5)


def test_a_warm_start_begins_at_its_row(key):
    """Noised to a small level, a sample of the data keeps its place."""
    steps = diffusion.ddim(LEVELS)
    row = diffusion.row_below(steps, 0.05)
    init = jnp.array([1.4])
    result = jax.jit(
        lambda key, row: draw(key, steps, 200, init=init, start=row, record=True)
    )(key, row)
    np.testing.assert_allclose(result.x, 1.4, atol=0.2)
    # Rows before the start never ran.
    assert not np.any(result.info["x"][:, : int(row)])
    assert np.all(result.info["std"][:, int(row) :] == 0)


def test_records_hold_mean_deviation_and_log_density(key):
    steps = diffusion.ancestral(diffusion.stride(LEVELS, 5))
    result = diffusion.sample(key, gaussian.denoise, steps, (2,), record=True)
    info = result.info
    np.testing.assert_allclose(info["std"], steps.noise, rtol=1e-6)
    np.testing.assert_array_equal(info["x"][1:], info["x_after"][:-1])
    np.testing.assert_array_equal(info["x_after"][-1], result.x)
    z = (info["x_after"] - info["mean"])[:-1] / steps.noise[:-1, None]
    density = np.exp(-0.5 * z**2) / (np.sqrt(2 * np.pi) * steps.noise[:-1, None])
    np.testing.assert_allclose(
        info["log_prob"][:-1], np.log(density).sum(-1), rtol=1e-4
    )
    assert info["log_prob"][-1] == 0


def test_samples_may_be_any_pytree(key):
    like = {"a": jax.ShapeDtypeStruct((3,), jnp.float32), "b": jnp.zeros((2, 2))}
    denoise = lambda x, level, cond: jax.tree.map(
        lambda x: gaussian.denoise(x, level), x
    )
    x = diffusion.sample(key, denoise, diffusion.ancestral(LEVELS), like).x
    assert jax.tree.map(jnp.shape, x) == {"a": (3,), "b": (2, 2)}
    assert len(set(np.concatenate([x["a"], x["b"].ravel()]).tolist())) == 7


def test_gradients_flow_through_a_run_of_static_length():
    steps = diffusion.ddim(diffusion.stride(LEVELS, 4))
    noise = Noise(jnp.array([0.3]), jnp.zeros((4, 1)))

    def end(shift):
        denoise = lambda x, level, cond: gaussian.denoise(x, level) + cond
        key = jax.random.key(0)  # nothing is drawn from it
        result = diffusion.sample(key, denoise, steps, (1,), cond=shift, noise=noise)
        return result.x[0]

    # The run is affine in the shift.
    step = end(jnp.array(1.0)) - end(jnp.array(0.0))
    np.testing.assert_allclose(jax.grad(end)(jnp.array(0.2)), step, rtol=1e-4)


def test_terms_are_called_in_order_and_told_the_row(key):
    steps = diffusion.ancestral(diffusion.stride(LEVELS, 3))
    add = Term(on_x0=lambda x0, cond, step: x0 + 1.0)
    double = Term(on_x0=lambda x0, cond, step: 2.0 * x0)
    note = Term(on_cond=lambda key, cond, step: cond.at[step.row].set(step.left))
    zero = lambda x, level, cond: jnp.zeros_like(x)
    result = diffusion.sample(
        key, zero, steps, (2,), cond=jnp.zeros(3), terms=(add, double, note)
    )
    np.testing.assert_array_equal(result.x, 2.0)
    np.testing.assert_array_equal(result.cond, [2.0, 1.0, 0.0])


def test_only_one_term_may_choose_candidates(key):
    term = diffusion.search(lambda x: x.sum(), 2)
    with pytest.raises(ValueError, match="only one term may select"):
        diffusion.sample(
            key, gaussian.denoise, diffusion.ddim(LEVELS), (1,), terms=(term, term)
        )
