"""Noise from keys, both calculi, input paths, and a solver that runs backwards."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxwm.physics import fixed_point, ode, sde

TIMES = np.array([0.0, 0.3, 1.0])


def drift(t, z, params):
    return params["a"] * jnp.sin(z) + t


def diffusion(t, z, params):
    return params["b"] * jnp.cos(z)


def test_a_brownian_path_adds_up_and_does_not_depend_on_the_order(key, x64):
    path = sde.brownian(key, 0.0, 1.0, 2)
    whole = path.evaluate(0.2, 0.9)
    parts = path.evaluate(0.5, 0.9) + path.evaluate(0.2, 0.5)
    np.testing.assert_allclose(whole, parts, atol=1e-12)
    again = sde.brownian(jax.random.clone(key), 0.0, 1.0, 2)
    np.testing.assert_array_equal(again.evaluate(0.2, 0.9), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "calculus", "growth"), [("euler", "ito", 0.0), ("heun", None, 0.125)]
)
def test_each_solver_converges_to_its_own_calculus(key, solver, calculus, growth):
    """dz = z dW / 2: the mean stays in Ito's sense and grows in Stratonovich's."""
    options = {} if calculus is None else {"calculus": calculus}

    def one(key):
        return sde.sdeint(
            key,
            lambda t, z, p: jnp.zeros(1),
            lambda t, z, p: 0.5 * z,
            None,
            jnp.ones(1),
            np.array([0.0, 1.0], np.float32),
            step_size=0.1,
            solver=solver,
            **options,
        )[-1, 0]

    ends = jax.jit(jax.vmap(one))(jax.random.split(key, 4000))
    error = jnp.std(ends) / np.sqrt(4000)
    assert abs(jnp.mean(ends) - np.exp(growth)) < 4 * error


def steps_by_jax(key, params, y0, ts, sub_steps):
    """The reversible Heun method as a plain loop, differentiated by JAX."""
    z = z_hat = y0
    f, s = drift(ts[0], y0, params), diffusion(ts[0], y0, params)
    rows, i = [y0], 0
    for t0, t1 in itertools.pairwise(ts):
        dt = (t1 - t0) / sub_steps
        for j in range(sub_steps):
            noise = jax.random.normal(jax.random.fold_in(key, i), y0.shape, y0.dtype)
            dw = jnp.sqrt(dt) * noise
            z_hat = 2 * z - z_hat + f * dt + s * dw
            t = t0 + (j + 1) * dt
            f_next, s_next = drift(t, z_hat, params), diffusion(t, z_hat, params)
            z = z + 0.5 * (f + f_next) * dt + 0.5 * (s + s_next) * dw
            f, s, i = f_next, s_next, i + 1
        rows.append(z)
    return jnp.stack(rows)


@pytest.mark.slow
def test_the_reversible_solver_has_the_gradient_of_its_steps(key, x64):
    params = {"a": jnp.array(0.7), "b": jnp.array(0.3)}
    y0 = jnp.array([0.4, -1.1])
    weights = jnp.arange(6.0).reshape(3, 2)

    def loss(solve):
        return lambda params, y0: jnp.sum(weights * solve(params, y0) ** 2)

    reversible = loss(
        lambda params, y0: sde.reversible_heun(
            key, drift, diffusion, params, y0, jnp.array(TIMES), sub_steps=5
        )
    )
    plain = loss(
        lambda params, y0: steps_by_jax(
            jax.random.clone(key), params, y0, jnp.array(TIMES), 5
        )
    )
    value, found = jax.jit(jax.value_and_grad(reversible, (0, 1)))(params, y0)
    expected_value, expected = jax.jit(jax.value_and_grad(plain, (0, 1)))(params, y0)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8)


def test_the_memory_of_the_reversible_solver_does_not_grow_with_its_steps():
    def memory(sub_steps):
        def loss(params):
            ys = sde.reversible_heun(
                jax.random.key(0),
                drift,
                None,
                params,
                jnp.ones(64),
                jnp.array([0.0, 1.0]),
                sub_steps=sub_steps,
            )
            return jnp.sum(ys)

        compiled = jax.jit(jax.grad(loss)).lower({"a": 1.0}).compile()
        sizes = compiled.memory_analysis()
        assert sizes is not None
        return sizes.temp_size_in_bytes

    assert memory(1000) == memory(100)


def test_the_reversible_solver_is_of_second_order_without_noise(x64):
    turn = lambda t, z, p: jnp.stack([z[1], -z[0]])
    errors = [
        jnp.abs(
            sde.reversible_heun(
                jax.random.key(0),
                turn,
                None,
                None,
                jnp.array([1.0, 0.0]),
                jnp.array([0.0, 2.0]),
                sub_steps=n,
            )[-1, 0]
            - np.cos(2.0)
        )
        for n in (20, 40)
    ]
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 2, atol=0.2)


@pytest.mark.slow
def test_a_linear_controlled_equation_multiplies_its_increments(x64):
    """dz = z dX: z_1 = exp(X_1 - X_0), however X came there."""
    ts = np.linspace(0.0, 1.0, 6)
    xs = np.sin(3 * ts)[:, None]
    control = sde.cde_control(ts, xs)
    field = lambda z, a: a * jnp.stack([jnp.zeros(1), z], -1)
    z1, _ = sde.cdeint(field, 1.0, jnp.ones(1), control, rtol=1e-8, atol=1e-8)
    # Steps end where they will, not at the kinks of the control.
    np.testing.assert_allclose(z1, np.exp(xs[-1] - xs[0]), rtol=1e-5)


def test_gaps_are_bridged_and_told():
    ts = np.linspace(0.0, 1.0, 5).astype(np.float32)
    xs = np.array([[0.0], [np.nan], [2.0], [np.nan], [np.nan]], np.float32)
    control = sde.cde_control(ts, xs, mask=True)
    assert control.coeffs[0].shape == (4, 3)
    assert all(np.isfinite(c).all() for c in control.coeffs)
    with pytest.raises(ValueError, match="xs has 3 missing entries"):
        sde.cde_control(ts, xs)
    with pytest.raises(ValueError, match="whole in its first row"):
        sde.cde_control(ts, xs[::-1], mask=True)


@pytest.mark.slow
def test_the_reversible_solver_leaves_what_contracts_and_heuns_method_does_not(key):
    contract = lambda t, y, params: -2.0 * y
    ts, y0 = jnp.array([0.0, 5.0, 10.0]), jnp.ones(1)
    reversible = sde.reversible_heun(key, contract, None, (), y0, ts, sub_steps=50)
    plain, _ = ode.odeint(contract, (), y0, ts, solver="heun", step_size=0.1)
    np.testing.assert_allclose(reversible[1:, 0], [-2.0, -4.1e4], rtol=0.05)
    np.testing.assert_allclose(plain[1:, 0], [4.9e-5, 2.4e-9], rtol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "tsit5"}, "solver must be one of euler, .* got 'tsit5'"),
        ({"solver": "euler"}, "converges to the ito solution, calculus is 'strat"),
        ({"calculus": "other"}, 'calculus must be "ito" or "stratonovich"'),
        ({"step_size": 0.0}, "step_size must be positive, got 0"),
    ],
)
def test_wrong_settings_are_refused(key, change, message):
    options = {"step_size": 0.1, **change}
    params = {"a": 1.0, "b": 1.0}
    with pytest.raises(ValueError, match=message):
        sde.sdeint(key, drift, diffusion, params, jnp.ones(1), TIMES, **options)


def test_a_step_size_that_is_traced_is_refused(key):
    params = {"a": 1.0, "b": 1.0}
    solve = lambda x: sde.sdeint(
        key, drift, diffusion, params, jnp.ones(1), TIMES, step_size=x
    )
    with pytest.raises(ValueError, match="step_size must be a number known while trac"):
        jax.jit(solve)(0.1)


def test_the_ends_of_a_path_and_the_number_of_sub_steps_are_checked(key):
    with pytest.raises(ValueError, match="t1 must lie behind t0"):
        sde.brownian(key, 1.0, 1.0, 1)
    with pytest.raises(ValueError, match="sub_steps must be at least 1, got 0"):
        sde.reversible_heun(
            key, drift, None, {}, jnp.ones(1), jnp.array(TIMES), sub_steps=0
        )


def layer(w, x, z):
    return jnp.tanh(w @ z + x)


@pytest.mark.slow
@pytest.mark.parametrize("backward", ["gmres", "neumann"])
def test_a_fixed_point_and_its_gradient_are_those_of_many_iterations(backward, x64):
    w = 0.4 * jnp.array([[0.5, -1.0], [0.8, 0.3]])
    x = jnp.array([0.3, -0.7])

    def solved(w, x):
        return fixed_point.fixed_point_layer(
            layer, w, x, jnp.zeros(2), tol=1e-12, backward=backward
        ).z

    def iterated(w, x):
        z = jnp.zeros(2)
        for _ in range(60):
            z = layer(w, x, z)
        return z

    np.testing.assert_allclose(solved(w, x), iterated(w, x), atol=1e-10)
    check_grads(jax.jit(solved), (w, x), 1, ("rev",), rtol=1e-5)


def test_a_map_that_does_not_contract_shows_in_its_residual():
    found = fixed_point.fixed_point_layer(
        lambda p, x, z: z + 1.0, None, None, jnp.zeros(2), max_iterations=20
    )
    assert found.residual > 1e-3
    assert found.num_iterations == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": 0}, "memory must be at least 1, got 0"),
        ({"tol": 0.0}, "tol must be positive, got 0"),
        ({"backward": "exact"}, 'backward must be "gmres" or "neumann"'),
    ],
)
def test_wrong_settings_of_a_fixed_point_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fixed_point.fixed_point_layer(
            layer, jnp.eye(2), jnp.ones(2), jnp.zeros(2), **change
        )
