"""Procedural grey images: oriented gratings that no class mean gives away.

Shapes: B images, S pixels a side.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

NUM_CLASSES = 8  # four orientations times two spatial frequencies
_FREQUENCIES = (0.7, 1.2)  # radians per pixel


def gratings(
    key: Key[Array, ""], num: int, *, size: int = 16, noise: float = 0.5
) -> tuple[Float[Array, "B S S 1"], Int[Array, " B"]]:
    """Gabor patches of random phase, place and contrast, with their classes.

        contrast exp(-r^2 / (2 (S/4)^2)) cos(f u + phase) + noise eps

    u is the coordinate along the class's orientation. Phases are uniform, so every
    class has mean zero and a linear map of the pixels is at chance.

    Args:
        key: draws classes and images.
        num: B.
        size: S.
        noise: standard deviation of each pixel; contrasts are 0.5 to 1.

    Raises:
        ValueError: if there is no image or it is smaller than 8 pixels.
    """
    if num < 1 or size < 8:
        raise ValueError(
            f"num must be at least 1 and size at least 8, got {num} and {size}; a "
            "period takes up to 9 pixels."
        )
    label_key, phase_key, place_key, contrast_key, noise_key = jax.random.split(key, 5)
    label = jax.random.randint(label_key, (num,), 0, NUM_CLASSES)
    phase = jax.random.uniform(phase_key, (num,), maxval=2 * jnp.pi)
    centre = size * jax.random.uniform(place_key, (num, 2), minval=0.25, maxval=0.75)
    contrast = jax.random.uniform(contrast_key, (num,), minval=0.5)

    def image(label, phase, centre, contrast):
        angle = (label % 4) * jnp.pi / 4
        frequency = jnp.asarray(_FREQUENCIES)[label // 4]
        x = jnp.arange(size) - centre[0]
        y = jnp.arange(size)[:, None] - centre[1]
        u = x * jnp.cos(angle) + y * jnp.sin(angle)
        window = jnp.exp(-(x**2 + y**2) / (2 * (size / 4) ** 2))
        return contrast * window * jnp.cos(frequency * u + phase)

    images = jax.vmap(image)(label, phase, centre, contrast)
    images += noise * jax.random.normal(noise_key, images.shape)
    return images[..., None], label
