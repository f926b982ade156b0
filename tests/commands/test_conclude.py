"""What a page asks a world model: the causes it sees, the frames it paints."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.commands import conclude
from jaxwm.core import dists
from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.types import Box, ModelSpec, ModelState, Rollout, Trajectory


def model(name: str, abilities: frozenset[str]):
    """Two numbers; the second drives the first in every other step."""
    spec = ModelSpec(
        obs=jax.ShapeDtypeStruct((2,), np.dtype("float32")),
        action=Box((-1.0,), (1.0,)),
        feature_size=2,
        horizon=1,
        context=1,
        abilities=abilities,
        window=2,
        name=name,
        tokens=("ball", "paddle", "action"),
    )

    def step(key, state, obs, action):
        del key
        graph = jnp.eye(2, 3, dtype=bool).at[0, 1].set(obs[1] % 2 == 0)
        after = obs + state.params * jnp.array([0.0, 1.0])
        info = {"graph": graph, "entropy": jnp.sum(action)}
        return Step(after, jnp.zeros(()), jnp.ones(()), info)

    nothing = lambda *_: None
    return from_step(spec, step, init=nothing, loss=nothing, fit=nothing)


def test_models_of_images_paint_what_they_saw_and_what_they_imagine():
    """A model that counts: it is told the count of the newest frame, and adds."""
    obs = jax.ShapeDtypeStruct((2, 3, 3), np.dtype("uint8"))
    counting = model("counts", frozenset({"decode"}))
    counting = counting._replace(
        spec=counting.spec._replace(obs=obs, context=2, window=5),
        initial=lambda state, task=None: jnp.zeros(()),
        observe=lambda key, state, memory, obs, action, is_first: jnp.float32(
            obs[0, 0, 0]
        ),
        decode=lambda state, memory: jnp.full((2, 3, 3), memory, jnp.uint8),
    )

    def imagine(key, state, memory, actions, horizon):
        count = memory + jnp.cumsum(actions[:, 0]) - actions[:, 0]
        painted = jnp.broadcast_to(count[:, None, None, None], (horizon, 2, 3, 3))
        return Rollout(painted.astype(jnp.uint8), None, actions, None, None, {})

    counting = counting._replace(imagine=imagine)
    seen = jnp.array([3, 5, 9, 20, 40], jnp.uint8)
    windows = Trajectory(
        jnp.broadcast_to(seen[None, :, None, None, None], (2, 5, 2, 3, 3)),
        jnp.broadcast_to(jnp.arange(5.0)[None, :, None], (2, 5, 1)),
        *jnp.ones((3, 2, 5)),
        extras={},
    )
    state = ModelState((), {}, ())
    models = {"counts": (counting, state), "flat": (model("flat", frozenset()), state)}
    found = conclude.frames(jax.random.key(0), models, windows)
    assert set(found) == {"counts"}
    rows = {name: row[:, 0, 0, 0].tolist() for name, row in found["counts"].items()}
    # It reads two frames; then come the actions 1, 2 and 3.
    assert rows == {
        "real": [5, 9, 20, 40],
        "decoded": [5, 9, 20, 40],
        "imagined": [5, 6, 8, 11],
    }


def test_only_models_with_graphs_are_asked_and_only_for_what_is_drawn():
    windows = Trajectory(
        jnp.arange(12.0).reshape(3, 2, 2),
        jnp.zeros((3, 2, 1)),
        *jnp.ones((3, 3, 2)),
        extras={},
    )
    state = ModelState(jnp.float32(1.0), {}, ())
    models = {
        "sees": (model("sees", frozenset({"graph"})), state),
        "blind": (model("blind", frozenset()), state),
    }
    policy = lambda mean: lambda feature: dists.Normal(mean, jnp.ones(1))
    found = conclude.structure(jax.random.key(0), models, policy, jnp.zeros(1), windows)
    assert set(found) == {"sees"}
    assert set(found["sees"]) == {"graph", "tokens"}
    assert found["sees"]["tokens"] == ("ball", "paddle", "action")
    graph = found["sees"]["graph"]
    assert graph.shape == (conclude._EXPLAINED, 2, 3) and graph.dtype == bool
    # The first window starts with 1 in the second place.
    np.testing.assert_array_equal(graph[:, 0, 1], np.arange(len(graph)) % 2 == 1)


def test_what_an_agent_sees_is_enlarged_without_smoothing():
    frames = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    large = conclude._enlarged(frames)
    assert large.shape == (2, 120, 160, 3) and large.dtype == np.uint8
    np.testing.assert_array_equal(large[:, ::40, ::40], frames)
