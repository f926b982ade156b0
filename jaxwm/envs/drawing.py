"""Figures of bodies as seen from the side, drawn where there is no OpenGL.

A figure is a list of filled outlines in metres; a view says which part of the plane the
picture shows. Also draws the pendulum and the cart-pole in pure JAX.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxwm.physics.mjx import library
from jaxwm.types import EnvState

SKY = (238, 242, 246)
GROUND = (205, 212, 205)
DARK = (51, 51, 64)
CART = (51, 77, 115)
ROD = (204, 89, 64)
SMOOTH = 2  # pictures are drawn so much larger, then averaged


class Outline(NamedTuple):
    """A convex area: all points within `radius` of the hull of `points`."""

    points: np.ndarray  # [n, 2], m
    radius: float  # m
    colour: tuple[int, ...]  # red, green, blue, up to 255


class View(NamedTuple):
    """The part of the plane that a picture shows."""

    centre: tuple[float, float]  # m
    half_height: float  # m


def figure(outlines: list[Outline], view: View, size: tuple[int, int]) -> np.ndarray:
    """A picture `[height, width, 3]` uint8; later outlines cover earlier ones."""
    from PIL import Image, ImageDraw

    height, width = (SMOOTH * pixels for pixels in size)
    scale = height / (2 * view.half_height)
    middle = np.array([width, height]) / 2
    image = Image.new("RGB", (width, height), SKY)
    draw = ImageDraw.Draw(image)
    for points, radius, colour in outlines:
        pixels = (np.asarray(points) - view.centre) * [scale, -scale] + middle
        hull = [tuple(point) for point in convex_hull(pixels)]
        r = max(scale * radius, 0.5)
        if len(hull) > 2:
            draw.polygon(hull, fill=colour)
        if radius or len(hull) < 3:
            for a, b in zip(hull, hull[1:] + hull[:1], strict=True):
                draw.line([a, b], fill=colour, width=max(round(2 * r), 1))
            for x, y in hull:
                draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BOX))


def model(model: Any, data: Any, size: tuple[int, int]) -> np.ndarray:
    """A picture of a MuJoCo scene without perspective, from its first camera.

    Args:
        model: `mujoco.MjModel`; one without cameras is seen along the y axis.
        data: `mujoco.MjData` after `mj_forward`.
        size: height and width in pixels.
    """
    if model.ncam:
        right, up, back = data.cam_xmat[0].reshape(3, 3).T
        origin = data.cam_xpos[0]
        # The plane of the figure passes through what the camera looks at.
        distance = max(np.dot(origin - data.subtree_com[0], back), 1e-3)
        half_height = distance * np.tan(np.deg2rad(model.cam_fovy[0]) / 2)
    else:
        right, up, back = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
        origin, half_height = model.stat.center, 0.75 * model.stat.extent
    plane = np.stack([right, up])
    view = View((plane[0] @ origin, plane[1] @ origin), half_height)
    # Rounded, so that what lies in one plane keeps the order of the model.
    nearest_last = np.argsort(np.round(data.geom_xpos @ back, 6), kind="stable")
    outlines = [_outline(model, data, g, plane, view) for g in nearest_last]
    return figure([o for o in outlines if o is not None], view, size)


def pendulum(states: list[EnvState], size: tuple[int, int]) -> list[np.ndarray]:
    """`render` of the pendulum in pure JAX: a rod seen from the side."""
    view = View((0.0, 0.0), 1.3)

    def picture(state):
        theta, length = float(state.physics.theta), float(state.params["length"])
        tip = length * np.array([-np.sin(theta), np.cos(theta)])
        rod = Outline(np.stack([np.zeros(2), tip]), 0.045, ROD)
        pivot = Outline(np.zeros((1, 2)), 0.04, DARK)
        return figure([rod, pivot], view, size)

    return [picture(state) for state in states]


def cartpole(states: list[EnvState], size: tuple[int, int]) -> list[np.ndarray]:
    """`render` of the cart-pole in pure JAX: rail, cart and pole from the side."""
    view = View((0.0, 0.0), 2.9)
    rail = Outline(np.array([[-2.55, 0], [2.55, 0]]), 0.02, (140, 145, 153))
    box = np.array([[-0.2, -0.09], [0.2, -0.09], [0.2, 0.09], [-0.2, 0.09]])

    def picture(state):
        theta, length = float(state.physics.theta), float(state.params["length"])
        foot = np.array([float(state.physics.x), 0.0])
        tip = foot + 2 * length * np.array([np.sin(theta), np.cos(theta)])
        cart = Outline(box + foot, 0.0, CART)
        pole = Outline(np.stack([foot, tip]), 0.035, ROD)
        return figure([rail, cart, pole], view, size)

    return [picture(state) for state in states]


def convex_hull(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull of `[n, 2]` points, counter-clockwise.

    Source: Andrew's monotone chain (1979).
    """
    points = np.unique(points, axis=0)
    if len(points) < 3:
        return points

    def chain(points):
        hull = []
        for point in points:
            while len(hull) > 1 and _turn(hull[-2], hull[-1], point) <= 0:
                hull.pop()
            hull.append(point)
        return hull[:-1]

    return np.array(chain(points) + chain(points[::-1]))


def _turn(a, b, c) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _outline(model, data, geom: int, plane, view: View) -> Outline | None:
    """A geom as projected on the plane; None for what cannot be seen."""
    mujoco = library()
    kind = mujoco.mjtGeom(model.geom_type[geom])
    material = model.geom_matid[geom]
    rgba = model.mat_rgba[material] if material >= 0 else model.geom_rgba[geom]
    if rgba[3] == 0:
        return None
    colour = tuple(int(255 * c) for c in rgba[:3])
    rotation, size = data.geom_xmat[geom].reshape(3, 3), model.geom_size[geom]
    place = data.geom_xpos[geom]
    project = lambda local: (np.atleast_2d(local) @ rotation.T + place) @ plane.T
    if kind == mujoco.mjtGeom.mjGEOM_PLANE:
        if abs(plane[1] @ rotation[:, 2]) < 0.9:
            return None  # a wall, or a floor seen from above
        level, far = plane[1] @ place, 100 * view.half_height
        x, z = view.centre
        corners = [[x - far, level], [x + far, level], [x - far, z - far]]
        return Outline(np.array([*corners, [x + far, z - far]]), 0.0, GROUND)
    signs = np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return Outline(project(np.zeros(3)), size[0], colour)
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        ends = [[0, 0, -size[1]], [0, 0, size[1]]]
        return Outline(project(ends), size[0], colour)
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        half = np.array([size[0], size[0], size[1]])
        return Outline(project(signs * half), 0.0, colour)
    if kind in (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_ELLIPSOID):
        return Outline(project(signs * size), 0.0, colour)
    centre, half = np.split(model.geom_aabb[geom], 2)  # meshes and the like
    return Outline(project(centre + signs * half), 0.0, colour)
