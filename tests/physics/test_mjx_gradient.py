"""Derivatives through MuJoCo's contacts against central differences, in float64."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxwm.physics import mjx, mjx_dynamics, mjx_gradient, rollout
from jaxwm.physics.mjx import MjState

PARTS = {
    "option": '<option timestep="0.004" iterations="60" ls_iterations="40" '
    'tolerance="1e-15" {more}/>',
    "floor": '<geom name="floor" type="plane" size="5 5 1" friction="0.6 0.01 0.001"/>',
    "capsule": """
      <body name="capsule" pos="0 0 {height}" euler="20 50 10"><freejoint/>
      <geom type="capsule" size="0.08 0.15" mass="1.3" condim="{condim}"/>
      <site name="site" size="0.3"/></body>""",
    "box": """
      <body name="box" pos="0 0 {height}" euler="{euler}"><freejoint/>
      <geom type="box" size="0.1 0.12 0.08" mass="2"/></body>""",
    "arm": """
      <body name="arm" pos="0 0 0.6"><joint name="a" axis="0 1 0" damping="0.1"
        limited="true" range="-20 25" frictionloss="0.05"/>
        <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03"/>
        <body pos="0.3 0 0"><joint name="b" axis="0 1 0" damping="0.1"/>
          <geom type="capsule" fromto="0 0 0 0.2 0 -0.1" size="0.03"/></body></body>
      <body name="ball" pos="0.35 0.01 0.75"><freejoint/>
        <geom size="0.05" mass="0.2"/></body>""",
}


def model_of(world, *, option="", rest="", **slots):
    parts = {k: PARTS[k].format(more=option, **slots) for k in ("option",)}
    bodies = "".join(PARTS[name].format(**slots) for name in world)
    floor = PARTS["floor"]
    return mujoco.MjModel.from_xml_string(
        f"<mujoco>{parts['option']}<worldbody>{floor}{bodies}</worldbody>{rest}</mujoco>"
    )


def compare(model, speed, *, params, steps=20, polish=0, actions=None, qpos=None):
    """Largest relative error of d loss / d (qvel, params), and the values' difference.

    The loss is a random linear function of the last positions and velocities. Of four
    step sizes of the differences the closest is taken, as contacts that begin between
    two of their ends spoil the large ones.
    """
    rng = np.random.default_rng(0)
    dyn = mjx_dynamics(model, params=params, polish=polish)
    plain = mjx_dynamics(model, params=params, grad="forward")
    weights = rng.normal(size=model.nq), rng.normal(size=model.nv)
    if actions is None:
        actions = np.zeros((steps, model.nu))
    start = dyn.init(None, dyn.params)
    start = start._replace(qpos=start.qpos if qpos is None else jnp.asarray(qpos))

    def loss(dynamics, speed, params):
        state = start._replace(qvel=jnp.asarray(speed))
        final, _ = rollout(
            dynamics, params, state, jnp.asarray(actions), checkpoint="all"
        )
        return weights[0] @ final.qpos + weights[1] @ final.qvel

    ours = jax.jit(jax.value_and_grad(lambda s, p: loss(dyn, s, p), (0, 1)))
    unchanged = jax.jit(lambda s, p: loss(plain, s, p))
    # On elliptic cones MJX's solver stops about 1e-10 short of the minimum, which
    # differences divide by their step: there they are taken of the polished map.
    value_of = jax.jit(lambda s, p: loss(dyn, s, p)) if polish else unchanged
    theta = jnp.asarray(speed, float), dyn.params
    value, grads = ours(*theta)
    flat, unravel = jax.flatten_util.ravel_pytree(theta)
    slope = np.asarray(jax.flatten_util.ravel_pytree(grads)[0])
    worst = 0.0
    for _ in range(4):
        way = rng.normal(size=flat.size) * (np.asarray(flat) != 0)
        way[: len(speed)] = rng.normal(size=len(speed))
        found = []
        for size in (1e-4, 1e-5, 1e-6, 1e-7):
            up, down = (value_of(*unravel(flat + s * size * way)) for s in (1, -1))
            found.append(float(up - down) / (2 * size))
        own = float(slope @ way)
        worst = max(worst, min(abs(own - d) / max(abs(d), 1e-3) for d in found))
    return worst, abs(float(value - unchanged(*theta))), grads


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("row", "tolerance"),
    [
        ("sliding", 1e-6),
        ("bouncing", 1e-6),
        ("limit", 1e-6),
        ("four_contacts", 1e-6),
        ("elliptic", 1e-5),
        ("torsion", 1e-6),
        ("rolling_elliptic", 1e-5),
        ("weld", 1e-6),
        ("ball_limit", 1e-6),
        ("tendon", 1e-6),
        ("muscle", 1e-6),
    ],
)
def test_gradients_are_those_of_differences(row, tolerance, x64):
    free = [0.5, -0.3, 0.0, 0.4, 0.6, -0.5]
    fall = [0.3, 0.1, -2.0, 1.0, -2.0, 0.5]
    usual = ("body_mass", "geom_friction", "body_inertia")
    arm_rest = (
        '<equality><joint joint1="a" joint2="b" polycoef="0.1 0.5 0 0 0"/></equality>'
        '<actuator><position joint="b" kp="5"/></actuator>'
    )
    arm_speed = [3.0, -1.0, 0.0, 0.0, -2.0, 0.5, 0.0, 0.0]
    ball = (
        '<body name="top" pos="0 0 1"><joint type="ball" limited="true" range="0 30"/>'
        '<geom type="capsule" fromto="0 0 0 0.1 0 -0.3" size="0.03"/></body>'
    )
    PARTS["ball"] = ball
    PARTS["hinge"] = (
        '<body name="hinge" pos="0 0 1"><joint name="h" axis="0 1 0" damping="0.05"/>'
        '<geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03"/>'
        '<site name="end" pos="0.3 0 0"/></body>'
    )
    string = (
        '<tendon><spatial name="t" limited="true" range="0 0.95" stiffness="3">'
        '<site site="end"/><site site="wall"/></spatial></tendon>'
    )
    PARTS["wall"] = '<site name="wall" pos="0 0 0.2"/>'
    make = {
        "sliding": lambda: (
            model_of(["capsule"], height=0.2, condim=3),
            free,
            usual,
            {},
        ),
        "bouncing": lambda: (
            model_of(["capsule"], height=0.24, condim=3),
            fall,
            usual,
            {"steps": 25},
        ),
        "limit": lambda: (
            model_of(["arm"], rest=arm_rest),
            arm_speed,
            (*usual, "dof_frictionloss", "jnt_range", "eq_data"),
            {"actions": np.full((20, 1), 0.3)},
        ),
        "four_contacts": lambda: (
            model_of(["box"], height=0.082, euler="1 2 0"),
            [0.2, 0.1, -0.3, 0, 0.1, 0.2],
            (*usual, "geom_solref"),
            {},
        ),
        "elliptic": lambda: (
            model_of(["box"], option='cone="elliptic"', height=0.082, euler="1 2 0"),
            [0.2, 0.1, -0.3, 0, 0.1, 0.2],
            usual,
            {"polish": 2},
        ),
        "torsion": lambda: (
            model_of(["capsule"], height=0.2, condim=4),
            free,
            usual,
            {},
        ),
        "rolling_elliptic": lambda: (
            model_of(["capsule"], option='cone="elliptic"', height=0.2, condim=6),
            free,
            usual,
            {"polish": 2},
        ),
        "weld": lambda: (
            model_of(
                ["arm"],
                rest='<equality><connect body1="ball" body2="arm" anchor="0 0 0"/>'
                '<weld body1="ball" body2="arm" active="true"/></equality>',
            ),
            arm_speed,
            ("body_mass", "eq_data"),
            {},
        ),
        "ball_limit": lambda: (
            model_of(["ball"]),
            [3.0, 2.0, 1.0],
            ("body_mass", "jnt_range"),
            {"steps": 50},
        ),
        "tendon": lambda: (
            model_of(["hinge", "wall"], rest=string),
            [-4.0],
            ("tendon_range", "tendon_stiffness", "dof_damping"),
            {"steps": 40},
        ),
        "muscle": lambda: (
            model_of(
                ["hinge", "wall"],
                rest=string + '<actuator><muscle tendon="t" force="20"/></actuator>',
            ),
            [-1.0],
            ("actuator_gear", "dof_damping"),
            {"actions": np.full((20, 1), 0.4)},
        ),
    }
    model, speed, params, options = make[row]()
    error, gap, _ = compare(model, speed, params=params, **options)
    assert error < tolerance
    assert gap < (1e-9 if "elliptic" in row else 1e-12)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_free_body_at_rest_feels_its_angular_velocity(x64):
    model = model_of(["capsule"], height=2.0, condim=3)
    dyn = mjx_dynamics(model)
    start = dyn.init(None, {})
    turn = jax.jit(
        jax.jacrev(lambda w: dyn.step({}, start._replace(qvel=w), jnp.zeros(0)).qpos)
    )(jnp.zeros(6))
    # q' = q (1, dt w / 2): the scalar part of the reference decides the size
    assert np.abs(turn[3:, 3:]).max() > 0.3 * 0.004
    np.testing.assert_allclose(
        np.linalg.norm(turn[3:, 3:], axis=0), 0.5 * 0.004, rtol=1e-6
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_powers_of_the_impedance_that_are_not_whole_stay_finite(x64):
    model = model_of(["capsule"], height=2.0, condim=3)
    model.geom_solimp[:, 4] = 1.7
    dyn = mjx_dynamics(model, params=("geom_solimp",))
    start = dyn.init(None, dyn.params)

    def height(qpos, params):
        after = dyn.step(params, start._replace(qpos=qpos), jnp.zeros(0))
        return after.qpos[2]

    slopes = jax.jit(jax.grad(height, (0, 1)))(start.qpos, dyn.params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    with pytest.raises(ValueError, match=r"solimp power of 1\.7 needs safe_math"):
        mjx_dynamics(model, safe_math=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_total_derivative_by_a_mass_passes_through_the_inverse_weights(x64):
    model = model_of(["box"], height=0.082, euler="1 2 0")
    dyn = mjx_dynamics(model, params=("body_mass", "body_inertia"))
    start = dyn.init(None, dyn.params)._replace(
        qvel=jnp.array([0.2, 0.1, -0.3, 0, 0.1, 0])
    )

    def height(scale):
        params = {k: scale * v for k, v in dyn.params.items()}
        return rollout(dyn, params, start, jnp.zeros((10, 0)), checkpoint="all")[
            0
        ].qvel[2]

    def compiled(scale):
        """The same by MuJoCo's own compiler."""
        other = model_of(["box"], height=0.082, euler="1 2 0")
        other.body_mass[:] *= scale
        other.body_inertia[:] *= scale
        data = mujoco.MjData(other)
        mujoco.mj_setConst(other, data)
        fixed = mjx_dynamics(other, grad="forward")
        return rollout(fixed, {}, start, jnp.zeros((10, 0)))[0].qvel[2]

    slope = jax.jit(jax.grad(height))(1.0)
    difference = (compiled(1 + 1e-5) - compiled(1 - 1e-5)) / 2e-5
    assert float(slope) == pytest.approx(float(difference), rel=1e-5)


@pytest.mark.slow
def test_inverse_weights_of_free_and_ball_joints_are_mujocos(x64):
    for world, slots in (
        (["capsule"], dict(height=0.2, condim=3)),
        (["box"], dict(height=0.5, euler="10 20 30")),
        (["arm"], {}),
    ):
        model = model_of(world, **slots)
        scaled = {
            "body_mass": 1.7 * model.body_mass,
            "body_inertia": 1.7 * model.body_inertia,
        }
        ours = mjx.edited(mjx.put(model), scaled).model
        model.body_mass[:] = scaled["body_mass"]
        model.body_inertia[:] = scaled["body_inertia"]
        mujoco.mj_setConst(model, mujoco.MjData(model))
        for name in ("body_invweight0", "dof_invweight0", "body_subtreemass"):
            np.testing.assert_allclose(
                getattr(ours, name), getattr(model, name), rtol=1e-9, err_msg=name
            )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(grad="reverse"), 'grad must be "implicit", "forward" or "none"'),
        (dict(impl="warp"), 'impl="warp" has no derivatives'),
        (dict(num_substeps=0), "num_substeps must be at least 1"),
        (dict(params=("body_weight",)), "body_weight"),
        (dict(params=("geom_rbound",)), "no step of MuJoCo reads geom_rbound"),
        (dict(params=("dof_frictionloss",)), "dof_frictionloss is 0"),
        (dict(params=("opt.viscosity",)), "opt.viscosity is 0"),
        (dict(params=("jnt_range",)), "jnt_limited is false throughout"),
        (dict(params=("geom_solimp",), safe_math=False), "need safe_math=True"),
    ],
)
def test_what_has_no_derivative_is_refused(options, match):
    model = model_of(["capsule"], height=0.2, condim=3)
    with pytest.raises(ValueError, match=match):
        mjx_dynamics(model, **options)


def test_masses_of_a_model_with_tendons_are_refused():
    hinge = (
        '<body pos="0 0 1"><joint name="h" axis="0 1 0" limited="true" range="-9 9"/>'
        '<geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03"/></body>'
    )
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><worldbody>{hinge}</worldbody><tendon><fixed>"
        '<joint joint="h" coef="1"/></fixed></tendon></mujoco>'
    )
    with pytest.raises(ValueError, match="without tendons"):
        mjx_dynamics(model, params=("body_mass",))


def test_masses_of_a_model_with_muscles_are_refused():
    hinge = (
        '<body pos="0 0 1"><joint name="h" axis="0 1 0"/>'
        '<geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03"/></body>'
    )
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><worldbody>{hinge}</worldbody>"
        '<actuator><muscle joint="h" lengthrange="0 1"/></actuator></mujoco>'
    )
    with pytest.raises(ValueError, match="model with muscles"):
        mjx_dynamics(model, params=("body_mass",))


def test_versions_that_were_not_tested_are_refused(monkeypatch):
    monkeypatch.setattr(mjx_gradient.metadata, "version", lambda name: "3.99.0")
    with pytest.raises(ImportError, match=r"found 3\.99\.0"):
        mjx_dynamics(model_of(["capsule"], height=0.2, condim=3))


def test_functions_of_mjx_are_put_back_even_after_an_error():
    from mujoco.mjx._src import math, solver

    before = solver.solve, math.quat_integrate
    with (
        pytest.raises(RuntimeError),
        mjx_gradient.exchanged(implicit=True, safe_math=True),
    ):
        assert solver.solve is not before[0]
        raise RuntimeError
    assert (solver.solve, math.quat_integrate) == before


@pytest.mark.slow
def test_plain_reverse_mode_names_the_remedy():
    model = model_of(["capsule"], height=0.2, condim=3)
    dyn = mjx_dynamics(model, grad="forward")
    start = dyn.init(None, {})

    def height(speed):
        return dyn.step({}, MjState(*start)._replace(qvel=speed), jnp.zeros(0)).qpos[2]

    with pytest.raises(ValueError, match='grad="implicit"'):
        jax.eval_shape(jax.grad(height), jnp.zeros(6))
