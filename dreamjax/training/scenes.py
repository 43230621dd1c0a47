"""Many scenes at once: one state with a leading axis of scenes, spread over devices.

Each scene is a run of its own, in a folder of its own: it has its own place on a device, its own
step, metrics and checkpoints. One that ends, or fails, gives its place to the next.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dreamjax.training import parallel
from dreamjax.training.interrupt import Interrupt
from dreamjax.training.loop import Recorder
from dreamjax.training.metrics import Progress
from dreamjax.training.run import Run

Place = tuple[int, int]  # a device, and which of the scenes on it


class Beginning(NamedTuple):
    """What a scene begins with: a state with a field `step`, what else is its own, its files."""

    state: PyTree
    own: PyTree
    recorder: Recorder


class Scene(Protocol):
    """A run of its own; what its methods raise ends it alone."""

    def begin(self) -> Beginning:
        """Take its folder, and go on from its newest checkpoint where it has one."""
        ...

    def after(self, done: int, state: Callable[[], PyTree]) -> None:
        """Called after each dispatch with the finished steps; `state()` fetches the state."""
        ...

    def finish(self, state: PyTree) -> None:
        """Called with the last state."""
        ...

    def ended(self, error: BaseException | None) -> None:
        """Called last, with what ended it if it did not finish."""
        ...


class _Live(NamedTuple):
    """A scene in its place, with the steps that it has finished."""

    scene: Scene
    recorder: Recorder
    done: int


class Pool:
    """The places for scenes on the devices, and those that are in them."""

    def __init__(self, devices: parallel.Devices, each: int):
        """Begin with `each` empty places on each of the devices."""
        self.live: dict[Place, _Live] = {}
        self._shape = (len(devices), each)
        self._put = parallel.make_put_scene(devices)
        self._stacked: tuple[PyTree, PyTree] | None = None  # states, and what else is a scene's own

    def fill(self, scenes: Iterator[Scene], steps: int) -> None:
        """Give empty places to the next scenes; one that has taken its `steps` is finished."""
        device_last = itertools.product(range(self._shape[1]), range(self._shape[0]))
        for place in [(device, lane) for lane, device in device_last]:
            while place not in self.live and (scene := next(scenes, None)) is not None:
                recorder = None
                try:
                    state, own, recorder = scene.begin()
                    if int(state.step) < steps:
                        self._place((state, own), place)
                        self.live[place] = _Live(scene, recorder, int(state.step))
                        continue
                    scene.finish(state)
                    error = None
                except BaseException as raised:
                    error = raised
                if recorder is not None:
                    recorder.close()
                scene.ended(error)
                if error is not None and not isinstance(error, Exception):
                    raise error

    def _place(self, scene: tuple[PyTree, PyTree], place: Place) -> None:
        if self._stacked is None:
            self._stacked = jax.tree.map(self._repeated, scene)
        stacked = jax.tree.map(lambda x: x.shape[2:], self._stacked)
        if stacked != jax.tree.map(lambda x: np.shape(x), scene):
            raise ValueError("its arrays have other shapes than those of the scenes beside it")
        self._stacked = self._put(self._stacked, scene, self._at([place]))

    def _repeated(self, leaf) -> np.ndarray:
        leaf = np.asarray(leaf)
        return np.broadcast_to(leaf, (*self._shape, *leaf.shape))

    def _at(self, places: Sequence[Place]) -> np.ndarray:
        here = np.zeros(self._shape, bool)
        for place in places:
            here[place] = True
        return here

    def step(self, program: Callable, places: Sequence[Place], shared: tuple) -> PyTree:
        """Run a program of `parallel.pmap_scenes` for the scenes at these places; its metrics."""
        assert self._stacked is not None
        states, own = self._stacked
        states, metrics = program(states, own, self._at(places), *shared)
        self._stacked = states, own
        return metrics

    def state(self, place: Place) -> PyTree:
        """The state of the scene at a place, on the default device."""
        assert self._stacked is not None
        found = jax.device_get(parallel.scene_at(self._stacked[0], place))
        return jax.tree.map(jnp.asarray, found)

    def attend(self, place: Place, run: Run, metrics: Callable[[], dict]) -> None:
        """Count a dispatch of the scene at a place, write what is due, and let it go at its end."""
        scene, recorder, done = self.live[place]
        done += run.steps_per_dispatch
        self.live[place] = self.live[place]._replace(done=done)

        def state() -> PyTree:
            return self.state(place)

        try:
            recorder.metrics(done, metrics)
            if recorder.saves(done):
                recorder.save(state())
            scene.after(done, state)
            if done < run.steps:
                return
            scene.finish(state())
        except Exception as error:
            self.leave(place, error)
        else:
            self.leave(place, None)

    def leave(self, place: Place, error: BaseException | None) -> None:
        """Empty a place."""
        scene, recorder, _ = self.live.pop(place)
        recorder.close()
        scene.ended(error)

    def stop(self, error: BaseException) -> None:
        """Empty all places; where the user asked for it, save their scenes first."""
        for place in list(self.live):
            if isinstance(error, KeyboardInterrupt):
                self.live[place].recorder.save(self.state(place))
            self.leave(place, error)


def train_scenes(
    scenes: Iterator[Scene],
    run: Run,
    programs: Callable[[int], Sequence[Callable]],
    shared: tuple,
    devices: parallel.Devices,
    each: int,
    *,
    show: tuple[str, ...],
) -> None:
    """Take all scenes to the end of `run`, as many at a time as there are places.

    Args:
        scenes: fetched as places become empty.
        run: how long each of them is, and what happens when.
        programs: what a scene that has finished so many steps is given next, in this order, as
            `parallel.pmap_scenes` compiles it; the last takes `run.steps_per_dispatch` steps.
        shared: further arguments of the programs, on all devices.
        devices: of this process.
        each: scenes on each device.
        show: names of the metrics that the bar shows; it follows the scene that began first.

    Ctrl-C saves all scenes that are under way, and is raised again.
    """
    pool = Pool(devices, each)
    bar, leader, compiled = None, None, set()
    with Interrupt() as interrupt:
        try:
            while True:
                interrupt.check()
                pool.fill(scenes, run.steps)
                if not pool.live:
                    return
                first = next(iter(pool.live))
                if bar is None or leader is not pool.live[first].scene:
                    if bar is not None:
                        bar.close()
                    leader = pool.live[first].scene
                    bar = Progress(run.steps, pool.live[first].done, show)
                for place, metrics in _dispatch(pool, programs, shared, bar, compiled).items():
                    if place == first:
                        bar.update(pool.live[place].done + run.steps_per_dispatch, metrics())
                    pool.attend(place, run, metrics)
        except BaseException as error:
            pool.stop(error)
            raise
        finally:
            if bar is not None:
                bar.close()


def _dispatch(
    pool: Pool, programs: Callable[[int], Sequence[Callable]], shared: tuple, bar, compiled: set
) -> dict[Place, Callable[[], dict]]:
    """Take every scene a dispatch further; returns what fetches the metrics of each."""
    asked = {place: programs(live.done) for place, live in pool.live.items()}
    found: dict[Place, Callable[[], dict]] = {}
    for number in range(max(map(len, asked.values()))):
        places: dict[Callable, list[Place]] = {}
        for place, own in asked.items():
            if number < len(own):
                places.setdefault(own[number], []).append(place)
        for program, at in places.items():
            if program not in compiled:
                bar.compiling(pool.live[at[0]].done)
                compiled.add(program)
            metrics = pool.step(program, at, shared)
            for place in at:
                found[place] = _lazily(metrics, place)
    return found


def _lazily(metrics: PyTree, place: Place) -> Callable[[], dict]:
    def read() -> dict:
        return parallel.scene_at(metrics, place)

    return read
