"""Mesh files: GLB, OBJ and PLY out, GLB in."""

import struct
from pathlib import Path

import numpy as np

from dreamjax.errors import UserError
from dreamjax.export.gltf import Mesh, TexturedMesh, decode_glb, encode_glb, to_y_up
from dreamjax.export.sheet import write_png
from dreamjax.workdir import write_bytes, write_text

TAKING = "taking the mesh from the field"
"""What exporters that need the mesh say first."""
BAKING = "laying the mesh out flat and baking its texture"
"""What exporters that need a texture say first."""


def write_mesh(path: str | Path, mesh: Mesh) -> None:
    """Write a mesh as `.glb`, `.obj` or `.ply`, whole or not at all.

    GLB and OBJ are y up with the front at +z, as their readers expect; PLY keeps the world's z up
    and front at +x. GLB stores linear colours, OBJ (behind each vertex) and PLY sRGB. Raises
    UserError for another suffix or a path that cannot be written.
    """
    encode = {".glb": encode_glb, ".obj": _encode_obj, ".ply": _encode_ply}
    suffix = Path(path).suffix.lower()
    if suffix not in encode:
        raise UserError(f"cannot write a mesh as {Path(path).name}: use .glb, .obj or .ply")
    write_bytes(path, encode[suffix](mesh))


def read_mesh(path: str | Path) -> Mesh:
    """The mesh of a GLB file that `write_mesh` wrote, in the world's axes and in sRGB.

    Raises UserError for a file that is not there or not such a one.
    """
    try:
        return decode_glb(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, struct.error) as error:
        raise UserError(f"{path} is no mesh with vertex colours that dreamjax wrote") from error


def write_textured_obj(path: str | Path, mesh: TexturedMesh) -> list[Path]:
    """Write a mesh as OBJ, y up with the front at +z, with its MTL and PNG beside it.

    They have the same name but for the suffix. Returns the three paths; raises UserError where one
    cannot be written.
    """
    path = Path(path)
    material, picture = path.with_suffix(".mtl"), path.with_suffix(".png")
    write_png(picture, mesh.picture)
    lines = ["newmtl texture", "Kd 1 1 1", "Ks 0 0 0", "illum 1", f"map_Kd {picture.name}"]
    write_text(material, "\n".join(lines) + "\n")
    lines = ["# y up, front at +z", f"mtllib {material.name}", "usemtl texture"]
    lines += ["v {:.6g} {:.6g} {:.6g}".format(*position) for position in to_y_up(mesh.vertices)]
    lines += [f"vt {u:.6f} {1.0 - v:.6f}" for u, v in mesh.uv]
    lines += ["vn {:.4f} {:.4f} {:.4f}".format(*normal) for normal in to_y_up(mesh.normals)]
    lines += ["f {0}/{0}/{0} {1}/{1}/{1} {2}/{2}/{2}".format(*face) for face in mesh.faces + 1]
    write_text(path, "\n".join(lines) + "\n")
    return [path, material, picture]


def _encode_obj(mesh: Mesh) -> bytes:
    lines = ["# y up, front at +z; each vertex: position, sRGB colour"]
    for position, color in zip(to_y_up(mesh.vertices), mesh.colors, strict=True):
        lines.append("v {:.6g} {:.6g} {:.6g} {:.4f} {:.4f} {:.4f}".format(*position, *color))
    lines += ["vn {:.4f} {:.4f} {:.4f}".format(*normal) for normal in to_y_up(mesh.normals)]
    lines += ["f {0}//{0} {1}//{1} {2}//{2}".format(*face) for face in mesh.faces + 1]
    return ("\n".join(lines) + "\n").encode()


def _encode_ply(mesh: Mesh) -> bytes:
    columns = {name: "<f4" for name in ("x", "y", "z", "nx", "ny", "nz")}
    columns |= {name: "u1" for name in ("red", "green", "blue")}
    vertices = np.zeros(len(mesh.vertices), list(columns.items()))
    colors = np.round(mesh.colors * 255.0)
    for name, values in zip(columns, np.c_[mesh.vertices, mesh.normals, colors].T, strict=True):
        vertices[name] = values
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("indices", "<i4", 3)])
    faces["count"], faces["indices"] = 3, mesh.faces
    types = {"<f4": "float", "u1": "uchar"}
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment z up, front at +x",
        f"element vertex {len(vertices)}",
        *(f"property {types[kind]} {name}" for name, kind in columns.items()),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    return ("\n".join(header) + "\n").encode() + vertices.tobytes() + faces.tobytes()
