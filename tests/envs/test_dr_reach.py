"""The reach task: its motion, its pictures, and what a look may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxwm import envs
from jaxwm.envs.tasks import dr_reach
from jaxwm.envs.tasks.dr_reach import Reach

SIDE = dr_reach.SIDE
HERE = Reach(jnp.array([0.5, -0.4]), jnp.zeros(2), jnp.array([-0.6, 0.5]))


@pytest.fixture(scope="module")
def paint():
    return jax.jit(dr_reach.paint)


def centre(weight):
    """Mean position (right, up) in metres of a picture's weight."""
    line = (np.arange(SIDE) - (SIDE - 1) / 2) / 9
    total = weight.sum()
    return np.array([(weight.sum(0) * line).sum(), -(weight.sum(1) * line).sum()]) / (
        total
    )


def test_motion_is_semi_implicit_euler_with_drag(key):
    env = envs.make("dr_reach", engine="jax", gain=5.0, drag=0.2)
    start = Reach(jnp.zeros(2), jnp.array([0.5, -1.0]), jnp.array([0.3, 0.4]))
    state = env.step(key, env.reset_to(start), jnp.array([1.0, -3.0]))
    v = 0.8 * np.array([0.5, -1.0]) + 5 * 0.1 * np.array([1.0, -1.0])
    np.testing.assert_allclose(state.physics.v, v, rtol=1e-6)
    np.testing.assert_allclose(state.physics.x, 0.1 * v, rtol=1e-6)
    square = np.sum((0.1 * v - np.array([0.3, 0.4])) ** 2)
    np.testing.assert_allclose(state.reward, np.exp(-square / 0.18), rtol=1e-5)
    np.testing.assert_array_equal(
        state.obs, np.concatenate([state.physics.x, state.physics.v, start.goal])
    )


def test_a_wall_takes_the_speed_across_it(key):
    env = envs.make("dr_reach", engine="jax")
    start = Reach(jnp.array([0.99, 0.0]), jnp.array([1.0, 1.0]), jnp.zeros(2))
    state = env.step(key, env.reset_to(start), jnp.zeros(2))
    np.testing.assert_allclose(state.physics.x, [1.0, 0.085], rtol=1e-5)
    np.testing.assert_allclose(state.physics.v, [0.0, 0.85], rtol=1e-5)


def test_success_is_a_place_inside_the_ring():
    for away, inside in ((0.24, True), (0.26, False)):
        state = Reach(jnp.array([away, 0.0]), jnp.zeros(2), jnp.zeros(2))
        assert bool(dr_reach.succeeded(state)) is inside


def test_agent_and_goal_are_painted_where_they_are(paint):
    image = np.asarray(paint(HERE, dr_reach.plain()))
    assert image.shape == (SIDE, SIDE, 3)
    red = np.clip(image[..., 0] - image[..., 1], 0.3, None) - 0.3
    np.testing.assert_allclose(centre(red), HERE.x, atol=0.06)
    without = HERE._replace(goal=jnp.array([5.0, 5.0]))
    ring = np.abs(image - np.asarray(paint(without, dr_reach.plain()))).sum(-1)
    np.testing.assert_allclose(centre(ring), HERE.goal, atol=0.06)
    row, column = (
        round(11.5 - 9 * float(HERE.goal[1])),
        round(11.5 + 9 * float(HERE.goal[0])),
    )
    assert ring[row, column] < 0.3 * ring.max()  # a ring is empty in the middle


def test_a_shifted_camera_shifts_the_picture(paint):
    plain = dr_reach.plain()
    moved = plain._replace(shift=jnp.array([2.0, -1.0]))
    one, two = (np.asarray(paint(HERE, domain)) for domain in (plain, moved))
    np.testing.assert_allclose(two[:-1, 2:], one[1:, :-2], atol=1e-5)


def test_brightness_scales_and_bytes_round(paint):
    plain = dr_reach.plain()
    dark = paint(HERE, plain._replace(brightness=jnp.float32(0.3)))
    np.testing.assert_allclose(dark, 0.3 * paint(HERE, plain), rtol=1e-5)
    seen = dr_reach.as_bytes(jnp.array([0.0, 0.5, 1.0]))
    assert seen.dtype == jnp.uint8
    np.testing.assert_array_equal(seen, [0, 128, 255])


def test_noise_is_centred_of_its_size_and_new_when_the_agent_moves(paint):
    grey = dr_reach.plain()._replace(noise=jnp.float32(0.05), grain=jnp.float32(3.0))
    clean = np.asarray(paint(HERE, dr_reach.plain()))
    noise = np.asarray(paint(HERE, grey)) - clean
    free = (clean > 0.2) & (clean < 0.8)  # nothing is clipped there
    assert abs(noise[free].mean()) < 0.01
    assert noise[free].std() == pytest.approx(0.05, rel=0.1)
    np.testing.assert_array_equal(paint(HERE, grey), clean + noise)
    moved = HERE._replace(x=HERE.x + 0.01)
    other = np.asarray(paint(moved, grey)) - np.asarray(paint(moved, dr_reach.plain()))
    assert abs(np.corrcoef(noise[free], other[free])[0, 1]) < 0.15


def test_families_of_looks_do_not_overlap(key):
    draw = lambda looks: jax.jit(
        jax.vmap(lambda key: dr_reach.draw_domain(key, looks))
    )(jax.random.split(jax.random.clone(key), 300))
    known, held_out = draw(dr_reach.TRAINING), draw(dr_reach.HELD_OUT)
    assert known.brightness.min() >= 0.5 and known.brightness.max() <= 1.5
    np.testing.assert_allclose(np.unique(held_out.brightness), [0.3, 1.8], rtol=1e-6)
    count = lambda drawn: (np.asarray(drawn.blob_radius) > 0).sum(1)
    assert set(count(known)) == {0, 1, 2, 3} and set(count(held_out)) == {5}
    for drawn in (known, held_out):
        assert np.abs(drawn.shift).max() <= 3
        np.testing.assert_allclose(np.linalg.norm(drawn.slope, axis=1), 1, rtol=1e-5)
    # Greens: green leads in every held-out background and hardly in training.
    leads = lambda drawn: np.asarray(drawn.background).argmax(-1) == 1
    assert leads(held_out).mean() > 0.8 > 0.3 > leads(known).mean()


def test_the_picture_is_smooth_in_the_state(paint):
    domain = dr_reach.plain()

    @jax.jit
    def some_pixels(x):
        return dr_reach.paint(HERE._replace(x=x), domain)[10:18, 12:20, 0]

    with jax.enable_x64(True):
        check_grads(some_pixels, (jnp.array([0.31, -0.22]),), 1, ("rev",))


@pytest.mark.slow
def test_in_images_the_look_stays_and_the_world_moves_on(key):
    env = dr_reach.in_images(dr_reach.TRAINING)
    start = env.reset(key)
    assert start.obs.shape == env.spec.obs.shape and start.obs.dtype == jnp.uint8
    after = jax.jit(env.step)(key, start, jnp.ones(2))
    jax.tree.map(np.testing.assert_array_equal, start.physics[1], after.physics[1])
    again = env.reset_to(after.physics, after.params)
    # Compiled or not, up to the rounding of a pixel.
    np.testing.assert_allclose(1.0 * after.obs, 1.0 * again.obs, atol=1)
    assert not np.array_equal(start.obs, after.obs)
