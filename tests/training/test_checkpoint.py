"""Exact resume, and checkpoints that are damaged or of another architecture."""

import gc
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.errors import FullDisk, UserError
from dreamjax.training.checkpoint import Checkpoints
from dreamjax.training.optimizer import Adam, apply_gradients
from dreamjax.training.state import init_state

# What Orbax was still reading of a damaged checkpoint calls back into an event loop that it closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def collected_here():
    yield
    gc.collect()  # those callbacks must not turn up in another file's test


TX = Adam(warmup=0.15, clip_norm=1.0, weight_decay=0.01).make(20)


def make_params(width=300):
    kernel = jax.random.normal(jax.random.key(0), (width, width))
    return {"Dense_0": {"kernel": kernel, "bias": jnp.zeros(width, jnp.bfloat16)}}


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def damage(directory, step, how):
    """Change the largest file of a checkpoint."""
    files = [p for p in (directory / str(step)).rglob("*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:1000] if how == "cut" else data)


@jax.jit
def train_step(state, key):
    key = jax.random.fold_in(key, state.step)
    x = jax.random.normal(key, (8, 300))

    def loss(params):
        layer = params["Dense_0"]
        return jnp.mean(jnp.sin(x @ layer["kernel"] + layer["bias"].astype(jnp.float32)) ** 2)

    value, grads = jax.value_and_grad(loss)(state.params)
    params, opt_state, _ = apply_gradients(TX, grads, value, state.params, state.opt_state)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state)


def test_a_resumed_run_ends_bit_identical(tmp_path):
    key = jax.random.key(1)
    straight = init_state(make_params(), TX)
    for _ in range(9):
        straight = train_step(straight, key)

    state = init_state(make_params(), TX)
    for _ in range(4):
        state = train_step(state, key)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, state)
    checkpoints.close()

    template = jax.eval_shape(lambda: init_state(make_params(), TX))
    resumed = Checkpoints(tmp_path).restore_latest(template)
    assert_same_bits(resumed, state)
    for _ in range(5):
        resumed = train_step(resumed, key)
    assert_same_bits(resumed, straight)


def test_odd_values_keep_their_bits(tmp_path):
    odd = np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)
    odd = np.append(odd, np.array([0xFFC12345], np.uint32).view(np.float32))  # a NaN with payload
    state = init_state({"w": jnp.asarray(odd), "scalar": jnp.float32(0.1)}, TX)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    assert_same_bits(checkpoints.restore_latest(state), state)


def test_keeps_the_newest_two_and_saves_a_step_once(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "dir")
    assert checkpoints.latest_step() is None
    state = {"step": jnp.int32(0)}
    assert checkpoints.restore_latest(state) is None
    for step in (5, 10, 15, 15):
        checkpoints.save(step, {"step": jnp.int32(step)})
    names = sorted(p.name for p in (tmp_path / "new" / "dir").iterdir())
    assert names == ["10", "15"]
    assert checkpoints.restore_latest(state)["step"] == 15


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, how, capsys):
    checkpoints = Checkpoints(tmp_path)
    params = make_params()
    for step in (10, 20):
        checkpoints.save(step, init_state(params, TX)._replace(step=jnp.int32(step)))
    damage(tmp_path, 20, how)
    checkpoints = Checkpoints(tmp_path)
    state = checkpoints.restore_latest(init_state(params, TX))
    assert state.step == 10
    told = capsys.readouterr().err
    assert told.startswith("set aside the damaged checkpoint 20: ") and told.count("\n") == 1
    assert "Dense_0" in told and len(told) < 300
    assert (tmp_path / "20.damaged").is_dir()
    checkpoints.save(20, state._replace(step=jnp.int32(20)))  # the step can be reached again
    assert checkpoints.restore_latest(state).step == 20


JUNK = {"empty": b"", "list": b"[]", "null": b"null", "binary": b"\xff\x00" * 40}
NOTES = ["_CHECKPOINT_METADATA", "state/_METADATA", "checksums/metadata", "state/manifest.ocdbt"]


@pytest.mark.parametrize("name", NOTES)
@pytest.mark.parametrize("how", JUNK)
def test_whatever_is_damaged_is_told_in_one_line(tmp_path, name, how, capfd):
    state = {"front": jnp.int32(0), "w": jnp.arange(3.0)}
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {**state, "front": jnp.int32(step)})
    checkpoints.close()
    (tmp_path / "2" / name).write_bytes(JUNK[how])
    found = Checkpoints(tmp_path).restore_latest(state)
    gc.collect()
    err = capfd.readouterr().err
    if name == "_CHECKPOINT_METADATA":  # nothing that counts is in it
        assert (found["front"], err) == (2, "")
        return
    assert found["front"] == 1 and err.count("\n") == 1 and len(err) < 300
    assert err.startswith("set aside the damaged checkpoint 2: ")
    assert any(why in err for why in ("cannot be read", "is missing"))


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of few bytes cannot be mounted here")
    try:
        checkpoints, kernel = Checkpoints(disk / "run"), np.random.default_rng(0).random((500, 500))
        state = {"w": jnp.asarray(kernel, jnp.float32)}
        (disk / "ballast").write_bytes(bytes(1_600_000))
        checkpoints.save(1, state)
        with pytest.raises(FullDisk, match="^no space left to write the checkpoint .*run/2$"):
            checkpoints.save(2, state)
        assert [p.name for p in (disk / "run").iterdir()] == ["1"]
        (disk / "ballast").unlink()
        checkpoints.save(2, state)
        assert_same_bits(Checkpoints(disk / "run").restore_latest(state), state)
        assert capfd.readouterr().err == ""
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_no_readable_checkpoint_is_an_error_and_stays_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = init_state(make_params(), TX)
    checkpoints.save(10, state)
    damage(tmp_path, 10, "cut")
    for _ in range(2):
        with pytest.raises(UserError, match="no checkpoint in .* can be read"):
            Checkpoints(tmp_path).restore_latest(state)


def test_an_unfinished_write_is_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, {"w": jnp.ones(3)})
    checkpoints.close()
    (tmp_path / "20.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path).latest_step() == 10


def test_another_architecture_is_named_by_its_first_parameter(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, init_state(make_params(300), TX))
    with pytest.raises(UserError, match=r"params.Dense_0.bias is bfloat16\[300\] there and .*299"):
        checkpoints.restore_latest(init_state(make_params(299), TX))
    more = {**make_params(), "Dense_1": {"bias": jnp.zeros(2)}}
    with pytest.raises(UserError, match=r"params.Dense_1.bias is nothing there"):
        checkpoints.restore_latest(init_state(more, TX))
    fewer = {"Dense_0": {"kernel": make_params()["Dense_0"]["kernel"]}}
    with pytest.raises(UserError, match=r"Dense_0.bias is bfloat16\[300\] there and nothing"):
        checkpoints.restore_latest(init_state(fewer, TX))
    assert checkpoints.latest_step() == 1  # and it is still there


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use the checkpoint directory"):
        Checkpoints(tmp_path / "file" / "checkpoints")
