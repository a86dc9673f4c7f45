"""Procedural solids that look like those of CAD: primitives, their unions and differences, deformations.

A recipe is a function of a random generator; it makes one solid of its class, with random proportions, in a frame
where z points up. Unions and differences are real ones, so that no point lies on a face inside the solid.
"""

import math
from collections.abc import Callable

import numpy as np

from torchddn.datasets.meshes import trimesh

try:
    import manifold3d  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"`torchddn.datasets.Solids` needs {error.name}. Install it with `pip install 'torchddn[data]'`."
    ) from error

__all__ = ["RECIPES", "pose"]

Mesh = trimesh.Trimesh
Generator = np.random.Generator

_SECTIONS = 24


def _bar(x: float, y: float, z: float, at: tuple[float, float, float] = (0, 0, 0)) -> Mesh:
    """A box with these sides, centered at ``at``."""
    return trimesh.creation.box((x, y, z)).apply_translation(at)


def _rod(radius: float, height: float, at: tuple[float, float, float] = (0, 0, 0), sections: int = _SECTIONS) -> Mesh:
    """A cylinder (a prism of ``sections`` sides) along z, centered at ``at``."""
    return trimesh.creation.cylinder(radius, height, sections=sections).apply_translation(at)


def _union(*parts: Mesh) -> Mesh:
    return trimesh.boolean.union(parts, engine="manifold")


def _difference(whole: Mesh, *parts: Mesh) -> Mesh:
    return trimesh.boolean.difference([whole, *parts], engine="manifold")


def _on_side(mesh: Mesh) -> Mesh:
    """What stood along z lies along x."""
    return mesh.apply_transform(trimesh.transformations.rotation_matrix(math.pi / 2, (0, 1, 0)))


def _finer(mesh: Mesh, longest: float) -> Mesh:
    """With edges no longer than that, to be deformed."""
    vertices, faces = trimesh.remesh.subdivide_to_size(mesh.vertices, mesh.faces, longest)[:2]
    return trimesh.Trimesh(vertices, faces)


def _block(generator: Generator) -> Mesh:
    return _bar(*generator.uniform(0.5, 1.0, 3))


def _ball(generator: Generator) -> Mesh:
    return trimesh.creation.icosphere(subdivisions=3).apply_scale(generator.uniform(0.75, 1.0, 3))


def _cylinder(generator: Generator) -> Mesh:
    return _rod(generator.uniform(0.25, 0.45), generator.uniform(1.0, 1.6))


def _cone(generator: Generator) -> Mesh:
    return trimesh.creation.cone(generator.uniform(0.4, 0.7), generator.uniform(0.9, 1.5), sections=_SECTIONS)


def _capsule(generator: Generator) -> Mesh:
    return trimesh.creation.capsule(generator.uniform(0.8, 1.4), generator.uniform(0.25, 0.4), count=[12, _SECTIONS])


def _ring(generator: Generator) -> Mesh:
    return trimesh.creation.torus(1.0, generator.uniform(0.15, 0.4), major_sections=32, minor_sections=16)


def _pyramid(generator: Generator) -> Mesh:
    return trimesh.creation.cone(generator.uniform(0.5, 0.8), generator.uniform(0.7, 1.1), sections=4)


def _prism(generator: Generator) -> Mesh:
    return _rod(generator.uniform(0.4, 0.6), generator.uniform(1.0, 1.5), sections=3)


def _tube(generator: Generator) -> Mesh:
    radius = generator.uniform(0.4, 0.6)
    return trimesh.creation.annulus(radius * generator.uniform(0.6, 0.85), radius, generator.uniform(0.9, 1.5))


def _bracket(generator: Generator) -> Mesh:
    width, height, depth = generator.uniform(0.8, 1.2, 3)
    thickness = generator.uniform(0.12, 0.25)
    wall = _bar(thickness, depth, height, ((thickness - width) / 2, 0, (height - thickness) / 2))
    return _union(_bar(width, depth, thickness), wall)


def _girder(generator: Generator) -> Mesh:
    length, width, height = generator.uniform(1.4, 2.0), generator.uniform(0.5, 0.7), generator.uniform(0.6, 0.9)
    thickness = generator.uniform(0.08, 0.14)
    flanges = [_bar(length, width, thickness, (0, 0, side * (height - thickness) / 2)) for side in (-1, 1)]
    return _union(_bar(length, thickness, height - thickness), *flanges)


def _table(generator: Generator) -> Mesh:
    length, width, height = generator.uniform(1.0, 1.6), generator.uniform(0.7, 1.0), generator.uniform(0.6, 0.9)
    leg = generator.uniform(0.06, 0.12)
    x, y = (length - leg) / 2, (width - leg) / 2
    legs = [_bar(leg, leg, height, (side * x, end * y, -height / 2)) for side in (-1, 1) for end in (-1, 1)]
    return _union(_bar(length, width, leg), *legs)


def _chair(generator: Generator) -> Mesh:
    side, seat, back = generator.uniform(0.6, 0.8), generator.uniform(0.5, 0.7), generator.uniform(0.6, 0.9)
    leg = generator.uniform(0.06, 0.1)
    x = (side - leg) / 2
    legs = [_bar(leg, leg, seat, (i * x, j * x, -seat / 2)) for i in (-1, 1) for j in (-1, 1)]
    return _union(_bar(side, side, leg), _bar(leg, side, back, (-x, 0, (back - leg) / 2)), *legs)


def _mug(generator: Generator) -> Mesh:
    radius, height = generator.uniform(0.35, 0.5), generator.uniform(0.8, 1.1)
    wall = generator.uniform(0.05, 0.08)
    handle = trimesh.creation.torus(0.3 * height, 0.06, major_sections=24, minor_sections=8)
    handle.apply_transform(trimesh.transformations.rotation_matrix(math.pi / 2, (1, 0, 0)))
    hollow = _rod(radius - wall, height, (0, 0, wall))
    return _difference(_union(_rod(radius, height), handle.apply_translation((radius, 0, 0))), hollow)


def _dumbbell(generator: Generator) -> Mesh:
    half, radius = generator.uniform(0.6, 0.8), generator.uniform(0.25, 0.4)
    ball = trimesh.creation.icosphere(subdivisions=2, radius=radius)
    ends = [ball.copy().apply_translation((side * half, 0, 0)) for side in (-1, 1)]
    return _union(_on_side(_rod(0.35 * radius, 2 * half)), *ends)


def _cross(generator: Generator) -> Mesh:
    thickness = generator.uniform(0.15, 0.3)
    x, y, z = generator.uniform(1.0, 1.4, 3)
    return _union(_bar(x, thickness, thickness), _bar(thickness, y, thickness), _bar(thickness, thickness, z))


def _stairs(generator: Generator) -> Mesh:
    num_steps = int(generator.integers(3, 6))
    width, length, height = generator.uniform(0.6, 1.0), generator.uniform(0.9, 1.3), generator.uniform(0.7, 1.1)
    run, rise = length / num_steps, height / num_steps
    # Each reaches to the ground and a little into the next, so that their union has no seam.
    steps = [
        _bar(1.1 * run, width, (i + 1) * rise, ((i + 0.45) * run, 0, (i + 1) * rise / 2)) for i in range(num_steps)
    ]
    return _union(*steps)


def _arch(generator: Generator) -> Mesh:
    width, height, depth = generator.uniform(1.1, 1.5), generator.uniform(0.8, 1.1), generator.uniform(0.4, 0.7)
    radius = generator.uniform(0.55, 0.8) * height / 2
    bore = trimesh.creation.cylinder(radius, 2 * depth, sections=_SECTIONS)
    bore.apply_transform(trimesh.transformations.rotation_matrix(math.pi / 2, (1, 0, 0)))
    foot = _bar(2 * radius, 2 * depth, height, (0, 0, -height / 2))
    return _difference(_bar(width, depth, height), bore, foot)


def _plate(generator: Generator) -> Mesh:
    length, width, thickness = generator.uniform(1.2, 1.6), generator.uniform(0.8, 1.2), generator.uniform(0.08, 0.16)
    radius = generator.uniform(0.14, 0.2) * width
    holes = [_rod(radius, 1.0, (i * 0.27 * length, j * 0.25 * width, 0), sections=16) for i in (-1, 1) for j in (-1, 1)]
    return _difference(_bar(length, width, thickness), *holes)


def _bowl(generator: Generator) -> Mesh:
    ball = trimesh.creation.icosphere(subdivisions=3)
    inner = ball.copy().apply_scale(generator.uniform(0.82, 0.92))
    return _difference(ball, inner, _bar(3, 3, 3, (0, 0, 1.5 + generator.uniform(-0.2, 0.1))))


def _wheel(generator: Generator) -> Mesh:
    width, num_spokes = generator.uniform(0.15, 0.3), int(generator.integers(2, 5))
    rim = trimesh.creation.annulus(generator.uniform(0.75, 0.85), 1.0, width)
    spokes = []
    for i in range(num_spokes):
        turn = trimesh.transformations.rotation_matrix(i * math.pi / num_spokes, (0, 0, 1))
        spokes.append(_bar(1.8, 0.12, 0.6 * width).apply_transform(turn))
    return _union(rim, _rod(0.2, 1.2 * width), *spokes)


def _twisted(generator: Generator) -> Mesh:
    """A bar of square section, turned about its axis."""
    bar = _finer(_bar(0.45, 0.45, generator.uniform(1.5, 2.0)), 0.2)
    angle = generator.uniform(1.5, 3.0) * bar.vertices[:, 2]
    x, y, z = bar.vertices.T
    bar.vertices = np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle), z], axis=1)
    return bar


def _bent(generator: Generator) -> Mesh:
    """A rod along an arc of 120 to 200 degrees."""
    length = generator.uniform(2.5, 3.2)
    rod = _finer(_rod(generator.uniform(0.15, 0.25), length, sections=12), 0.3)
    radius = length / math.radians(generator.uniform(120, 200))
    x, y, z = rod.vertices.T
    rod.vertices = np.stack([radius - (radius - x) * np.cos(z / radius), y, (radius - x) * np.sin(z / radius)], axis=1)
    return rod


def _vase(generator: Generator) -> Mesh:
    """A surface of revolution with a belly and a neck."""
    z = np.linspace(0, generator.uniform(1.3, 1.7), 16)
    belly, neck = generator.uniform(0.45, 0.6), generator.uniform(0.12, 0.2)
    radius = neck + (belly - neck) * np.exp(-(((z / z[-1] - 0.35) / 0.25) ** 2))
    profile = np.stack([np.r_[0, radius, 0], np.r_[z[0], z, z[-1]]], axis=1)
    return trimesh.creation.revolve(profile, sections=_SECTIONS)


RECIPES: dict[str, Callable[[Generator], Mesh]] = {
    "arch": _arch,
    "ball": _ball,
    "bent rod": _bent,
    "block": _block,
    "bowl": _bowl,
    "bracket": _bracket,
    "capsule": _capsule,
    "chair": _chair,
    "cone": _cone,
    "cross": _cross,
    "cylinder": _cylinder,
    "dumbbell": _dumbbell,
    "girder": _girder,
    "mug": _mug,
    "plate": _plate,
    "prism": _prism,
    "pyramid": _pyramid,
    "ring": _ring,
    "stairs": _stairs,
    "table": _table,
    "tube": _tube,
    "twisted bar": _twisted,
    "vase": _vase,
    "wheel": _wheel,
}


def pose(mesh: Mesh, generator: Generator, free: bool) -> Mesh:
    """The mesh, stretched along each axis by 0.85 to 1.15 and turned.

    By any rotation if ``free``; else by any angle about z, and tilted by up to 15 degrees.
    """
    mesh.apply_scale(generator.uniform(0.85, 1.15, 3))
    if free:
        return mesh.apply_transform(trimesh.transformations.random_rotation_matrix(generator.random(3)))
    turn = trimesh.transformations.rotation_matrix(generator.uniform(0, 2 * math.pi), (0, 0, 1))
    direction = generator.uniform(0, 2 * math.pi)
    tilt = trimesh.transformations.rotation_matrix(
        math.radians(generator.uniform(0, 15)), (math.cos(direction), math.sin(direction), 0)
    )
    return mesh.apply_transform(tilt @ turn)
