"""What a trajectory's tokens are, and how a transformer over them predicts.

Two layouts behind one interface: `step_layout` (a token per observation and per action
dimension; the next observation at once) and `scalar_layout` (a token per number; the
next observation number by number). Networks see normalised numbers; everyone else raw
units. Sources: see `nn.trajectory_tokens`.

Shapes: C context, N steps of one call, P tokens of a step, O observation, A action, K
bins.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxwm.core import stats
from jaxwm.dynamics import rows
from jaxwm.nn.tokens import BoxTokenizer, ScalarTokenizer
from jaxwm.nn.trajectory_tokens import Led, ScalarTokens, StepTokens
from jaxwm.types import EnvSpec

_TERMINAL_WEIGHT = 0.1  # of the cross-entropy of terminations
_SCALAR = dict(mu=20.0, limit=8.0)  # mu-law of normalised numbers


class Sizes(NamedTuple):
    """Of a transformer over tokens."""

    context: int  # C, places of steps
    embed: int
    blocks: int
    heads: int
    bins: int  # K
    head: tuple[int, ...]  # hidden units of the predictions' MLP


class Layout(NamedTuple):
    """What a token layout has to do.

    init:  (key) -> params
    loss:  (key, params, statistics, data, exists, scale) -> (loss of each step [N],
           metrics)
    read:  (params, statistics, obs [N, O], action [N, A], exists, place [N],
           present [C], caches) -> caches with the steps appended
    next:  (key, params, statistics, obs [C, O], action [C, A], at, exists, present,
           caches) -> (next obs, reward, discount, info, caches) of step `at`
    """

    num_tokens: int  # P
    cache_size: int  # tokens
    init: Callable
    loss: Callable
    read: Callable
    next: Callable


def step_layout(sizes: Sizes, spec: EnvSpec) -> Layout:
    """One token per observation, one per action dimension; nothing is drawn."""
    obs_size, action_size = spec.flat_sizes("step tokens")
    network, bins = step_network(sizes), action_bins(sizes, spec)

    def init(key: Key[Array, ""]):
        obs, action = jnp.zeros((1, obs_size)), jnp.zeros((1, action_size))
        return init_step(network, key, obs, bins.encode(action))

    def apply(params, statistics, obs, action, led, exists, place, present, caches):
        obs = stats.normalise(statistics.obs, obs)
        ids = bins.encode(action)
        return network.apply(params, obs, exists, ids, led, place, present, caches)

    def loss(key, params, statistics, data: rows.Transitions, exists, scale):
        num = data.reward.shape[0]
        first = jax.random.randint(key, (), 0, sizes.context)
        place = (first + jnp.arange(num)) % sizes.context
        everyone = jnp.ones(num, bool)
        led = led_to(bins, statistics, data.obs, data.action, everyone)
        out, _ = apply(
            params,
            statistics,
            data.obs,
            data.action,
            led,
            exists,
            place,
            everyone,
            None,
        )
        target = rows.encode_target(statistics, data)
        # In units of this system's own spread.
        units = stats.scale(statistics.target) / scale
        error = (jnp.c_[out.delta, out.reward] - target) ** 2 * units**2
        obs_error = error[:, :-1] @ exists / jnp.sum(exists)
        end = optax.sigmoid_binary_cross_entropy(out.terminal, 1 - data.discount)
        each = obs_error + error[:, -1] + _TERMINAL_WEIGHT * end
        mean = lambda x: data.valid @ x / jnp.maximum(jnp.sum(data.valid), 1.0)
        metrics = {
            "obs": mean(obs_error),
            "reward": mean(error[:, -1]),
            "termination": mean(end),
        }
        return each, metrics

    def read(params, statistics, obs, action, exists, place, present, caches):
        led = led_to(bins, statistics, obs, action, present[: len(obs)])
        return apply(
            params, statistics, obs, action, led, exists, place, present, caches
        )[1]

    def next(key, params, statistics, obs, action, at, exists, present, caches):
        del key  # a regressor: nothing is drawn
        led = led_to(bins, statistics, obs, action, present)
        led, now, taken = jax.tree.map(lambda x: x[at][None], (led, obs, action))
        out, caches = apply(
            params, statistics, now, taken, led, exists, at[None], present, caches
        )
        y = jnp.append(out.delta[0], out.reward[0])
        next_obs, reward = rows.decode_target(statistics, now[0], y)
        next_obs = jnp.where(exists > 0, next_obs, now[0])
        return next_obs, reward, jax.nn.sigmoid(-out.terminal[0]), {}, caches

    num_tokens = 1 + action_size
    return Layout(num_tokens, num_tokens * sizes.context, init, loss, read, next)


def scalar_layout(sizes: Sizes, spec: EnvSpec, temperature: float = 1.0) -> Layout:
    """One token per number; the next observation's numbers are drawn one by one.

    `temperature` divides the logits that are drawn from; 0 takes the likeliest bin.
    `info["entropy"]` of a step, in nats, is summed over the numbers.
    """
    O, action_size = spec.flat_sizes("scalar tokens")
    P, C = O + action_size, sizes.context
    network = ScalarTokens(C + 1, P, *sizes[1:])
    numbers = ScalarTokenizer(bins=sizes.bins, **_SCALAR)
    actions = action_bins(sizes, spec)

    def init(key: Key[Array, ""]):
        one = jnp.zeros(1, jnp.int32)
        return network.init(key, one, one, one, jnp.ones(1, bool))

    def encode(statistics, obs, exists):
        ids = numbers.encode(stats.normalise(statistics.obs, obs))
        return jnp.where(exists > 0, ids, 0)

    def tokens_of(statistics, obs, action, exists):
        """Bins of whole steps, flat `[N P]`."""
        seen = encode(statistics, obs, exists)
        return jnp.concatenate([seen, actions.encode(action)], -1).reshape(-1)

    def apply(params, value, kind, place, present, caches):
        # The last place is for the observation behind the last step.
        readable = jnp.concatenate([jnp.repeat(present, P), jnp.ones(P, bool)])
        return network.apply(params, value, kind, place, readable, caches)

    def loss(key, params, statistics, data: rows.Transitions, exists, scale):
        del scale  # bins have no unit
        num = data.reward.shape[0]
        first = jax.random.randint(key, (), 0, C + 1)
        value = tokens_of(statistics, data.obs, data.action, exists)
        value = jnp.append(value, encode(statistics, data.next_obs[-1], exists))
        at = jnp.arange(len(value))
        place = (first + at // P) % (C + 1)
        everyone = jnp.ones(len(value), bool)
        out, _ = network.apply(params, value, at % P, place, everyone)
        last = P * jnp.arange(num) + P - 1
        follow = jnp.c_[last, last[:, None] + 1 + jnp.arange(O - 1)]  # [N, O]
        entropy = optax.softmax_cross_entropy_with_integer_labels
        obs_loss = entropy(out.next[follow], encode(statistics, data.next_obs, exists))
        obs_loss = obs_loss @ exists / jnp.sum(exists)
        reward = rows.encode_target(statistics, data)[:, -1]
        reward_loss = entropy(out.reward[last], numbers.encode(reward))
        end = optax.sigmoid_binary_cross_entropy(out.terminal[last], 1 - data.discount)
        each = obs_loss + reward_loss + end
        mean = lambda x: data.valid @ x / jnp.maximum(jnp.sum(data.valid), 1.0)
        beyond = numbers.clipped(stats.normalise(statistics.obs, data.next_obs))
        metrics = {
            "obs": mean(obs_loss),
            "reward": mean(reward_loss),
            "termination": mean(end),
            "clipped": mean(beyond @ exists / jnp.sum(exists)),
        }
        return each, metrics

    def read(params, statistics, obs, action, exists, place, present, caches):
        value = tokens_of(statistics, obs, action, exists)
        kind = jnp.arange(len(value)) % P
        return apply(params, value, kind, jnp.repeat(place, P), present, caches)[1]

    def next(key, params, statistics, obs, action, at, exists, present, caches):
        obs, action = obs[at], action[at]
        value = tokens_of(statistics, obs[None], action[None], exists)
        places = jnp.broadcast_to(at, P)
        out, caches = apply(params, value, jnp.arange(P), places, present, caches)

        def draw(i, logits):
            """The i-th number of the next observation, and how uncertain it was."""
            log_p = jax.nn.log_softmax(logits)
            entropy = -jnp.sum(jnp.exp(log_p) * log_p)
            if temperature == 0:
                return jnp.argmax(logits), entropy
            number_key = jax.random.fold_in(key, i)
            return jax.random.categorical(number_key, logits / temperature), entropy

        def one(carry, i):
            """Reads the number drawn last and draws the next one."""
            value, caches = carry
            out, caches = apply(
                params, value[None], i[None], at[None] + 1, present, caches
            )
            value, entropy = draw(i + 1, out.next[0])
            return (value, caches), (value, entropy)

        number, entropy = draw(0, out.next[-1])
        _, (others, entropies) = jax.lax.scan(one, (number, caches), jnp.arange(O - 1))
        ids = jnp.append(number, others)
        next_obs = stats.denormalise(statistics.obs, numbers.decode(ids))
        next_obs = jnp.where(exists > 0, next_obs, obs)
        centres = numbers.decode(jnp.arange(sizes.bins))
        reward = jax.nn.softmax(out.reward[-1]) @ centres  # the mean, not a draw
        y = jnp.append(jnp.zeros(O), reward)
        _, reward = rows.decode_target(statistics, obs, y)
        uncertain = jnp.append(entropy, entropies) @ exists
        discount = jax.nn.sigmoid(-out.terminal[-1])
        return next_obs, reward, discount, {"entropy": uncertain}, caches

    return Layout(P, P * (C + 1), init, loss, read, next)


def step_network(sizes: Sizes) -> StepTokens:
    """The network of the layout "step"; its action logits make it a policy, too."""
    return StepTokens(*sizes)


def action_bins(sizes: Sizes, spec: EnvSpec) -> BoxTokenizer:
    """The action's bins, between its bounds."""
    return BoxTokenizer(low=spec.action.low, high=spec.action.high, bins=sizes.bins)


def led_to(bins: BoxTokenizer, statistics, obs, action, present) -> Led:
    """What led to each row, where the row before is present."""
    before = lambda x: jnp.roll(x, 1, 0)
    change = (obs - before(obs)) / stats.scale(statistics.target)[:-1]
    known = before(present) & present & (jnp.arange(len(obs)) > 0)
    return Led(change, bins.encode(before(action)), known)


def init_step(network: StepTokens, key, obs, ids):
    """Weights of the network."""
    everyone = jnp.ones(len(obs), bool)
    places = jnp.zeros(len(obs), jnp.int32)
    led = Led(obs, ids, everyone)
    exists = jnp.ones(obs.shape[1])
    return network.init(key, obs, exists, ids, led, places, everyone)
