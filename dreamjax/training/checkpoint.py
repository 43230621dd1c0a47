"""Checkpoints of a run's state: Orbax underneath, exact resume on top.

A checkpoint is a flat Orbax tree `{"params.Dense_0.kernel": array, ...}`, one entry a leaf, so
that names in errors are the ones on disk. Orbax writes beside and renames, so a stopped write
leaves no checkpoint behind; a checksum of every leaf tells one that was damaged later. State is the
same on all devices and is written from the host's copy by the first process; all take part. Where
each process has scenes of its own, it writes `alone`.
"""

import logging
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.errors import FullDisk, UserError
from dreamjax.workdir import cannot_write


def _named_leaves(tree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _checksum(array: np.ndarray) -> int:
    content: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return zlib.crc32(content)


def _described(leaf: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "nothing" if leaf is None else f"{leaf[1]}{list(leaf[0])}"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 150 else f"{text[:150]}..."


def _hush_late_reads() -> None:
    """Drop what TensorStore says of reads that end after the first of them has failed.

    They call back into an event loop that Orbax has closed, or into nothing, each with a traceback.
    """
    before = sys.unraisablehook
    if getattr(before, "hushes_late_reads", False):
        return

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    def heard(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Task exception was never retrieved")

    hook.hushes_late_reads = True
    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(heard)


def _write_on_any_process(ocp) -> None:
    """Let Orbax write NumPy arrays on the process that has them; its own writes on the first alone.

    For processes that save states of their own. What it overrides is Orbax's own business, so
    `Checkpoints.save` looks whether something was written.
    """
    from orbax.checkpoint._src.serialization import ocdbt_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils as ts_utils

    class Handler(ocp.type_handlers.NumpyHandler):
        async def _background_serialize(self, values, infos, args=None):
            args = args or [ocp.SaveArgs()] * len(values)
            for value, info, arg in zip(values, infos, args, strict=True):
                await info.await_path_creation()
                folder = ocdbt_utils.get_process_index_for_subdir(
                    use_ocdbt=info.is_ocdbt_checkpoint, override_ocdbt_process_id=None
                )
                spec = ts_utils.build_array_write_spec(
                    info=info,
                    arg=arg,
                    global_shape=value.shape,
                    local_shape=value.shape,
                    dtype=value.dtype,
                    use_ocdbt=info.is_ocdbt_checkpoint,
                    process_index=folder,
                    metadata_key=None,
                )
                await self._open_and_write(value, spec.json, info.ts_context)

    ocp.type_handlers.register_type_handler(np.ndarray, Handler(), override=True)


class Checkpoints:
    """The checkpoints under one directory, named by step; the newest `keep` stay."""

    def __init__(self, directory: str | Path, keep: int = 2, alone: bool = False):
        """Open `directory` and create it where it is missing; raises UserError if it cannot.

        `alone`: of several processes, this one alone uses it.
        """
        # Heavy, and chatty about every file it touches.
        import orbax.checkpoint as ocp

        # All that goes wrong is raised too, and told in one line.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp = ocp
        self._directory = Path(directory).absolute()
        me = jax.process_index() if alone else 0
        self._writes = jax.process_index() == me
        several = alone and jax.process_count() > 1
        if several and me > 0:
            _write_on_any_process(ocp)
        processes = ocp.options.MultiprocessingOptions(
            primary_host=me,
            active_processes={me} if several else None,
            barrier_sync_key_prefix=f"process{me}" if several else None,
        )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            try:
                self._manager = self._open(keep, processes)
            except (ValueError, TypeError, LookupError, AttributeError):
                # Orbax stumbles over its notes of when a checkpoint was written; it needs none.
                for notes in self._directory.glob("*/_CHECKPOINT_METADATA"):
                    notes.unlink()
                self._manager = self._open(keep, processes)
        except OSError as error:
            if isinstance(full := cannot_write(self._directory, error), FullDisk):
                raise full from error
            raise UserError(f"cannot use the checkpoint directory {directory}: {error}") from error

    def _open(self, keep: int, processes):
        return self._ocp.CheckpointManager(
            self._directory,
            # Named here, since metadata are asked for before anything is saved or restored.
            item_handlers={
                "state": self._ocp.StandardCheckpointHandler(multiprocessing_options=processes),
                "checksums": self._ocp.JsonCheckpointHandler(multiprocessing_options=processes),
            },
            options=self._ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                # The state's buffers are donated to the next step while a background write
                # would still read them.
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
                multiprocessing_options=processes,
                create=False,  # it is there; Orbax refuses to where some processes are active
            ),
        )

    def latest_step(self) -> int | None:
        """Return the step of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state) -> None:
        """Write `state` as step `step` and wait for it; does nothing if that step is there.

        Raises UserError where the disk refuses.
        """
        if step in self._manager.all_steps():
            return
        arrays = {name: np.asarray(leaf) for name, leaf in _named_leaves(state).items()}
        checksums = {name: _checksum(array) for name, array in arrays.items()}
        args = self._ocp.args
        try:
            self._manager.save(
                step,
                args=args.Composite(
                    state=args.StandardSave(arrays), checksums=args.JsonSave(checksums)
                ),
            )
            self._manager.wait_until_finished()
            if self._manager.item_metadata(step)["state"] is None:
                raise ValueError("nothing was written")
        except (OSError, ValueError, RuntimeError) as error:  # TensorStore's are no OSErrors
            self._sweep(step)
            why = error if isinstance(error, OSError) else str(error)
            raise cannot_write(f"the checkpoint {self._directory / str(step)}", why) from error

    def _sweep(self, step: int) -> None:
        """Delete what a failed save of `step` has left."""
        if self._writes:
            for left in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)

    def restore_latest(self, template, others: tuple[str, ...] = ()):
        """Return the newest readable checkpoint, None where there are no checkpoints.

        `template` gives structure, shapes and dtypes (arrays or `jax.eval_shape`'s result). A
        damaged checkpoint is set aside as `<step>.damaged`, with a line on stderr, in favour of the
        one before. A checkpoint may hold leaves that the template lacks if their names begin with
        one of `others`. Raises UserError where none can be read, or where the newest is of another
        architecture.
        """
        damaged = []
        _hush_late_reads()
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                arrays = self._read(step, template, others)
            except UserError:
                raise
            except ValueError as error:
                damaged.append((step, _short(error)))
                continue
            for bad, reason in damaged:
                print(f"set aside the damaged checkpoint {bad}: {reason}", file=sys.stderr)
                self._set_aside(bad)
            return jax.tree.unflatten(
                jax.tree.structure(template),
                [jnp.asarray(arrays[name]) for name in _named_leaves(template)],
            )
        if damaged:
            step, reason = damaged[0]
            raise UserError(
                f"no checkpoint in {self._directory} can be read (the newest, {step}: {reason}): "
                "start again with another --workdir"
            )
        return None

    def set_aside(self, after: int) -> None:
        """Rename the checkpoints of steps beyond `after` to `<step>.damaged`."""
        for step in self._manager.all_steps():
            if step > after:
                self._set_aside(step)

    def close(self) -> None:
        """Release Orbax's resources."""
        self._manager.close()

    def _read(self, step: int, template, others: tuple[str, ...]) -> dict[str, np.ndarray]:
        args = self._ocp.args
        wanted = _named_leaves(template)
        try:
            metadata = self._manager.item_metadata(step)["state"]
            found = {name: (tuple(m.shape), np.dtype(m.dtype)) for name, m in metadata.items()}
        except Exception as error:  # whatever Orbax makes of damaged files
            raise ValueError("its description cannot be read") from error
        for name in [*wanted, *found]:
            if name not in wanted and name.startswith(others):
                continue
            want = wanted.get(name)
            want = None if want is None else (tuple(want.shape), np.dtype(want.dtype))
            if found.get(name) != want:
                raise UserError(
                    f"the checkpoint in {self._directory} is of another architecture: {name} is "
                    f"{_described(found.get(name))} there and {_described(want)} in this config"
                )
        # Read as NumPy: where a leaf lived when it was written says nothing about this machine.
        abstract = {name: np.empty(shape, dtype) for name, (shape, dtype) in found.items()}
        parts = args.Composite(state=args.StandardRestore(abstract), checksums=args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=parts)
        except Exception as error:
            raise ValueError(f"its files cannot be read: {_short(error)}") from error
        checksums = restored["checksums"]
        for name, array in restored["state"].items():
            if not isinstance(checksums, dict) or name not in checksums:
                raise ValueError(f"the checksum of {name} is missing")
            if _checksum(array) != checksums[name]:
                raise ValueError(f"{name} does not match its checksum")
        return restored["state"]

    def _set_aside(self, step: int) -> None:
        if self._writes:
            aside = self._directory / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self._directory / str(step)).rename(aside)
        self._manager.reload()
