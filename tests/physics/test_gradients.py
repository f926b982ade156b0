"""Gradient estimators against known gradients, and reports that say what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.physics import bodies, contact, gradients
from jaxwm.physics.dynamics import Dynamics, rollout
from jaxwm.physics.rigid import rigid

SIGMA = 0.1


def bowl(theta, key):
    """A quadratic whose smoothed gradient is its own."""
    del key
    return jnp.sum(theta["a"] ** 2) + 3 * theta["b"]


THETA = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
TRUE = {"a": np.array([2.0, -4.0]), "b": np.array(3.0)}


def projectile(theta, key):
    """Minus the range of a throw at angle theta; a wall stops those that are low."""
    del key
    speed, gravity, wall, height = 10.0, 9.81, 5.0, 2.2
    landing = speed**2 * jnp.sin(2 * theta) / gravity
    time = wall / (speed * jnp.cos(theta))
    clears = speed * jnp.sin(theta) * time - 0.5 * gravity * time**2 > height
    return -jnp.where(clears, landing, wall)


def smoothed_slope(theta):
    """d/dθ E[f(θ + w)] by quadrature."""
    w = np.linspace(-6 * SIGMA, 6 * SIGMA, 200_001)
    density = np.exp(-0.5 * (w / SIGMA) ** 2) / (SIGMA * np.sqrt(2 * np.pi))
    values = np.asarray(projectile(jnp.asarray(theta + w), None))
    return np.trapezoid(values * w / SIGMA**2 * density, w)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "cost"),
    [
        (lambda f: gradients.first_order(f, num=400, sigma=SIGMA), (400, 400)),
        (lambda f: gradients.zeroth_order(f, num=400, sigma=SIGMA), (800, 0)),
        (lambda f: gradients.alpha_order(f, num=400, sigma=SIGMA), (1200, 400)),
        (lambda f: gradients.finite_difference(f, step=1e-2), (7, 0)),
        (lambda f: gradients.forward_mode(f), (4, 0)),
    ],
    ids=["first", "zeroth", "alpha", "difference", "forward"],
)
def test_every_estimator_finds_a_known_gradient_within_its_own_error(make, cost, key):
    found = jax.jit(lambda key: make(bowl)(THETA, key)._replace(n_forward=0))(key)
    error = sum(float(np.sum((np.asarray(found.grad[k]) - TRUE[k]) ** 2)) for k in TRUE)
    assert error <= 16 * float(found.variance) + 1e-4
    at_theta = 5 + 1.5
    assert float(found.value) == pytest.approx(at_theta, abs=0.1)
    plain = jax.eval_shape(lambda key: make(bowl)(THETA, key)[:4], key)
    assert jax.tree.structure(plain[0]) == jax.tree.structure(THETA)
    estimate = make(bowl)(THETA, jax.random.fold_in(key, 1))
    assert (estimate.n_forward, estimate.n_backward) == cost


def test_stated_variances_are_those_over_keys(key):
    for make in (gradients.first_order, gradients.zeroth_order):
        estimate = make(bowl, num=16, sigma=SIGMA)
        found = jax.jit(
            jax.vmap(lambda key, e=estimate: e(THETA, key)._replace(n_forward=0))
        )(jax.random.split(key, 500))
        key = jax.random.fold_in(key, 1)
        seen = sum(float(jnp.sum(jnp.var(g, 0))) for g in jax.tree.leaves(found.grad))
        assert float(jnp.mean(found.variance)) == pytest.approx(
            seen, rel=0.15, abs=1e-9
        )


def test_at_a_jump_the_first_order_is_blind_and_the_mixture_is_not(key):
    truth = smoothed_slope(0.6)
    theta = jnp.array(0.6)

    def averaged(make, key):
        estimate = make(projectile, num=1000, sigma=SIGMA)
        return jax.jit(lambda key: estimate(theta, key)._replace(n_forward=0))(key)

    keys = jax.random.split(key, 3)
    first = averaged(gradients.first_order, keys[0])
    zeroth = averaged(gradients.zeroth_order, keys[1])
    mixed = averaged(gradients.alpha_order, keys[2])
    assert abs(first.grad - truth) > 20 * np.sqrt(first.variance)
    assert abs(zeroth.grad - truth) < 4 * np.sqrt(zeroth.variance)
    # within three standard errors of the truth, by the default bound on the bias
    assert abs(mixed.grad - truth) < 3 * np.sqrt(zeroth.variance)
    assert mixed.alpha < 0.5


def bounce(stiffness):
    """Height of a ball that falls on a spring, as a function of its first height."""
    model = contact.compliant(stiffness=stiffness)
    dt = 1e-3
    dyn = rigid(bodies.point_mass(), model, dt=dt)

    def height(theta, key):
        del key
        start = bodies.State(jnp.stack([jnp.zeros(()), theta]), jnp.zeros(2))
        return rollout(dyn, dyn.params, start, jnp.zeros((900, 2)))[0].q[1]

    return height


@pytest.mark.slow
def test_first_order_wins_on_soft_ground_and_loses_on_stiff(key):
    def spreads(stiffness):
        found = []
        for make in (gradients.first_order, gradients.zeroth_order):
            estimate = make(bounce(stiffness), num=64, sigma=0.05)
            run = jax.jit(lambda key, e=estimate: e(jnp.array(1.0), key).variance)
            found.append(float(run(jax.random.fold_in(key, len(found)))))
        return found

    soft_first, soft_zeroth = spreads(1e3)
    stiff_first, stiff_zeroth = spreads(1e5)
    assert soft_first < soft_zeroth
    assert stiff_first > stiff_zeroth


@pytest.mark.slow
def test_the_mixture_is_no_noisier_than_the_better_one(key):
    keys = iter(jax.random.split(key, 6))
    for stiffness in (1e3, 1e5):
        height = bounce(stiffness)
        spread = {}
        for make in (
            gradients.first_order,
            gradients.zeroth_order,
            gradients.alpha_order,
        ):
            estimate = make(height, num=64, sigma=0.05)
            run = jax.jit(lambda key, e=estimate: e(jnp.array(1.0), key).variance)
            spread[make.__name__] = float(run(next(keys)))
        best = min(spread["first_order"], spread["zeroth_order"])
        # variances are themselves estimates of 64 samples
        assert spread["alpha_order"] < 1.6 * best


@pytest.mark.parametrize("slope", [0.1, 1.0, 10.0])
def test_a_mixture_without_a_bound_on_the_bias_has_the_least_variance(slope, key):
    def curved(x, key):
        del key
        return jnp.sin(slope * x) / slope

    def spread(make, key, **options):
        estimate = make(curved, num=200, sigma=0.3, **options)
        return jax.jit(lambda key: estimate(jnp.array(0.4), key).variance)(key)

    mixed = spread(gradients.alpha_order, jax.random.clone(key), gamma=1e6)
    first_key, zeroth_key = jax.random.split(key)  # as the mixture splits it
    first = spread(gradients.first_order, first_key)
    zeroth = spread(gradients.zeroth_order, zeroth_key)
    np.testing.assert_allclose(mixed, first * zeroth / (first + zeroth), rtol=1e-4)


@pytest.mark.slow
def test_a_mixture_with_a_broken_first_order_is_the_zeroth(key):
    estimate = gradients.alpha_order(
        lambda x, key: jnp.sqrt(jnp.abs(x) * 0) + x, num=16, sigma=0.1
    )
    found = estimate(jnp.array(1.0), key)
    assert found.alpha == 0 and np.isfinite(found.grad) and np.isfinite(found.variance)


def test_the_report_trusts_a_smooth_objective(key, x64):
    theta = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
    report = jax.jit(lambda k: gradients.check_gradient(bowl, theta, k, sigma=0.1))(key)
    assert report.relative_error.max() < 1e-6
    assert report.roughness < 1e-6
    assert report.bias < 4 and report.variance_ratio < 1 and report.finite


def test_the_report_distrusts_a_jump(key):
    theta = jnp.array([0.6])
    report = jax.jit(
        lambda k: gradients.check_gradient(
            lambda x, key: projectile(x[0], key), theta, k, sigma=0.3, num=1000
        )
    )(key)
    assert report.bias > 5
    assert report.roughness > 0.5


@pytest.mark.slow
def test_the_report_sees_the_wrong_gradient_of_the_naive_impulse(key, x64):
    dyn = rigid(bodies.point_mass(gravity=0.0), contact.impulse(), dt=0.01)

    def height(h, key):
        del key
        start = bodies.State(jnp.array([0.0, 1.0]) * h[0], jnp.array([0.0, -1.0]))
        return rollout(dyn, dyn.params, start, jnp.zeros((150, 2)))[0].q[1]

    report = gradients.check_gradient(
        height, jnp.array([0.7003]), key, sigma=0.1, steps=(0.1,), num=4
    )
    assert report.relative_error.min() > 1.5  # +1 instead of -1


@pytest.mark.slow
def test_adjoints_and_contact_are_counted_step_by_step():
    dyn = rigid(
        bodies.point_mass(gravity=0.0), contact.compliant(stiffness=1e3), dt=0.01
    )
    start = bodies.State(jnp.array([0.0, 0.3]), jnp.array([0.0, -1.0]))

    def touching(params, state):
        return bodies.point_mass().gaps(params, state.q)[0] < 0

    report = gradients.check_rollout(
        dyn, dyn.params, start, jnp.zeros((60, 2)), lambda s: s.q[1], touching=touching
    )
    final, path = rollout(dyn, dyn.params, start, jnp.zeros((60, 2)))
    assert report.value == final.q[1]
    assert float(report.in_contact) == pytest.approx(
        float(jnp.mean(path.state.q[:, 1] < 0))
    )
    assert 0 < report.in_contact < 0.5
    assert float(report.adjoint[-1]) == pytest.approx(1.0)
    assert report.first_bad == report.bad_leaf == -1


@pytest.mark.slow
def test_one_report_holds_agreement_bias_adjoints_contact_and_nan(key, x64):
    ball = bodies.point_mass(gravity=0.0)
    dyn = rigid(ball, contact.time_of_impact(), dt=0.02)

    def start(h):
        return bodies.State(jnp.array([0.0, 1.0]) * h[0], jnp.array([0.0, -1.0]))

    def height(h, key):
        del key
        return rollout(dyn, dyn.params, start(h), jnp.zeros((50, 2)))[0].q[1]

    def steps(h):
        return gradients.check_rollout(
            dyn,
            dyn.params,
            start(h),
            jnp.zeros((50, 2)),
            lambda s: s.q[1],
            touching=lambda params, s: ball.gaps(params, s.q)[0] < 0.02,
        )

    report = jax.jit(
        lambda k: gradients.check_gradient(
            height, jnp.array([0.503]), k, sigma=0.05, num=16, points=9, rollout=steps
        )
    )(key)
    assert report.finite and report.relative_error.max() < 1e-8
    assert report.roughness < 1e-6 and report.bias < 4 and report.variance_ratio < 1
    # position is felt one to one, velocity by the time that is left: sqrt(1 + left^2)
    left = 0.02 * np.arange(49, -1, -1)
    np.testing.assert_allclose(report.steps.adjoint, np.sqrt(1 + left**2), rtol=1e-6)
    assert 0 < report.steps.in_contact < 0.1
    assert report.steps.first_bad == report.steps.bad_leaf == -1
    assert report.steps.value == height(jnp.array([0.503]), key)


def test_the_step_where_nan_begins_is_named():
    def step(params, state, action):
        # the root has no derivative at 0, where step 3 arrives
        return {"x": state["x"] - 1, "y": jnp.sqrt(state["x"] - params) + state["y"]}

    dyn = Dynamics(None, step, lambda p, s: s["x"][None], 1.0, 1, 0.0)
    start = {"x": jnp.array(4.0), "y": jnp.array(0.0)}
    report = gradients.check_rollout(
        dyn, jnp.array(0.0), start, jnp.zeros((5, 1)), lambda s: s["y"]
    )
    # the fifth step reads x = 0, reached by the fourth, whose index is 3
    assert report.first_bad == 3 and report.bad_leaf == 0
    assert not np.isfinite(report.adjoint[3]) and np.isfinite(report.adjoint[4])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: gradients.first_order(bowl, num=1, sigma=0.1),
            "num must be at least 2",
        ),
        (
            lambda: gradients.zeroth_order(bowl, num=4, sigma=0.0),
            "sigma must be positive",
        ),
        (
            lambda: gradients.alpha_order(bowl, num=4, sigma=0.0),
            "sigma must be positive",
        ),
        (
            lambda: gradients.first_order(bowl, num=4, sigma=-1.0),
            "must not be negative",
        ),
        (
            lambda: gradients.alpha_order(bowl, num=4, sigma=0.1, gamma=0.0),
            "gamma must be positive",
        ),
        (lambda: gradients.finite_difference(bowl, step=0.0), "step must be positive"),
        (
            lambda: gradients.check_gradient(
                bowl, THETA, jax.random.key(0), sigma=0.1, points=2
            ),
            "points must be at least 3",
        ),
        (
            lambda: gradients.check_gradient(
                bowl, THETA, jax.random.key(0), sigma=0.1, directions=0
            ),
            "directions must be at least 1",
        ),
    ],
)
def test_settings_without_sense_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
