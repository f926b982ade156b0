"""The XLA engine: state alone is Markov, and constants follow the masses."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxwm.envs.mujoco import asset
from jaxwm.physics import mjx

MODELS = ("hopper", "halfcheetah", "walker2d", "inverted_pendulum")
DERIVED = ("body_subtreemass", "body_invweight0", "dof_invweight0")


@pytest.fixture
def rng():
    """Host random numbers."""
    return np.random.default_rng(7)


@pytest.fixture(scope="module")
def cartpole():
    """A simulator without constraints, and its compiled model."""
    model = asset("cartpole")
    return mjx.put(model), model


def state_of(model, rng):
    float32 = lambda x: jnp.asarray(x, jnp.float32)
    return mjx.MjState(
        float32(rng.normal(size=model.nq)),
        float32(rng.normal(size=model.nv)),
        float32(np.zeros(model.na)),
        float32(rng.normal(size=model.nv)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_constants_follow_masses_as_in_mujocos_compiler(rng, name):
    model = asset(name)
    simulator = mjx.put(model)
    model.body_mass *= rng.uniform(0.5, 2, model.nbody)
    model.body_inertia *= rng.uniform(0.5, 2, (model.nbody, 1))
    model.dof_armature *= rng.uniform(0.5, 2, model.nv)
    fields = {field: jnp.asarray(getattr(model, field)) for field in mjx.INERTIAL}

    def derive(fields):
        model = mjx.edited(simulator, fields).model
        return {field: getattr(model, field) for field in (*mjx.INERTIAL, *DERIVED)}

    edited = jax.jit(derive)(fields)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    for field, value in edited.items():
        np.testing.assert_allclose(value, getattr(model, field), rtol=2e-5, atol=1e-6)


def test_the_compiled_masses_give_the_compiled_constants():
    model = asset("hopper")
    simulator = mjx.put(model)
    same = mjx.edited(simulator, {"body_mass": simulator.model.body_mass}).model
    for field in DERIVED:
        np.testing.assert_allclose(
            getattr(same, field), getattr(model, field), rtol=2e-5, atol=1e-6
        )


@pytest.mark.slow
def test_the_state_alone_is_markov(rng, cartpole):
    # Filling blank data at every step gives, bit for bit, what carrying them gives.
    simulator, model = cartpole
    from mujoco import mjx as library

    state = state_of(model, rng)
    controls = jnp.asarray(rng.uniform(-1, 1, (20, 1)), jnp.float32)

    def carried(state):
        data = simulator.blank.replace(**state._asdict())

        def step(data, ctrl):
            return library.step(simulator.model, data.replace(ctrl=ctrl)), None

        data, _ = jax.lax.scan(step, data, controls)
        return mjx.MjState(data.qpos, data.qvel, data.act, data.qacc_warmstart)

    def ours(state):
        step = lambda state, ctrl: (mjx.step(simulator, state, ctrl), None)
        return jax.lax.scan(step, state, controls)[0]

    jax.tree.map(
        np.testing.assert_array_equal, jax.jit(ours)(state), jax.jit(carried)(state)
    )


@pytest.mark.slow
def test_substeps_are_steps(rng, cartpole):
    simulator, model = cartpole
    state, ctrl = state_of(model, rng), jnp.array([0.4])

    def both(state):
        once = mjx.step(simulator, state, ctrl, num_substeps=2)
        twice = mjx.step(simulator, mjx.step(simulator, state, ctrl), ctrl)
        return once, twice

    once, twice = jax.jit(both)(state)
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_body_positions_are_those_of_the_pose(rng):
    model = asset("walker2d")
    qpos = rng.normal(size=model.nq)
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    simulator = mjx.put(model)
    places, turns = jax.jit(lambda qpos: mjx.body_positions(simulator, qpos))(
        jnp.asarray(qpos, jnp.float32)
    )
    np.testing.assert_allclose(places, data.xpos, atol=1e-5)
    np.testing.assert_allclose(turns, data.xquat, atol=1e-5)


def test_lengths_cannot_vary_where_something_is_constrained(cartpole):
    hopper = mjx.put(asset("hopper"))
    with pytest.raises(ValueError, match="body_ipos"):
        mjx.check_editable(hopper, ["body_mass", "body_ipos"])
    mjx.check_editable(cartpole[0], ["body_mass", "body_ipos", "opt.gravity"])


@pytest.mark.parametrize("name", [*MODELS, "pendulum", "cartpole"])
def test_a_model_counts_as_constrained_where_the_engine_has_rows_for_it(name):
    simulator = mjx.put(asset(name))
    assert simulator.constrained == (simulator.blank._impl.efc_J.size > 0)


def test_fields_that_do_not_exist_are_named(cartpole):
    with pytest.raises(ValueError, match="body_weight"):
        mjx.edited(cartpole[0], {"body_weight": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"opt\.wobble"):
        mjx.edited(cartpole[0], {"opt.wobble": jnp.ones(3)})


def test_masses_cannot_vary_where_the_constants_are_not_known():
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody><geom type="plane" size="1 1 1"/>
        <site name="a"/><body pos="0 0 1"><freejoint/><geom size="0.1"/><site name="b"/>
        </body></worldbody><tendon><spatial limited="true" range="0 2"><site site="a"/>
        <site site="b"/></spatial></tendon></mujoco>"""
    )
    with pytest.raises(ValueError, match="without tendons"):
        mjx.check_editable(mjx.put(model), ["body_mass"])


def test_models_that_the_engine_lacks_something_for_are_refused():
    model = asset("cartpole")
    model.opt.integrator = mujoco.mjtIntegrator.mjINT_IMPLICIT
    with pytest.raises(ValueError, match="mjINT_IMPLICIT"):
        mjx.put(model)
    model = asset("cartpole")
    model.opt.solver = mujoco.mjtSolver.mjSOL_PGS
    with pytest.raises(ValueError, match='Use engine="c"'):
        mjx.put(model)
