"""Several processes, on one host or many: how they find each other, and what they agree on.

What devices exchange inside a step belongs to `parallel`. Here is what processes tell each other
between steps, through JAX's coordination service, which waits for as long as the others take. With
one process, the usual case, everything here returns at once.
"""

import contextlib
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from dreamjax.errors import UserError

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
WAIT_MS = 7 * 24 * 3600 * 1000  # for another process; one that died is told of much sooner
LEAVE_MS = 10 * 1000  # for others that fail too

_turns = itertools.count()  # every process takes the same turns


def arguments(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is called with in this environment; None: not at all.

    It is called where `JAX_COORDINATOR_ADDRESS` asks for it (with `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID` where no cluster says them), and where SLURM, Open MPI, a TPU slice of several
    hosts or an indexed Kubernetes job started more than one process. Raises UserError.
    """
    if environ.get(ADDRESS):
        numbers = {name: environ[name] for name in (COUNT, NUMBER) if environ.get(name)}
        for name, text in numbers.items():
            if not text.isdecimal():
                raise UserError(f"{name} is {text!r}: expected a whole number")
        found = {"num_processes": numbers.get(COUNT), "process_id": numbers.get(NUMBER)}
        return {name: int(text) for name, text in found.items() if text is not None}
    several = (
        all(name in environ for name in SLURM) and _number(environ, "SLURM_NTASKS") > 1,
        "OMPI_MCA_orte_hnp_uri" in environ and _number(environ, "OMPI_COMM_WORLD_SIZE") > 1,
        "," in environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES", "")),
        "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ,
    )
    return {} if any(several) or _on_tpu_vm(environ) else None


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else 0


def _on_tpu_vm(environ: Mapping[str, str]) -> bool:
    """Whether this is a virtual machine of Compute Engine with TPUs, alone or one of a slice.

    How many there are its metadata server knows, which JAX asks.
    """
    if environ.get("JAX_PLATFORMS", "tpu").split(",")[0].strip() != "tpu":
        return False
    if {"TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"} & set(environ):
        return False
    try:
        from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm
    except ImportError:  # the name is not promised
        return False
    return running_in_cloud_tpu_vm


def start(environ: Mapping[str, str] = os.environ) -> None:
    """Join the other processes, where this environment has any; call it before devices are used.

    Raises UserError where they are asked for and cannot be joined.
    """
    wanted = arguments(environ)
    if wanted is None:
        return
    import jax  # slow to import

    if jax.distributed.is_initialized():
        return
    if hasattr(jax.config, "jax_enable_preemption_service"):
        # It would take SIGTERM for itself.
        jax.config.update("jax_enable_preemption_service", False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missing package is told by the error below
            jax.distributed.initialize(**wanted)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot join the other processes of this job: {reason}; set {ADDRESS} (host:port of "
            f"process 0), {COUNT} and {NUMBER} (docs/scaling.md)"
        ) from error


def _service() -> Any:
    """JAX's state of this kind; it has no public name."""
    if "jax" not in sys.modules:
        return None
    from jax._src import distributed

    return distributed.global_state if distributed.global_state.client is not None else None


def count() -> int:
    """How many processes there are; does not start the devices."""
    service = _service()
    return service.num_processes if service else 1


def number() -> int:
    """Which of them this one is, from 0."""
    service = _service()
    return service.process_id if service else 0


def is_first() -> bool:
    """Whether this process is the one that writes what all have made together."""
    return number() == 0


def gather(value: Any) -> list[Any]:
    """The `value` (plain, as JSON holds it) of every process, in their order; waits for them.

    All processes must call it, and in the same order.
    """
    if count() == 1:
        return [value]
    client, turn = _service().client, next(_turns)
    client.key_value_set(f"dreamjax/{turn}/{number()}", json.dumps(value))
    keys = [f"dreamjax/{turn}/{process}" for process in range(count())]
    return [json.loads(client.blocking_key_value_get(key, WAIT_MS)) for key in keys]


def by_first(call: Callable[[], Any]) -> Any:
    """What `call()` returns on the first process, which alone calls it; the others wait for it.

    It must be plain, as JSON holds it. What it raises is raised on all, on the others as a
    UserError.
    """
    if count() == 1:
        return call()
    result, failure = None, None
    if is_first():
        try:
            result = call()
        except Exception as error:
            failure = error
    told = [result, None if failure is None else " ".join(str(failure).split())]
    result, message = gather(told)[0]
    if failure is not None:
        raise failure
    if message is not None:
        raise UserError(message)
    return result


def queue(name: str) -> Callable[[], int]:
    """A function that gives 0, 1, 2, ... and each number to one process alone."""
    if count() == 1:
        return itertools.count().__next__
    client, key = _service().client, f"dreamjax/{name}/{next(_turns)}"
    return lambda: client.key_value_increment(key, 1) - 1


def leave(status: int) -> None:
    """End this process after a failure, where others might wait for it for ever.

    At an ordinary end JAX waits for all processes. Returns where there is one alone.
    """
    if count() == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # All that fail alike end with their own words: the first is the last to go, as JAX aborts the
    # others when it does.
    with contextlib.suppress(Exception):
        _service().client.wait_at_barrier("dreamjax/leave", LEAVE_MS)
        if is_first():
            time.sleep(1.0)
    os._exit(status)
