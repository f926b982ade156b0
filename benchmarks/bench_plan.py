"""Planning by the cross-entropy method inside a world model, beside torch.

One plan: 6 rounds of 512 candidates of 20 steps, 64 elites. The same networks plan with
the solver of stable-worldmodel in a process of its own: an MLP that predicts change
and reward, and a transformer that reads its last steps from a cache, one token a step.
"""

from collections.abc import Iterator

import flax.linen as lnn
import jax
import jax.numpy as jnp

from benchmarks import peer
from benchmarks.measure import Settings, compare, jitted, stopwatch, time_function
from benchmarks.record import Row, num_cores, timed_row
from jaxwm import nn, plan
from jaxwm.nn import transformer

MODULE = "benchmarks.peer_plan"
OBS, ACTION = 3, 1
TARGET = 2.0


class TokenModel(lnn.Module):
    """One step: token of (observation, action), blocks, change and reward."""

    embed: int
    num_blocks: int
    num_heads: int = 4

    @lnn.compact
    def __call__(self, x, cache=None):
        h = lnn.Dense(self.embed, name="token")(x)
        body = transformer.Transformer(self.num_blocks, self.num_heads, name="body")
        h, cache, _ = body(h[None], cache)
        return lnn.Dense(OBS + 1, name="leave")(h[0]), cache


def rows(settings: Settings) -> Iterator[Row]:
    for network in ("mlp", "transformer"):
        yield one(settings, network)


def one(settings: Settings, network: str) -> Row:
    """The row of one network."""
    sizes = {"network": network, "threads": num_cores()}
    sizes |= settings.pick(
        {"num": 512, "horizon": 20, "iterations": 6, "elites": 64, "width": 256},
        {"num": 8, "horizon": 3, "iterations": 2, "elites": 2, "width": 16},
    )
    if network == "transformer":
        sizes |= {"width": settings.pick(64, 8), "blocks": 2, "heads": 4}
    params, cost = _cost(sizes)

    def plan_once(key, params, obs):
        mean = jnp.zeros((sizes["horizon"], ACTION))
        found = plan.cem(
            key,
            lambda actions: cost(params, obs, actions),
            mean,
            1.0,
            num=sizes["num"],
            elites=sizes["elites"],
            iterations=sizes["iterations"],
            momentum=0.0,
        )
        return found.mean, found.cost

    obs = jnp.ones(OBS)
    timing = time_function(plan_once, params, obs, settings=settings)
    weights = num_weights_of(params)
    steps = sizes["num"] * sizes["horizon"] * sizes["iterations"]
    row = timed_row(
        f"plan/cem_{network}",
        f"{sizes['num']} x {sizes['horizon']} steps x {sizes['iterations']} rounds",
        1,
        "plans/s",
        timing,
        flops=2.0 * weights * steps,
    )
    ours = stopwatch(jitted(plan_once, params, obs))
    try:
        with peer.Process(MODULE, sizes) as other:
            if other.facts["weights"] != weights:
                raise RuntimeError(
                    f"{other.name} has {other.facts['weights']:,} weights, ours "
                    f"{weights:,}: not the same network."
                )
            ratio = compare(ours, other, name=other.name, settings=settings)
    except peer.MissingError as reason:
        return row._replace(note=f"{row.note} {reason}".strip())
    return row._replace(ratio=ratio, target=TARGET)


def num_weights_of(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _cost(sizes: dict):
    """Parameters, and `(params, obs, actions [H, A]) -> negative return`."""
    key = jax.random.key(0)
    if sizes["network"] == "mlp":
        width = sizes["width"]
        net = nn.MLP((width, width, OBS + 1))
        params = net.init(key, jnp.zeros(OBS + ACTION))
        first = ()

        def step(params, x, cache):
            return net.apply(params, x), cache
    else:
        net = TokenModel(sizes["width"], sizes["blocks"], sizes["heads"])
        params = net.init(key, jnp.zeros(OBS + ACTION))
        first = transformer.empty_cache(
            sizes["horizon"], sizes["heads"], sizes["width"], sizes["blocks"]
        )

        def step(params, x, cache):
            return net.apply(params, x, cache)

    def cost(params, obs, actions):
        def body(carry, action):
            obs, cache = carry
            out, cache = step(params, jnp.concatenate([obs, action]), cache)
            return (obs + out[:OBS], cache), out[OBS]

        return -jnp.sum(jax.lax.scan(body, (obs, first), actions)[1])

    return params, cost
