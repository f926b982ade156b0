"""Dynamics and reward that are learnt, held and exchanged apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_system import SPEC

from jaxwm.dynamics import modular
from jaxwm.types import Trajectory

OBS, ACTION = SPEC.flat_sizes("the test")
MODEL = modular.modular(modular.TINY, SPEC)


def windows(num=16):
    rng = np.random.default_rng(0)
    draw = lambda size: jnp.asarray(rng.uniform(-1, 1, (num, 1, size)), jnp.float32)
    obs, following, one = draw(OBS), draw(OBS), jnp.ones((num, 1))
    extras = {"next_obs": following}
    return Trajectory(obs, draw(ACTION), draw(1)[..., 0], one, one, extras)


def test_frozen_dynamics_stay_while_the_reward_is_learnt(key):
    first = MODEL.init(key)
    frozen = first._replace(buffers={"frozen": jnp.ones(())})

    def moved(state, rows, part):
        pairs = zip(
            jax.tree.leaves(fit(state, rows).params[part]),
            jax.tree.leaves(first.params[part]),
            strict=True,
        )
        return any(not np.array_equal(a, b) for a, b in pairs)

    rows = windows()
    with jax.debug_key_reuse(False):  # the fit draws nothing, but splits its key
        fit = jax.jit(lambda state, rows: MODEL.fit(key, state, rows)[0])
        assert moved(first, rows, "dynamics") and moved(first, rows, "reward")
        assert not moved(frozen, rows, "dynamics") and moved(frozen, rows, "reward")
        # Rows that are masked, as those of an empty buffer, teach nothing.
        blank = rows._replace(mask=jnp.zeros((16, 1)))
        assert not moved(first, blank, "dynamics")


def test_a_reward_goes_with_other_dynamics(key):
    """It judges the states that the other dynamics reach."""
    one_key, other_key, key = jax.random.split(key, 3)
    one, other = MODEL.init(one_key), MODEL.init(other_key)
    still = jax.tree.map(jnp.zeros_like, one.params["dynamics"])
    mixed = one._replace(params={**other.params, "dynamics": still})
    obs, actions = jnp.linspace(-1, 1, OBS), jnp.ones((3, ACTION))
    rollout = jax.jit(lambda s: MODEL.imagine(key, s, obs, actions, 3))(mixed)
    np.testing.assert_allclose(rollout.obs, jnp.broadcast_to(obs, (3, OBS)), rtol=1e-6)
    np.testing.assert_allclose(rollout.reward, rollout.reward[0])
    assert rollout.reward[0] != 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0"),
    ],
)
def test_settings_without_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        modular.Config(**change)
