"""PolyGRAD's world model: training steps and guided samples a second.

Sizes are the paper's for hopper (observation 11, action 3, horizon 10, 128 levels, six
residual layers, float32, batch 256), at width 256 and, in the full tier, 1024.
Beside it, in processes of their own on the same cores: the same in plain torch, and the
authors' code. Each peer must have exactly our number of weights.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks import peer
from benchmarks.measure import Settings, compare, jitted, stopwatch, time_function
from benchmarks.record import Row, num_cores, timed_row
from jaxwm import nn
from jaxwm.recipes import polygrad
from jaxwm.types import Box, EnvSpec, Trajectory, Transition

OBS, ACTION = 11, 3
PEERS = ("benchmarks.peer_torch", "benchmarks.peer_polygrad")
# Of the authors' code; ours in plain torch need only be matched.
TARGETS = {"train": (1.0, 1.2), "sample": (1.0, 2.0)}


def rows(settings: Settings) -> Iterator[Row]:
    widths = (256, 1024) if settings.full else (settings.pick(256, 16),)
    slow = {}
    for width in widths:
        paper = dataclasses.replace(
            polygrad.PAPER,
            width=width,
            depth=settings.pick(6, 1),
            levels=settings.pick(128, 8),
            calls=settings.pick(128, 8),
        )
        yield from train(settings, paper)
        batch = settings.pick(256, 4)
        row, slow[width], weights = sampler(settings, paper, batch)
        yield from beside(row, slow[width], settings, paper, "sample", batch, weights)
    for width in widths:
        yield few_calls(settings, width, slow[width])
    yield sampler(settings, few_config(settings, widths[0]), batch=1)[0]


def few_config(settings: Settings, width: int) -> polygrad.Config:
    """The default mode, four calls, at the sizes of the published one."""
    return dataclasses.replace(
        polygrad.Config(), width=width, depth=settings.pick(6, 1)
    )


def few_calls(settings: Settings, width: int, slow) -> Row:
    """Four calls beside our own sampler that visits every level."""
    config = few_config(settings, width)
    row, fast, _ = sampler(settings, config, settings.pick(256, 4))
    name = f"ours at {settings.pick(128, 8)} calls"
    ratio = compare(fast, slow, name=name, settings=settings)
    return row._replace(ratio=ratio, target=20.0)


def model_of(config: polygrad.Config):
    """World model, and a state whose normalisers have seen standard data."""
    obs = jax.ShapeDtypeStruct((OBS,), jnp.float32)
    action = Box((-1.0,) * ACTION, (1.0,) * ACTION)
    spec = EnvSpec("hopper-sized", obs, action, control_dt=0.01, time_limit=1000)
    model = polygrad.polygrad(config, spec)
    key = jax.random.key(1)
    states = jax.random.normal(key, (512, OBS))
    zeros = jnp.zeros(512)
    data = Transition(
        obs=states,
        action=jax.random.normal(key, (512, ACTION)),
        reward=states[:, 0],
        discount=(states[:, 1] > -2.0).astype(jnp.float32),
        truncated=zeros.astype(bool),
        next_obs=states,
        mask=zeros + 1,
        extras={},
    )
    return model, model.adapt(model.init(jax.random.key(0)), data)


def num_weights(state) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state.params["network"]))


def train(settings: Settings, config: polygrad.Config) -> Iterator[Row]:
    batch = settings.pick(256, 4)
    model, state = model_of(config)
    key = jax.random.key(2)
    obs = jax.random.normal(key, (batch, config.horizon, OBS))
    windows = Trajectory(
        obs=obs,
        action=jax.random.normal(key, (batch, config.horizon, ACTION)),
        reward=obs[..., 0],
        discount=jnp.ones((batch, config.horizon)),
        mask=jnp.ones((batch, config.horizon)),
        extras={"next_obs": obs},
    )

    def update(key, state):
        return model.fit(key, state, windows)[0]

    timing = time_function(update, state, settings=settings, carry=True)
    row = timed_row(
        "diffusion/train",
        f"width {config.width} x {config.depth}, batch {batch}",
        batch,
        "trajectories/s",
        timing,
        flops=6.0 * num_weights(state) * batch,
    )
    ours = stopwatch(jitted(update, state, carry=True))
    yield from beside(row, ours, settings, config, "train", batch, num_weights(state))


def sampler(settings: Settings, config: polygrad.Config, batch: int):
    """A row without peers, the compiled sampler, and the number of weights."""
    model, state = model_of(config)
    actor = nn.Actor(
        ACTION, hidden=(256, 256), activation="elu", layer_norm=True, init_std=1.0
    )
    params = actor.init(jax.random.key(3), jnp.zeros(OBS))
    start = jax.random.normal(jax.random.key(4), (batch, OBS))

    def imagine(key, state, params, start):
        policy = lambda feature: actor.apply(params, feature)
        keys = jax.random.split(key, batch)
        rollout = jax.vmap(
            lambda key, obs: model.imagine(key, state, obs, policy, config.horizon)
        )(keys, start)
        return rollout.obs, rollout.action, rollout.reward

    timing = time_function(imagine, state, params, start, settings=settings)
    weights = num_weights(state)
    row = timed_row(
        "diffusion/sample",
        f"width {config.width} x {config.depth}, {config.calls} calls, batch {batch}",
        batch,
        "trajectories/s",
        timing,
        flops=2.0 * weights * batch * config.calls,
    )
    return row, stopwatch(jitted(imagine, state, params, start)), weights


def beside(row, ours, settings, config, what, batch, weights) -> Iterator[Row]:
    """The row with the plain torch peer, and one more with the authors' code."""
    sizes = {
        "what": what,
        "threads": num_cores(),
        "batch": batch,
        "obs": OBS,
        "action": ACTION,
        "horizon": config.horizon,
        "levels": config.levels,
        "tau": config.tau,
        "width": config.width,
        "depth": config.depth,
    }
    names = (row.name, f"{row.name}_authors")
    for name, module, target in zip(names, PEERS, TARGETS[what], strict=True):
        # The row itself is shown even where its peer is missing.
        plain = row if name == row.name else row._replace(name=name, timing=None)
        try:
            with peer.Process(module, sizes) as other:
                if other.facts["weights"] != weights:
                    raise RuntimeError(
                        f"{other.name} has {other.facts['weights']:,} weights, ours "
                        f"{weights:,}: not the same network."
                    )
                ratio = compare(ours, other, name=other.name, settings=settings)
        except peer.MissingError as reason:
            if name == row.name:
                yield plain._replace(note=f"{row.note} {reason}".strip())
            else:
                yield Row(name, row.size, status="skipped", note=str(reason))
            continue
        value = row.value if name == row.name else batch / ratio.ours_s
        yield plain._replace(ratio=ratio, target=target, value=value)
