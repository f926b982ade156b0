"""Regularisers: what they add, how often, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwm import measures

PARAMS = {
    "W": jax.random.normal(jax.random.key(0), (5, 4)),
    "b": jnp.ones(4),
}


def loss(params, x):
    return jnp.sum((x @ params["W"] + params["b"]) ** 2)


X = jax.random.normal(jax.random.key(1), (3, 5))


def always_run(jaxpr, primitive):
    """Whether a primitive stands outside of every branch."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            return True
        if equation.primitive.name != "cond":
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns") and always_run(inner, primitive):
                    return True
    return False


def test_the_penalty_enters_every_kth_step_with_weight_k():
    regularised = measures.with_spectral_entropy(loss, 0.3, every=4)
    penalty = measures.spectral_entropy_penalty(PARAMS)
    plain = loss(PARAMS, X)
    for step, times in [(0, 4), (1, 0), (3, 0), (4, 4)]:
        found = jax.jit(regularised)(PARAMS, X, step=jnp.int32(step))
        np.testing.assert_allclose(found - plain, 0.3 * times * penalty, atol=1e-4)


def test_steps_between_do_not_decompose():
    """The penalty lies inside the branch: a NaN there never shows elsewhere."""
    bad = {**PARAMS, "unused": jnp.full((3, 3), jnp.nan)}
    regularised = measures.with_spectral_entropy(loss, 1.0, every=2)
    grads = jax.jit(jax.grad(regularised))
    assert np.isfinite(grads(bad, X, step=jnp.int32(1))["W"]).all()
    assert np.isnan(regularised(bad, X, step=jnp.int32(0)))


def chain_of(steps, *args, **options):
    """Updates that the transformation adds to zeros, `[steps, ...]`."""
    transform = measures.spectral_entropy_decay(*args, **options)
    state = transform.init(PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    update = jax.jit(transform.update)
    found = []
    for i in range(steps):
        moved = jax.tree.map(lambda p, i=i: p * (1 + 0.1 * i) + 0.1 * i, PARAMS)
        updates, state = update(zeros, state, moved)
        found.append(updates)
    return found


@pytest.mark.slow
def test_the_transformation_adds_the_gradient_of_the_penalty():
    grad = jax.grad(measures.spectral_entropy_penalty)(PARAMS)
    updates = chain_of(5, 0.2, every=3)
    np.testing.assert_allclose(updates[0]["W"], 0.6 * grad["W"], rtol=1e-4, atol=1e-6)
    assert all(np.all(u["b"] == 0) for u in updates)
    zero = [bool(np.all(u["W"] == 0)) for u in updates]
    assert zero == [False, True, True, False, True]


def test_held_gradients_are_added_at_every_step():
    grad = jax.grad(measures.spectral_entropy_penalty)(PARAMS)
    updates = chain_of(4, 0.2, every=3, hold=True)
    for u in updates[:3]:
        np.testing.assert_allclose(u["W"], 0.2 * grad["W"], rtol=1e-4, atol=1e-6)
    assert np.any(np.abs(updates[3]["W"] - updates[2]["W"]) > 1e-4)


def test_it_equals_the_penalty_in_the_loss():
    regularised = measures.with_spectral_entropy(loss, 0.1, every=2)
    inside = optax.adam(1e-2)
    chained = optax.chain(
        measures.spectral_entropy_decay(0.1, every=2), optax.adam(1e-2)
    )

    def run(optimiser, grad_of):
        def step(carry, i):
            params, state = carry
            grads = grad_of(params, i)
            updates, state = optimiser.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        first = (PARAMS, optimiser.init(PARAMS))
        return jax.lax.scan(step, first, jnp.arange(5))[0][0]

    a = run(inside, lambda p, i: jax.grad(regularised)(p, X, step=i))
    b = run(chained, lambda p, i: jax.grad(loss)(p, X))
    np.testing.assert_allclose(a["W"], b["W"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("hold", [False, True])
def test_seeds_side_by_side_decompose_only_when_due(hold):
    """A batched branch would run the decomposition at every step."""
    transform = measures.spectral_entropy_decay(1.0, every=3, hold=hold)
    seeds = jnp.stack([jnp.eye(4, 3), jnp.arange(12.0).reshape(4, 3) / 10])
    state = jax.vmap(transform.init)(seeds)
    update = jax.jit(jax.vmap(transform.update))
    alone = [transform.init(W) for W in seeds]
    for _ in range(4):
        found, state = update(jnp.zeros_like(seeds), state, seeds)
        for i, W in enumerate(seeds):
            wanted, alone[i] = transform.update(jnp.zeros_like(W), alone[i], W)
            np.testing.assert_allclose(found[i], wanted, atol=1e-5)
    program = jax.make_jaxpr(jax.vmap(transform.update))(seeds, state, seeds)
    assert " svd[" in str(program)
    assert not always_run(program.jaxpr, "svd")
    values = lambda W: jnp.linalg.svd(W, compute_uv=False)
    plain = jax.vmap(lambda now, W: jax.lax.cond(now, values, lambda W: W[:, 0], W))
    program = jax.make_jaxpr(plain)(jnp.array([True, False]), jnp.ones((2, 3, 3)))
    assert always_run(program.jaxpr, "svd")  # what a batched branch comes to


def test_noise_has_its_standard_deviation_and_moves_the_gradient():
    point = {"w": jnp.zeros(20_000)}
    moved = measures.weight_noise(lambda params: params["w"], 0.3)
    noise = moved(jax.random.key(7), point)
    np.testing.assert_allclose(noise.std(), 0.3, rtol=0.03)
    np.testing.assert_allclose(noise.mean(), 0.0, atol=0.01)
    quadratic = lambda params, a: 0.5 * a * jnp.sum(params["w"] ** 2)
    noisy = measures.weight_noise(jax.grad(quadratic), 0.3)
    found = noisy(jax.random.key(7), point, 2.0)["w"]
    np.testing.assert_allclose(found, 2 * noise, rtol=1e-5)


def test_no_noise_costs_nothing():
    silent = measures.weight_noise(loss, 0.0)
    program = str(jax.make_jaxpr(silent)(jax.random.key(7), PARAMS, X))
    assert "random_bits" not in program
    assert silent(jax.random.key(7), PARAMS, X) == loss(PARAMS, X)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measures.spectral_entropy_decay(-0.1), "coefficient must be at least"),
        (lambda: measures.with_spectral_entropy(loss, 0.1, every=0), "every must be"),
        (lambda: measures.weight_noise(loss, -1.0), "std must be at least 0, got -1"),
        (
            lambda: measures.spectral_entropy_decay(0.1).update(
                PARAMS, measures.spectral_entropy_decay(0.1).init(PARAMS)
            ),
            "needs params",
        ),
        (
            lambda: measures.with_spectral_entropy(loss, 0.1, method="x")(
                PARAMS, X, step=0
            ),
            "method must be one of",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
