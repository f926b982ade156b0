"""Diffusion: PolyGRAD's training steps and guided samples a second; one action's wait.

Sizes are the paper's for hopper (observation 11, action 3, horizon 10, 128 levels, six
residual layers, float32, batch 256), at width 256 and, in the full tier, 1024.
Beside it, in processes of their own on the same cores: the same in plain torch, and the
authors' code. Each peer must have exactly our number of weights. `guidance` is what
following the policy adds to sampling, `action` how long a diffusion policy takes to
decide: eight actions of three, given eleven numbers, in ten DDIM calls, batch 1.
"""

import dataclasses
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peer
from benchmarks.measure import Settings, compare, timed
from benchmarks.peer_polygrad import VARIABLE
from benchmarks.record import Row, num_cores, timed_row
from jaxwm import diffusion, nn
from jaxwm.recipes import polygrad
from jaxwm.types import Box, EnvSpec, Trajectory, Transition

OBS, ACTION = 11, 3
PEERS = ("benchmarks.peer_torch", "benchmarks.peer_polygrad")
# Of the authors' code; ours in plain torch need only be matched.
TARGETS = {"train": (1.0, 1.2), "sample": (1.0, 2.0)}
CHUNK = 8  # actions that a diffusion policy decides at once


def rows(settings: Settings) -> Iterator[Row]:
    widths = (256, 1024) if settings.full else (settings.pick(256, 16),)
    batch = settings.pick(256, 4)
    slow = {}
    for width in widths:
        paper = paper_config(settings, width)
        measured = {"train": train(settings, paper)}
        row, slow[width], weights = sampler(settings, paper, batch)
        measured["sample"] = row, slow[width]
        yield from beside(measured, settings, paper, batch, weights)
    if settings.full or settings.smoke:
        yield guidance(settings, paper_config(settings, widths[0]), slow[widths[0]])
        yield from other_samplers(settings)
    for width in widths:
        yield few_calls(settings, width, slow[width])
    yield sampler(settings, few_config(settings, widths[0]), batch=1)[0]
    yield action(settings)


def paper_config(settings: Settings, width: int) -> polygrad.Config:
    return dataclasses.replace(
        polygrad.PAPER,
        width=width,
        depth=settings.pick(6, 1),
        levels=settings.pick(128, 8),
        calls=settings.pick(128, 8),
    )


def guidance(settings: Settings, config: polygrad.Config, guided) -> Row:
    """Sampling that climbs the policy's score beside sampling that ignores it."""
    plain = dataclasses.replace(config, guidance="none")
    row, free, _ = sampler(settings, plain, settings.pick(256, 4))
    ratio = compare(guided, free, name="unguided", settings=settings)
    return Row(
        "diffusion/guidance",
        row.size,
        1 / ratio.median,
        "x the time of unguided",
        higher_is_better=False,
        target=2.5,
        note=f"95 % interval {1 / ratio.high:.2f} to {1 / ratio.low:.2f}",
    )


def other_samplers(settings: Settings) -> Iterator[Row]:
    """Fewer calls, and no noise between them (DDIM), at width 256."""
    config = few_config(settings, settings.pick(256, 16))
    for calls in settings.pick((32, 10), (2,)):
        for name, eta in (("ancestral", 1.0), ("ddim", 0.0)):
            other = dataclasses.replace(config, calls=calls, eta=eta)
            row = sampler(settings, other, settings.pick(256, 4))[0]
            yield row._replace(name=f"diffusion/sample_{name}")


def action(settings: Settings) -> Row:
    """Milliseconds until a diffusion policy has decided."""
    width, depth = settings.pick((256, 3), (16, 1))
    calls = settings.pick(10, 2)
    network = nn.ResidualDenoiser(width, depth, time_features=nn.RandomTime())
    shape, obs_shape = (CHUNK, ACTION), (CHUNK, OBS)
    params = network.init(
        jax.random.key(0), jnp.zeros(shape), jnp.zeros(obs_shape), jnp.zeros(())
    )
    levels = diffusion.stride(diffusion.cosine_schedule(128), calls)
    steps = diffusion.ddim(levels)

    def act(key, params, obs):
        seen = jnp.broadcast_to(obs, obs_shape)
        denoise = diffusion.denoiser(
            lambda x, level, cond: network.apply(params, x, cond, level.time)
        )
        terms = (diffusion.clip(),)
        found = diffusion.sample(key, denoise, steps, shape, cond=seen, terms=terms)
        return found.x

    timing, ours = timed(act, params, jnp.zeros(OBS), settings=settings)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    seconds = [ours(1) for _ in range(settings.pick(300, 2))]
    p50, p99 = 1e3 * np.quantile(seconds, (0.5, 0.99))
    row = timed_row(
        "diffusion/action",
        f"width {width} x {depth}, {calls} DDIM calls, batch 1",
        1,
        "ms, p99",
        timing,
        note=f"p50 {p50:.2f} ms, p99 {p99:.2f} ms; at most 20 ms",
    )
    row = row._replace(value=float(p99), higher_is_better=False, target=20.0)
    sizes = {
        "threads": num_cores(),
        "batch": 1,
        "horizon": CHUNK,
        "obs": OBS,
        "action": ACTION,
        "levels": 128,
        "tau": 1.0,
        "calls": calls,
        "width": width,
        "depth": depth,
    }
    if not (settings.full or settings.smoke):
        return row
    try:
        with peer.Process(PEERS[0], sizes) as other:
            same_network(other, weights)
            ratio = compare(ours, other, name=other.name, settings=settings)
    except peer.MissingError as reason:
        return row._replace(note=f"{row.note} {reason}")
    faster = f"{ratio.median:.1f} times as fast as {ratio.peer}"
    return row._replace(note=f"{row.note}; {faster}")


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


def train(settings: Settings, config: polygrad.Config):
    """A row without peers, and the compiled update."""
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

    timing, ours = timed(update, state, settings=settings, carry=True)
    row = timed_row(
        "diffusion/train",
        f"width {config.width} x {config.depth}, batch {batch}",
        batch,
        "trajectories/s",
        timing,
        flops=6.0 * num_weights(state) * batch,
    )
    return row, ours


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

    timing, ours = timed(imagine, state, params, start, settings=settings)
    weights = num_weights(state)
    row = timed_row(
        "diffusion/sample",
        f"width {config.width} x {config.depth}, {config.calls} calls, batch {batch}",
        batch,
        "trajectories/s",
        timing,
        flops=2.0 * weights * batch * config.calls,
    )
    return row, ours, weights


def beside(measured: dict, settings, config, batch, weights) -> Iterator[Row]:
    """Rows with the plain torch peer, and more with the authors' code.

    The quick tier takes one peer: the authors' code, where there is a checkout of it.
    """
    sizes = {
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
    both = settings.full or settings.smoke or not os.environ.get(VARIABLE)
    if not both:
        yield from (row for row, _ in measured.values())
    for module in PEERS if both else PEERS[1:]:
        authors = module == PEERS[1]
        try:
            with peer.Process(module, sizes) as other:
                same_network(other, weights)
                found = {
                    what: compare(
                        ours, other.side(what), name=other.name, settings=settings
                    )
                    for what, (_, ours) in measured.items()
                }
        except peer.MissingError as reason:
            for row, _ in measured.values():
                if authors:
                    name = f"{row.name}_authors"
                    yield Row(name, row.size, status="skipped", note=str(reason))
                else:  # the row itself is shown even where its peer is missing
                    yield row._replace(note=f"{row.note} {reason}".strip())
            continue
        for what, ratio in found.items():
            row = measured[what][0]
            row = row._replace(ratio=ratio, target=TARGETS[what][authors])
            if authors:
                value = batch / ratio.ours_s
                row = row._replace(name=f"{row.name}_authors", timing=None, value=value)
            yield row


def same_network(other: peer.Process, weights: int) -> None:
    if other.facts["weights"] != weights:
        raise RuntimeError(
            f"{other.name} has {other.facts['weights']:,} weights, ours {weights:,}: "
            "not the same network."
        )
