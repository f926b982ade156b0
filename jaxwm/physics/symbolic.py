"""Equations from data: expressions by evolution, their constants by least squares.

    minimise  mean (y - e(x))² / var y  +  parsimony * (nodes of e)

An expression is a binary tree in an array (node i has the children 2i + 1 and 2i + 2),
so that a whole population is evaluated, fitted and bred side by side. The oldest trees
are removed, not the worst (regularised evolution). The best tree of every size is kept.
Shapes: P points, V variables, N nodes.

Source: Kidger, "On Neural Differential Equations", 2022, section on symbolic
regression; Cranmer et al., "Discovering Symbolic Models from Deep Learning with
Inductive Biases", NeurIPS 2020; Real et al., "Regularized Evolution for Image
Classifier Architecture Search", AAAI 2019.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

UNARY = {"sin": jnp.sin, "cos": jnp.cos, "exp": lambda x: jnp.exp(jnp.minimum(x, 30.0))}
BINARY = {
    "+": jnp.add,
    "-": jnp.subtract,
    "*": jnp.multiply,
    "/": lambda a, b: a / jnp.where(jnp.abs(b) < 1e-6, 1e-6, b),
}


class Tree(NamedTuple):
    """An expression. Codes: 0 a constant, 1 ... V variables, then the operations."""

    op: Int[Array, " N"]
    constant: Float[Array, " N"]


class Front(NamedTuple):
    """The best expression of every size; rows of sizes never found have loss inf."""

    tree: Tree  # [N + 1, N], by number of nodes
    loss: Float[Array, " N+1"]  # mean square over the variance of y


def evaluate(
    tree: Tree, x: Float[Array, "P V"], ops: tuple[str, ...]
) -> Float[Array, " P"]:
    """Values of one expression."""
    num, vars_ = tree.op.shape[0], x.shape[1]
    first_inner = num // 2  # nodes from here on are leaves
    leaves = jnp.concatenate([jnp.zeros((1, x.shape[0]), x.dtype), x.T])

    def leaf(i):
        value = leaves[jnp.clip(tree.op[i], 0, vars_)]
        return jnp.where(tree.op[i] == 0, tree.constant[i], value)

    values = [jnp.zeros(x.shape[0], x.dtype)] * num
    for i in range(num - 1, -1, -1):
        values[i] = leaf(i)
        if i < first_inner:
            a, b = values[2 * i + 1], values[2 * i + 2]
            for k, name in enumerate(ops):
                found = UNARY[name](a) if name in UNARY else BINARY[name](a, b)
                values[i] = jnp.where(tree.op[i] == vars_ + 1 + k, found, values[i])
    return values[0]


def num_nodes(tree: Tree, num_vars: int, ops: tuple[str, ...]) -> Int[Array, ""]:
    """Nodes that the value depends on."""
    return jnp.sum(_active(tree.op, num_vars, ops))


def symbolic_regress(
    key: Key[Array, ""],
    x: Float[Array, "P V"],
    y: Float[Array, " P"],
    ops: tuple[str, ...] = ("+", "-", "*", "/", "sin", "cos", "exp"),
    *,
    depth: int = 4,
    population: int = 256,
    generations: int = 100,
    parsimony: float = 1e-3,
    tournament: int = 6,
    fit_steps: int = 3,
) -> Front:
    """Searches expressions `y = e(x)`.

    Args:
        key: of the search.
        x: points.
        y: values.
        ops: operations, from `UNARY` and `BINARY`.
        depth: levels of a tree; 2^depth - 1 nodes.
        population: trees; half are replaced in every generation.
        generations: rounds of breeding.
        parsimony: price of a node, in units of the variance of y.
        tournament: trees that compete for being a parent.
        fit_steps: Levenberg-Marquardt steps on the constants of each child.

    Returns:
        The best of every size. `knee` chooses one, `expression` writes it.

    Raises:
        ValueError: for unknown operations, and sizes that are too small.
    """
    unknown = [name for name in ops if name not in UNARY and name not in BINARY]
    if unknown or not ops:
        raise ValueError(
            f"ops must be among {', '.join([*BINARY, *UNARY])}, got {unknown or ops}."
        )
    for name, value, least in (
        ("depth", depth, 2),
        ("population", population, 4),
        ("generations", generations, 1),
        ("tournament", tournament, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    num, num_vars, half = 2**depth - 1, x.shape[1], population // 2
    inner = np.arange(num) < num // 2
    below = jnp.asarray(_descendants(num))
    variance = jnp.maximum(jnp.var(y), 1e-12)

    def grow(key):
        """Random tree: half operations, a quarter variables, a quarter constants."""
        kind_key, op_key, var_key, value_key = jax.random.split(key, 4)
        kind = jax.random.uniform(kind_key, (num,))
        op = num_vars + 1 + jax.random.randint(op_key, (num,), 0, len(ops))
        var = 1 + jax.random.randint(var_key, (num,), 0, num_vars)
        leaf = jnp.where(kind < 0.6, var, 0)
        is_op = inner & (jax.random.uniform(jax.random.fold_in(key, 9), (num,)) < 0.5)
        constant = jax.random.normal(value_key, (num,), x.dtype)
        return Tree(jnp.where(is_op, op, leaf), constant)

    def child(key, mother, father):
        """Takes a subtree from the father or a new one, or changes one node."""
        grow_key, node_key, kind_key, change_key = jax.random.split(key, 4)
        fresh = grow(grow_key)
        weight = _active(mother.op, num_vars, ops).astype(jnp.float32)
        node = jax.random.choice(node_key, num, p=weight / jnp.sum(weight))
        kind = jax.random.uniform(kind_key)
        other = jax.tree.map(lambda a, b: jnp.where(kind < 0.35, a, b), father, fresh)
        # Only the node changes: an operation becomes another operation.
        single = (kind > 0.7) & (mother.op[node] > num_vars)
        new_op = num_vars + 1 + jax.random.randint(change_key, (), 0, len(ops))
        op = jnp.where(below[node], other.op, mother.op)
        op = jnp.where(single, mother.op.at[node].set(new_op), op)
        constant = jnp.where(below[node], other.constant, mother.constant)
        return Tree(op, jnp.where(single, mother.constant, constant))

    def fitted(tree):
        """Constants by damped Gauss-Newton; steps that do not help are not taken."""
        residual = lambda c: (
            (evaluate(tree._replace(constant=c), x, ops) - y)
            / (jnp.sqrt(variance * y.shape[0]))
        )

        def body(carry, _):
            c, damping, loss = carry
            r, jacobian = residual(c), jax.jacfwd(residual)(c)
            gram = jacobian.T @ jacobian
            system = gram + damping * jnp.diag(jnp.diag(gram) + 1e-6)
            new = c - jnp.linalg.solve(system, jacobian.T @ r)
            new_loss = jnp.sum(residual(new) ** 2)
            better = new_loss < loss  # False for NaN
            c = jnp.where(better, new, c)
            damping = jnp.where(better, 0.1 * damping, 10 * damping)
            return (c, damping, jnp.where(better, new_loss, loss)), None

        first = jnp.sum(residual(tree.constant) ** 2)
        start = (tree.constant, jnp.asarray(1e-2, x.dtype), first)
        (c, _, loss), _ = jax.lax.scan(body, start, None, length=fit_steps)
        return tree._replace(constant=c), jnp.where(jnp.isfinite(loss), loss, jnp.inf)

    size_of = lambda tree: num_nodes(tree, num_vars, ops)

    def improved(front, trees, losses):
        sizes = jax.vmap(size_of)(trees)
        table = jnp.where(
            sizes[None] == jnp.arange(num + 1)[:, None], losses[None], jnp.inf
        )
        best = jnp.argmin(table, 1)
        loss = jnp.min(table, 1)
        better = loss < front.loss
        pick = lambda old, new: jnp.where(better[:, None], new[best], old)
        tree = jax.tree.map(pick, front.tree, trees)
        return Front(tree, jnp.where(better, loss, front.loss)), sizes

    def generation(carry, i):
        trees, scores, front = carry
        draw_key, breed_key, front_key = jax.random.split(jax.random.fold_in(key, i), 3)
        rivals = jax.random.randint(draw_key, (2, half, tournament), 0, population)
        winners = jnp.take_along_axis(
            rivals, jnp.argmin(scores[rivals], -1)[..., None], -1
        )[..., 0]
        take = lambda trees, index: jax.tree.map(lambda leaf: leaf[index], trees)
        mothers, fathers = take(trees, winners[0]), take(trees, winners[1])
        # Some mothers are the best of their size: what was found is not lost to age.
        rows = jax.random.randint(front_key, (half // 4,), 1, num + 1)
        kept = take(front.tree, rows)
        usable = jnp.isfinite(front.loss[rows])
        mothers = jax.tree.map(
            lambda m, f: m.at[: half // 4].set(
                jnp.where(usable[:, None], f, m[: half // 4])
            ),
            mothers,
            kept,
        )
        keys = jax.random.split(breed_key, half)
        children, losses = jax.vmap(fitted)(jax.vmap(child)(keys, mothers, fathers))
        front, sizes = improved(front, children, losses)
        score = losses + parsimony * sizes
        # The first half is the older one.
        trees = jax.tree.map(
            lambda old, new: jnp.concatenate([old[half:], new]), trees, children
        )
        return (trees, jnp.concatenate([scores[half:], score]), front), None

    population = 2 * half
    first_key = jax.random.fold_in(key, generations)
    trees = jax.vmap(grow)(jax.random.split(first_key, population))
    trees, losses = jax.vmap(fitted)(trees)
    empty = Front(
        Tree(jnp.zeros((num + 1, num), jnp.int32), jnp.zeros((num + 1, num), x.dtype)),
        jnp.full(num + 1, jnp.inf, x.dtype),
    )
    front, sizes = improved(empty, trees, losses)
    start = (trees, losses + parsimony * sizes, front)
    return jax.lax.scan(generation, start, jnp.arange(generations))[0][2]


def knee(front: Front, *, factor: float = 1.5) -> Int[Array, ""]:
    """The smallest size whose loss is within `factor` of the smallest loss."""
    good = front.loss <= factor * jnp.min(front.loss) + 1e-9
    return jnp.argmax(good)


def expression(
    tree: Tree, variables: tuple[str, ...], ops: tuple[str, ...], node: int = 0
) -> str:
    """The expression in words, on the host."""
    op = int(tree.op[node])
    if op == 0:
        return f"{float(tree.constant[node]):.4g}"
    if op <= len(variables):
        return variables[op - 1]
    name = ops[op - 1 - len(variables)]
    left = expression(tree, variables, ops, 2 * node + 1)
    if name in UNARY:
        return f"{name}({left})"
    return f"({left} {name} {expression(tree, variables, ops, 2 * node + 2)})"


def _active(op: Int[Array, " N"], num_vars: int, ops: tuple[str, ...]):
    """Which nodes the value depends on."""
    num = op.shape[0]
    unary = jnp.array([name in UNARY for name in ops])
    active = [jnp.array(True)] + [jnp.array(False)] * (num - 1)
    for i in range(num // 2):
        is_op = active[i] & (op[i] > num_vars)
        single = unary[jnp.clip(op[i] - num_vars - 1, 0, len(ops) - 1)]
        active[2 * i + 1] = is_op
        active[2 * i + 2] = is_op & ~single
    return jnp.stack(active)


def _descendants(num: int) -> np.ndarray:
    """`[N, N]`: whether the second node lies in the subtree of the first."""
    inside = np.eye(num, dtype=bool)
    for i in range(num - 1, 0, -1):
        inside[(i - 1) // 2] |= inside[i]
    return inside
