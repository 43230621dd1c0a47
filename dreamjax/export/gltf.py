"""Binary glTF 2.0 (GLB) of one mesh: with vertex colours, to bytes and back, or with a texture.

Our world is z up with the front at +x; glTF is y up with the front at +z. Both are right-handed and
the change of axes is a rotation: (x, y, z) of the world is (y, z, x) in glTF. glTF's vertex colours
are linear; they are stored as RGBA bytes, which every reader takes and which move an sRGB colour by
at most 7/255, that only near black. A texture lies in the file as a PNG in sRGB. The material says
"not metallic", since glTF's default is a metal that shows its surroundings.
"""

import json
import struct
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from dreamjax.export.sheet import encode_png

_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_COMPONENT = {"<f4": 5126, "<u4": 5125, "|u1": 5121}
_DTYPE = {code: dtype for dtype, code in _COMPONENT.items()}
_KIND = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071


class Mesh(NamedTuple):
    """Triangles in the world's axes, wound so that they are counter-clockwise from outside.

    `normals` are unit vectors at the vertices, `colors` are sRGB in [0, 1].
    """

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    normals: Float[np.ndarray, "V 3"]
    colors: Float[np.ndarray, "V 3"]


class TexturedMesh(NamedTuple):
    """Triangles as of a `Mesh` whose colours are in a `picture` (sRGB).

    `uv` are places in it, right and down from its top left corner, in [0, 1]. Vertices on the edge
    of a chart stand once in each.
    """

    vertices: Float[np.ndarray, "W 3"]
    faces: Int[np.ndarray, "F 3"]
    normals: Float[np.ndarray, "W 3"]
    uv: Float[np.ndarray, "W 2"]
    picture: UInt8[np.ndarray, "size size 3"]


def srgb_to_linear(color: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Linear light in [0, 1] of sRGB values in [0, 1] (IEC 61966-2-1)."""
    color = np.clip(color, 0.0, 1.0)
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(color: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """sRGB values in [0, 1] of linear light in [0, 1] (IEC 61966-2-1)."""
    color = np.clip(color, 0.0, 1.0)
    return np.where(color <= 0.0031308, color * 12.92, 1.055 * color ** (1.0 / 2.4) - 0.055)


def to_y_up(vectors: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """World vectors (z up, front +x) in glTF's axes (y up, front +z)."""
    return vectors[:, [1, 2, 0]]


def to_z_up(vectors: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Vectors in glTF's axes (y up, front +z) in the world's (z up, front +x)."""
    return vectors[:, [2, 0, 1]]


def encode_glb(mesh: Mesh | TexturedMesh) -> bytes:
    """The mesh as a GLB file: y up, front at +z, linear vertex colours or a texture in sRGB."""
    position = to_y_up(mesh.vertices).astype("<f4")
    attributes = {"POSITION": position, "NORMAL": to_y_up(mesh.normals).astype("<f4")}
    pictures = []
    if isinstance(mesh, TexturedMesh):
        attributes["TEXCOORD_0"] = mesh.uv.astype("<f4")
        pictures.append(encode_png(mesh.picture))
    else:
        linear = np.round(255.0 * srgb_to_linear(mesh.colors)).astype("u1")
        attributes["COLOR_0"] = np.pad(linear, ((0, 0), (0, 1)), constant_values=255)
    indices = mesh.faces.astype("<u4").reshape(-1, 1)
    views, accessors, chunks, offset = [], [], [], 0
    for array in [*attributes.values(), indices]:
        target = _ELEMENT_ARRAY_BUFFER if array is indices else _ARRAY_BUFFER
        views.append(
            {"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes, "target": target}
        )
        accessors.append(
            {
                "bufferView": len(views) - 1,
                "componentType": _COMPONENT[array.dtype.str],
                "count": len(array),
                "type": _KIND[array.shape[1]],
            }
        )
        chunks.append(array.tobytes())
        offset += array.nbytes
    for picture in pictures:
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(picture)})
        chunks.append(picture + b"\0" * (-len(picture) % 4))
        offset += len(chunks[-1])
    if "COLOR_0" in attributes:
        accessors[2]["normalized"] = True
    accessors[0] |= {"min": position.min(0).tolist(), "max": position.max(0).tolist()}
    header = _header(list(attributes), accessors, views, offset)
    if pictures:
        _add_texture(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    return b"".join(
        [
            struct.pack("<III", _MAGIC, 2, 12 + 8 + len(text) + 8 + offset),
            struct.pack("<II", len(text), _JSON),
            text,
            struct.pack("<II", offset, _BIN),
            *chunks,
        ]
    )


def _header(attributes: list[str], accessors: list, views: list, size: int) -> dict:
    """The glTF document of one mesh: `attributes` name the first accessors, indices come next."""
    primitive = {
        "attributes": {name: i for i, name in enumerate(attributes)},
        "indices": len(attributes),
        "material": 0,
        "mode": 4,
    }
    return {
        "asset": {"version": "2.0", "generator": "dreamjax"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "object"}],
        "meshes": [{"name": "object", "primitives": [primitive]}],
        "materials": [
            {
                "name": "vertex colours",
                "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.9},
            }
        ],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": size}],
    }


def _add_texture(header: dict) -> None:
    """Let the material of a document show the picture in its last view."""
    (material,) = header["materials"]
    material["name"] = "texture"
    material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
    header["textures"] = [{"source": 0, "sampler": 0}]
    header["images"] = [{"bufferView": len(header["bufferViews"]) - 1, "mimeType": "image/png"}]
    header["samplers"] = [
        {
            "magFilter": _LINEAR,
            "minFilter": _LINEAR_MIPMAP_LINEAR,
            "wrapS": _CLAMP_TO_EDGE,
            "wrapT": _CLAMP_TO_EDGE,
        }
    ]


def decode_glb(content: bytes) -> Mesh:
    """The mesh of a file that `encode_glb` made of a `Mesh`: in the world's axes and in sRGB."""
    length = struct.unpack_from("<I", content, 12)[0]
    header = json.loads(content[20 : 20 + length])
    body = content[20 + length + 8 :]

    def read(index: int) -> np.ndarray:
        accessor = header["accessors"][index]
        view = header["bufferViews"][accessor["bufferView"]]
        raw = body[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        array = np.frombuffer(raw, _DTYPE[accessor["componentType"]])
        return array.reshape(accessor["count"], -1)

    primitive = header["meshes"][0]["primitives"][0]
    position, normal, color = (
        read(primitive["attributes"][name]) for name in ("POSITION", "NORMAL", "COLOR_0")
    )
    faces = read(primitive["indices"]).reshape(-1, 3).astype(np.int32)
    colors = linear_to_srgb(color[:, :3] / 255.0).astype(np.float32)
    return Mesh(to_z_up(position), faces, to_z_up(normal), colors)
