"""Textures: what other programs read, and how near they come to the field."""

import json
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from scipy.ndimage import map_coordinates

from dreamjax.errors import UserError
from dreamjax.export import memory, texture
from dreamjax.export.base import MANIFEST, export_all
from dreamjax.export.glb import Glb
from dreamjax.export.gltf import linear_to_srgb
from dreamjax.export.mesh import read_mesh
from dreamjax.export.surface import Surface
from dreamjax.export.textured_glb import TexturedGlb
from dreamjax.export.textured_obj import TexturedObj
from dreamjax.scene.camera import orbit
from dreamjax.scene.matter import Matter
from dreamjax.scene.rays import camera_rays
from dreamjax.scene.render import Renderer, render_image
from dreamjax.scene.shading import headlight

SIZE = 256
FILES = {
    "glb": ["mesh.glb"],
    "textured_glb": ["textured.glb"],
    "textured_obj": ["textured.obj", "textured.mtl", "textured.png"],
}


def waves(mean, var):
    """A ball with a sharp surface and waves of colour that are finer than its mesh."""
    del var
    off = jnp.linalg.norm(mean, axis=-1) - 0.5
    phase = 12.0 * mean @ jnp.array([[1.0, 0.3, 0.0], [0.2, 1.0, 0.5], [0.0, 0.4, 1.0]])
    return Matter(4000.0 * jax.nn.sigmoid(-off / 0.001), 0.5 + 0.4 * jnp.sin(phase))


@pytest.fixture(scope="module")
def striped(make_object):
    """Its object."""
    return make_object(waves, Surface(resolution=96, max_faces=1500))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, striped):
    """The folder, and what was said."""
    folder, said = tmp_path_factory.mktemp("textured"), []
    export_all(striped, (Glb(), TexturedGlb(SIZE), TexturedObj(SIZE)), folder, said.append)
    return folder, said


def loaded(path):
    """The one mesh of a file as trimesh reads it, its vertices as they are."""
    (mesh,) = trimesh.load_scene(path, process=False, maintain_order=True).geometry.values()
    return mesh


def header_of(content):
    length = struct.unpack_from("<I", content, 12)[0]
    return json.loads(content[20 : 20 + length]), content[20 + length + 8 :]


def test_files_are_written_and_said_and_the_texture_is_made_once(exported, striped):
    folder, said = exported
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["exports"] == {name: {"files": files} for name, files in FILES.items()}
    assert said == [
        "taking the mesh from the field ...",
        f"wrote {folder / 'mesh.glb'}",
        "laying the mesh out flat and baking its texture ...",
        *(f"wrote {folder / name}" for name in FILES["textured_glb"] + FILES["textured_obj"]),
    ]
    assert striped.textured(SIZE) is striped.textured(SIZE)


def test_the_glb_follows_the_specification(exported):
    content = (exported[0] / "textured.glb").read_bytes()
    header, body = header_of(content)
    assert struct.unpack_from("<4sII", content) == (b"glTF", 2, len(content))
    assert header["buffers"] == [{"byteLength": len(body)}] and len(body) % 4 == 0
    (primitive,) = header["meshes"][0]["primitives"]
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "TEXCOORD_0"}
    ends = [view["byteOffset"] + view["byteLength"] for view in header["bufferViews"]]
    starts = [view["byteOffset"] for view in header["bufferViews"]]
    assert all(0 <= b - a < 4 for a, b in zip(ends, [*starts[1:], len(body)], strict=True))
    assert all(start % 4 == 0 for start in starts)
    for accessor in header["accessors"]:
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[accessor["type"]]
        view = header["bufferViews"][accessor["bufferView"]]
        assert view["byteLength"] == 4 * width * accessor["count"] and "target" in view
    uv = header["accessors"][primitive["attributes"]["TEXCOORD_0"]]
    assert uv["componentType"] == 5126 and "normalized" not in uv
    # A picture's view has neither a target nor a stride, and is named by its type.
    (image,) = header["images"]
    view = header["bufferViews"][image["bufferView"]]
    assert set(view) == {"buffer", "byteOffset", "byteLength"}
    assert image["mimeType"] == "image/png" and body[view["byteOffset"] :][:4] == b"\x89PNG"
    material = header["materials"][primitive["material"]]["pbrMetallicRoughness"]
    assert material["metallicFactor"] == 0.0
    assert header["textures"][material["baseColorTexture"]["index"]] == {"source": 0, "sampler": 0}
    assert header["samplers"][0]["minFilter"] == 9987  # trilinear


@pytest.mark.parametrize("suffix", ["glb", "obj"])
def test_other_readers_see_one_mesh_and_close_it_by_merging(exported, striped, suffix):
    mesh, made = loaded(exported[0] / f"textured.{suffix}"), striped.textured(SIZE)
    np.testing.assert_array_equal(mesh.faces, made.faces)
    np.testing.assert_allclose(mesh.vertices, made.vertices[:, [1, 2, 0]], atol=1e-5)
    np.testing.assert_allclose(mesh.vertex_normals, made.normals[:, [1, 2, 0]], atol=1e-3)
    # trimesh counts v from below.
    np.testing.assert_allclose(mesh.visual.uv, made.uv * [1, -1] + [0, 1], atol=1e-5)
    material = mesh.visual.material
    image = material.baseColorTexture if suffix == "glb" else material.image
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), made.picture)
    assert not mesh.is_watertight
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
    assert len(mesh.vertices) == len(striped.mesh.vertices)


def test_charts_share_places_and_normals_and_lie_apart(striped):
    mesh, made = striped.mesh, striped.textured(SIZE)
    vertex, faces, uv = texture.lay_out(mesh, SIZE)
    np.testing.assert_array_equal(vertex[faces], mesh.faces)
    np.testing.assert_array_equal(made.vertices, mesh.vertices[vertex])
    np.testing.assert_array_equal(made.normals, mesh.normals[vertex])
    for ours, again in zip(made[1:4:2], (faces, uv), strict=True):
        np.testing.assert_array_equal(ours, again)  # the same each time
    # No two charts share a texel, and charts fill more than a third of the picture.
    graph = trimesh.graph.connected_component_labels(
        np.concatenate([faces[:, :2], faces[:, 1:]]), len(vertex)
    )
    owner = np.full(SIZE * SIZE, -1)
    for face, texel, _ in texture.covered((uv * SIZE - 0.5)[faces], SIZE):
        chart = graph[faces[face, 0]]
        there = owner[texel]
        assert ((there == -1) | (there == chart)).all()
        owner[texel] = chart
    assert (owner >= 0).mean() > 1 / 3


def trace(mesh, azimuth, elevation, size):
    """Face and weights that each pixel's ray meets first: every ray with every face, in float64."""
    rays = camera_rays(orbit(azimuth, elevation, 3.2, 1.3), size)
    origin = np.asarray(rays.origin, np.float64)[0, 0]
    a, b, c = (np.float64(mesh.vertices[mesh.faces[:, i]]) for i in range(3))
    face, weights = np.full(size * size, -1), np.zeros((size * size, 3))
    directions = np.asarray(rays.direction, np.float64).reshape(-1, 3)
    normal = np.cross(b - a, c - a)
    for pixel, direction in enumerate(directions):
        # Moeller and Trumbore: origin + dist direction = (1 - v - w) a + v b + w c.
        facing = normal @ direction
        turned = np.cross(origin - a, direction)
        v = np.einsum("fi,fi->f", c - a, turned)
        w = -np.einsum("fi,fi->f", b - a, turned)
        with np.errstate(divide="ignore", invalid="ignore"):
            v, w = v / -facing, w / -facing
            dist = np.einsum("fi,fi->f", normal, a - origin) / facing
        hit = np.flatnonzero((facing < 0) & (v >= 0) & (w >= 0) & (v + w <= 1))
        if len(hit):
            first = hit[dist[hit].argmin()]
            face[pixel], weights[pixel] = first, (1 - v[first] - w[first], v[first], w[first])
    return face, weights


def looked_up(image, uv):
    """Smooth colours at places of a texture, its texels' centres at halves (OpenGL 4.6, 8.14).

    v counts from below. trimesh's own lookup has texels' centres at the picture's very edges.
    """
    texels = np.asarray(image.convert("RGB"))[::-1] / 255.0
    places = (uv * len(texels) - 0.5)[:, ::-1].T
    return np.stack([map_coordinates(texels[..., i], places, order=1) for i in range(3)], axis=-1)


def test_the_texture_shows_what_the_field_shows(exported, striped):
    """By a ray tracer of its own, on the files as trimesh reads them."""
    folder, size = exported[0], 40
    fine = Renderer(samples=1024, normal_samples=1)

    @jax.jit
    def field(azimuth, elevation):
        camera, white = orbit(azimuth, elevation, 3.2, 1.3), jnp.ones((1, 1, 3))
        light = headlight(camera.position)
        return render_image(waves, camera, size, 0.0, light, white, fine, with_normals=False)

    painted, plain = loaded(folder / "textured.glb"), loaded(folder / "mesh.glb")
    plain_colors = linear_to_srgb(plain.visual.vertex_attributes["color"][:, :3] / 255.0)
    errors = []
    for azimuth, elevation in ((0.0, 15.0), (110.0, 50.0), (230.0, -10.0)):
        view = jax.device_get(field(azimuth, elevation))
        face, weights = trace(striped.mesh, azimuth, elevation, size)
        seen = (face >= 0) & (view.opacity.ravel() > 0.99)
        assert seen.mean() > 0.1
        face, weights, expected = face[seen], weights[seen], view.albedo.reshape(-1, 3)[seen]
        uv = np.einsum("pk,pkc->pc", weights, painted.visual.uv[painted.faces[face]])
        by_texture = looked_up(painted.visual.material.baseColorTexture, uv)
        by_vertex = np.einsum("pk,pkc->pc", weights, plain_colors[plain.faces[face]])
        errors.append([255 * np.abs(c - expected).mean() for c in (by_texture, by_vertex)])
    print("points from the field, texture and vertex colours:", errors)
    texture_error, vertex_error = np.mean(errors, axis=0)
    assert texture_error < 2.0 and texture_error < vertex_error / 2


def test_nothing_but_the_surface_is_in_the_picture(make_object, two_balls):
    """So smooth lookups and mipmaps of any level have nothing else to blend in."""

    def matter(mean, var):
        return two_balls(mean, var)._replace(albedo=jnp.broadcast_to(0.6, mean.shape))

    made = make_object(matter, Surface(resolution=24)).textured(64)
    assert made.picture.shape == (64, 64, 3) and (made.picture == round(0.6 * 255)).all()


def test_without_xatlas_the_other_exports_are_made(tmp_path, make_object, monkeypatch):
    monkeypatch.setitem(sys.modules, "xatlas", None)
    thing = make_object(surface=Surface(resolution=24))
    with pytest.raises(UserError, match=r"^textured_glb failed: a texture needs xatlas: pip inst"):
        export_all(thing, (TexturedGlb(32), Glb()), tmp_path, list)
    assert (tmp_path / "mesh.glb").is_file() and not (tmp_path / "textured.glb").exists()


def test_what_cannot_be_is_refused(exported, striped, make_object, monkeypatch):
    for wrong in (0, 8, 10**6):
        with pytest.raises(UserError, match="^size is "):
            striped.textured(wrong)
        with pytest.raises(UserError, match="^size is "):
            TexturedObj(wrong)
    with pytest.raises(UserError, match="textured.glb is no mesh with vertex colours"):
        read_mesh(exported[0] / "textured.glb")
    with pytest.raises(UserError, match="^no mesh: the field is empty"):
        make_object(lambda mean, var: _empty(mean), Surface(resolution=16)).textured(32)
    monkeypatch.setattr(memory, "available", lambda: 1e9)
    with pytest.raises(UserError, match="a texture of 8192 x 8192 pixels needs about 4.8 GB"):
        striped.textured(8192)


def _empty(mean):
    return Matter(jnp.zeros(mean.shape[:-1]), jnp.zeros_like(mean))
