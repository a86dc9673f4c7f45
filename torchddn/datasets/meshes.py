"""Meshes in OFF files, and points on meshes."""

import io
import re
from pathlib import Path

import numpy as np

from torchddn.errors import InvalidInputError

try:
    import trimesh
except ImportError as error:
    raise ImportError(
        f"`torchddn.datasets` needs {error.name} for meshes. Install it with `pip install 'torchddn[data]'`."
    ) from error

__all__ = ["read_off", "sample_surface", "unit_ball"]

# "OFF", then the numbers of vertices, faces and edges; some published files lack the line break after the word.
_HEADER = re.compile(r"\s*OFF\s*(\d+)\s+(\d+)\s+(\d+)[^\n]*(?:\n|$)")


def read_off(path: Path) -> trimesh.Trimesh:
    """Returns the mesh in an OFF file.

    Raises:
        InvalidInputError: If the file is empty, cut short, or no OFF file; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.") from error
    if not text.strip():
        raise InvalidInputError(f"{path} is empty. Unpack the data set again.")
    text = re.sub(r"#[^\n]*", "", text)
    header = _HEADER.match(text)
    if header is None:
        raise InvalidInputError(f"{path} is no OFF file: it begins with {text[:20]!r}, not with OFF and three numbers.")
    num_vertices, num_faces, _ = map(int, header.groups())
    rest = [line for line in text[header.end() :].splitlines() if line.strip()]
    if len(rest) < num_vertices + num_faces:
        raise InvalidInputError(
            f"{path} is cut short: it announces {num_vertices} vertices and {num_faces} faces, and has "
            f"{len(rest)} lines for them. Unpack the data set again."
        )
    body = "\n".join([f"OFF\n{num_vertices} {num_faces} 0", *rest])
    try:
        # Unprocessed: to merge vertices would change the area of no face, and takes most of the time.
        mesh = trimesh.load_mesh(io.StringIO(body), file_type="off", process=False)
    except (ValueError, IndexError, TypeError) as error:
        raise InvalidInputError(f"{path} is damaged: {error}. Unpack the data set again.") from error
    # In this order: trimesh cannot tell the area of no faces.
    if not np.isfinite(mesh.vertices).all() or len(mesh.faces) == 0 or not mesh.area > 0:
        raise InvalidInputError(f"{path} is damaged: a vertex is not finite, or its faces have no area.")
    return mesh


def sample_surface(mesh: trimesh.Trimesh, num_points: int, seed: int, normals: bool = False) -> np.ndarray:
    """Returns points uniform on the surface, ``(num_points, 3)``; with the normals of their faces, ``(num_points, 6)``.

    A face is drawn with probability proportional to its area.
    """
    points, faces = trimesh.sample.sample_surface(mesh, num_points, seed=seed)[:2]
    return np.concatenate([points, mesh.face_normals[faces]], axis=1) if normals else np.asarray(points)


def unit_ball(points: np.ndarray) -> np.ndarray:
    """Returns the points moved and scaled: their mean is 0 and the farthest has distance 1; normals are kept."""
    positions = points[:, :3] - points[:, :3].mean(axis=0)
    largest = np.linalg.norm(positions, axis=1).max()
    return np.concatenate([positions / max(largest, np.finfo(np.float64).tiny), points[:, 3:]], axis=1)
