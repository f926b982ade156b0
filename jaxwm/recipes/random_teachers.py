"""Random teachers: a student learns features by imitating a network that knows nothing.

The teacher has random weights and is never updated. The student, of the same
architecture, matches the teacher's outputs on unlabelled images without augmentation.
Its hidden features then tell classes apart better than the teacher's: what is learnt
comes from the data and the implicit bias of training, not from the teacher. The effect
goes when the images are noise. In the paper it grows when the student starts near the
teacher; at the reduced size here a random start gains more.

Source: Sarnthein, Bachmann, Anagnostidis and Hofmann, "Random Teachers are Good
Teachers", ICML 2023; the head is DINO's.
Shapes: B images, S pixels a side, F features, K outputs.
Departs: plain convolutions without batch normalisation, on generated images; linear
probes are fitted on all examples at every step.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxwm import nn
from jaxwm.core import checks, optimise
from jaxwm.data.gratings import NUM_CLASSES, gratings
from jaxwm.measures import probes
from jaxwm.types import Metrics, ModelState, Params, Predictor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: a minute or two on one core. `PAPER` has the published sizes."""

    channels: tuple[int, ...] = (16, 16, 32, 32)  # of the encoder's layers
    strides: tuple[int, ...] = (2, 1, 2, 1)
    hidden: tuple[int, ...] = (128,)  # of the head
    bottleneck: int = 64
    num_outputs: int = 256  # K
    loss: str = "ce"  # or "kl", "mse"
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0
    # Where the student starts: elsewhere at random, at the teacher, on the line
    # (1 - alpha) teacher + alpha random, or at teacher + alpha random.
    start: str = "random"  # "teacher", "interpolated", "neighbourhood"
    alpha: float = 1e-3  # ("interpolated", "neighbourhood")
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 64
    num_steps: int = 500
    # The experiment's data.
    image_size: int = 16
    noise: float = 0.2  # of each pixel; contrasts are 0.5 to 1
    num_train: int = 1500
    num_test: int = 1000

    def __post_init__(self):
        checks.finite(self)
        for name, allowed in (
            ("loss", ("ce", "kl", "mse")),
            ("start", ("random", "teacher", "interpolated", "neighbourhood")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got "
                    f"{getattr(self, name)!r}."
                )
        if not 0 < self.alpha <= 1:
            raise ValueError(
                f"alpha must be in (0, 1], got {self.alpha}; at 0 the student is the "
                'teacher and has no gradient, say start "teacher" if that is meant.'
            )
        if self.num_outputs < 2:
            raise ValueError(
                f"num_outputs must be at least 2, got {self.num_outputs}; one output "
                "has probability 1 whatever the weights."
            )


# VGG11's widths with strides for its pooling; the head and optimiser as published.
PAPER = Config(
    channels=(64, 128, 256, 256, 512, 512, 512, 512),
    strides=(1, 2, 2, 1, 2, 1, 2, 1),
    hidden=(2048, 2048),
    bottleneck=256,
    num_outputs=65536,
    batch_size=256,
    image_size=32,
    num_train=50_000,
    num_test=10_000,
    num_steps=19_600,
)
TINY = Config(
    channels=(4, 4),
    strides=(2, 2),
    hidden=(8,),
    bottleneck=4,
    num_outputs=6,
    batch_size=8,
    num_steps=3,
    image_size=8,
    num_train=40,
    num_test=30,
)


class L2BottleneckHead(linen.Module):
    """MLP, linear bottleneck of unit length, then unit-length directions: K logits."""

    hidden: tuple[int, ...]
    bottleneck: int
    num_outputs: int

    @linen.compact
    def __call__(self, x: Float[Array, "... F"]) -> Float[Array, "... K"]:
        """Cosines between the bottleneck and K directions."""
        init = linen.initializers.truncated_normal(0.02)
        for size in self.hidden:
            x = linen.gelu(linen.Dense(size, kernel_init=init)(x))
        x = linen.Dense(self.bottleneck, kernel_init=init)(x)
        x /= jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)
        w = self.param("directions", init, (self.bottleneck, self.num_outputs))
        return x @ (w / jnp.sqrt(jnp.sum(w**2, 0) + 1e-12))


def random_teachers(config: Config) -> Predictor:
    """Distils a frozen random teacher into a student.

    `init(key) -> ModelState`: params are the student's, `buffers["teacher"]` the
    teacher's; both `{"encoder", "head"}`;
    `step(key, state, images [P, S, S, 1]) -> (state, metrics)`: one update on a batch
    drawn from them; metrics hold the Kullback-Leibler divergence `kl`;
    `predict(params, image [S, S, 1]) -> [F]`: the encoder's features, for probing.
    """
    encoder = nn.ConvEncoder(config.channels, config.strides)
    head = L2BottleneckHead(config.hidden, config.bottleneck, config.num_outputs)
    optimiser = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
    image = jnp.zeros((config.image_size, config.image_size, 1))

    def random_params(key: Key[Array, ""]) -> Params:
        encoder_key, head_key = jax.random.split(key)
        features = jnp.zeros(config.channels[-1])
        return {
            "encoder": encoder.init(encoder_key, image),
            "head": head.init(head_key, features),
        }

    def init(key: Key[Array, ""]) -> ModelState:
        teacher_key, student_key = jax.random.split(key)
        teacher = random_params(teacher_key)
        student = init_student(
            student_key, teacher, random_params, config.start, config.alpha
        )
        return optimise.init_state(optimiser, student, {"teacher": teacher})

    def predict(params: Params, x: Float[Array, "... S S 1"]) -> Float[Array, "... F"]:
        return encoder.apply(params["encoder"], x)

    def logits(params, x):
        return head.apply(params["head"], predict(params, x))

    def step(key, state: ModelState, images: Float[Array, "P S S 1"]):
        index = jax.random.randint(key, (config.batch_size,), 0, images.shape[0])
        x = images[index]
        teacher = logits(state.buffers["teacher"], x)

        def loss(params):
            student = logits(params, x)
            value = distill_loss(
                student,
                teacher,
                config.student_temperature,
                config.teacher_temperature,
                kind=config.loss,
            )
            return value, (state.buffers, {"kl": distill_loss(student, teacher)})

        return optimise.gradient_step(loss, optimiser, state, has_aux=True)

    return Predictor(init, step, predict)


def init_student(
    key: Key[Array, ""],
    teacher: Params,
    random_params: Callable,
    start: str,
    alpha: float | Float[Array, ""] = 1e-3,
    *,
    variance_preserving: bool = True,
) -> Params:
    """The student's first weights, relative to the teacher's.

    Args:
        key: draws the random weights.
        teacher: theta_T.
        random_params: `(key) -> params`, theta_R.
        start: "random" theta_R; "teacher" theta_T; "interpolated"
            `((1 - a) theta_T + a theta_R) / s`; "neighbourhood"
            `(theta_T + a theta_R) / s`.
        alpha: a.
        variance_preserving: s keeps the variance of the weights,
            `sqrt((1-a)^2 + a^2)` or `sqrt(1 + a^2)`; otherwise s is 1.

    Raises:
        ValueError: for an unknown start, or params of another structure.
    """
    if start == "teacher":
        return teacher
    fresh = random_params(key)
    if jax.tree.structure(fresh) != jax.tree.structure(teacher):
        raise ValueError(
            "random_params must give weights of the teacher's structure, got "
            f"{jax.tree.structure(fresh)} for {jax.tree.structure(teacher)}."
        )
    weights = {
        "random": (0.0, 1.0),
        "interpolated": (1 - alpha, alpha),
        "neighbourhood": (1.0, alpha),
    }
    if start not in weights:
        raise ValueError(
            f"start must be one of teacher, {', '.join(weights)}, got {start!r}."
        )
    a, b = weights[start]
    scale = (a**2 + b**2) ** 0.5 if variance_preserving else 1.0
    return jax.tree.map(lambda t, r: (a * t + b * r) / scale, teacher, fresh)


def distill_loss(
    student: Float[Array, "B K"],
    teacher: Float[Array, "B K"],
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    *,
    kind: str = "kl",
) -> Float[Array, ""]:
    """Mean loss of the student's logits; no gradient reaches the teacher's.

    "ce":  -sum_k p_T(k) ln p_S(k),  p = softmax(logits / temperature)
    "kl":  the same minus the teacher's entropy, least 0
    "mse": mean squared difference of the logits
    """
    teacher = jax.lax.stop_gradient(teacher)
    if kind == "mse":
        return jnp.mean((student - teacher) ** 2)
    log_s = jax.nn.log_softmax(student / student_temperature)
    log_t = jax.nn.log_softmax(teacher / teacher_temperature)
    # Subtracted inside the sum: both terms are near ln K, and float32 has 7 digits.
    difference = log_t - log_s if kind == "kl" else -log_s
    return jnp.mean(jnp.sum(jnp.exp(log_t) * difference, -1))


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Probe accuracies of students and their teacher on held-out images.

    `linear/student` and `knn/student` start at random, `linear/between` and
    `linear/near` on the line to the teacher at 0.1 and 0.001, `linear/noise` as near,
    but it learns from images that are pure noise. `linear/pixels` is the probe of the
    raw images. A gain is the accuracy above the teacher's.
    """
    train_key, test_key, noise_key, init_key, step_key = jax.random.split(key, 5)
    draw = lambda key, num: gratings(
        key, num, size=config.image_size, noise=config.noise
    )
    images, labels = draw(train_key, config.num_train)
    test_images, test_labels = draw(test_key, config.num_test)
    data = jnp.stack([images, jax.random.normal(noise_key, images.shape)])

    def probe(embed):
        known, new = embed(images), embed(test_images)
        return {
            "linear": probes.linear_probe(known, labels, new, test_labels, NUM_CLASSES),
            "knn": probes.knn_probe(known, labels, new, test_labels, NUM_CLASSES),
        }

    system = random_teachers(dataclasses.replace(config, start="random"))
    random = system.init(init_key)
    teacher = random.buffers["teacher"]

    def student(setting):
        alpha, which = setting
        params = init_student(
            init_key, teacher, lambda key: random.params, "interpolated", alpha
        )
        state, found = optimise.repeat(
            system.step,
            random._replace(params=params),
            step_key,
            data[which],
            config.num_steps,
        )
        same = jax.tree.map(jnp.array_equal, teacher, state.buffers["teacher"])
        return probe(functools.partial(system.predict, state.params)) | {
            "kl": jnp.mean(found["kl"][-10:]),
            "kl_start": found["kl"][0],
            "unchanged": jnp.all(jnp.stack(jax.tree.leaves(same))),
        }

    # One after the other by a loop, so that training is compiled once.
    settings = (jnp.array([1.0, 1e-3, 0.1, 1e-3]), jnp.array([0, 1, 0, 0]))
    found = jax.lax.map(student, settings)
    pixels = probe(lambda x: x.reshape(len(x), -1))
    of_teacher = probe(functools.partial(system.predict, teacher))
    metrics = {
        f"{kind}/{name}": found[kind][i]
        for kind in ("linear", "knn", "kl")
        for i, name in enumerate(("student", "noise", "between", "near"))
    }
    for kind in ("linear", "knn"):
        metrics[f"{kind}/pixels"] = pixels[kind]
        metrics[f"{kind}/teacher"] = of_teacher[kind]
    gain = lambda name, kind="linear": (
        metrics[f"{kind}/{name}"] - metrics[f"{kind}/teacher"]
    )
    return metrics | {
        "kl/start": found["kl_start"][0],
        "teacher/unchanged": 1.0 * jnp.all(found["unchanged"]),
        "gain/linear": gain("student"),
        "gain/knn": gain("student", "knn"),
        "gain/noise": gain("noise"),
        "gain/near": gain("near"),
    }
