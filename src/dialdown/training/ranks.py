"""One training by several processes or GPUs: its ranks (docs/cluster.md).

    train_dpo(lm, pairs, DPOSettings(processes=8), out)

Each rank loads the model and calls the same function again, which then finds that it is a rank. The
process that was called trains nothing itself: it starts the ranks (`launch`), waits, shows the
progress of its first rank and raises what a rank could not do.
"""

from __future__ import annotations

import copy
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ..errors import DialdownError, enough_memory
from ..files import fingerprint
from ..models.lm import LM, load, weight_fingerprints
from ..progress import progress_to, silently
from ..workers import check_main_guard, end_with_parent, quiet_libraries, return_free_memory
from .launch import launch
from .settings import DPOSettings

T = TypeVar("T")

# How long ranks wait for one of them: it may be writing tens of gigabytes.
WAIT = timedelta(hours=2)
# Seconds that a rank waits for others before it refuses what all of them will.
LAST_WORDS = 30
# Messages of a pipe shorter than this are whole, whoever else writes there.
MESSAGE = 2000


@dataclass(frozen=True)
class Job:
    """What every rank does.

    Attributes:
        load: loads the model onto a device.
        train: trains it.
        weights, tokens: a hash of the weights that `load` is to give, and of what prompts become.
        whole: whether all weights are trained, which are then shared out among the GPUs from the
            memory of the machine.
        on_cpu: whether ranks train on the processor.
    """

    load: Callable[..., LM]
    train: Callable[..., Any]
    weights: str
    tokens: str
    whole: bool
    on_cpu: bool


def wanted(settings: DPOSettings) -> bool:
    """Whether a training has ranks that are still to be started."""
    return settings.ranks > 1 and not is_rank()


def on_ranks_of(
    lm: LM, train: Callable[..., T], settings: DPOSettings, *, whole: bool = False, **given: Any
) -> T:
    """Let ranks train a model or an edit of it, and give what the first returns.

    Args:
        lm: the model, which ranks load by its name, and which leaves its GPU meanwhile.
        train: called with it, `settings` and what else is given; a function of a module.
        settings: how to train.
        whole: whether all weights are trained, which ranks then share out.
    """
    check_main_guard()
    model, device = lm.model, lm.device
    if device.type != "cpu":
        check_gpus(settings.processes, torch.cuda.device_count())
    model.to("cpu")
    return_free_memory()
    try:
        job = Job(
            partial(
                _load_again,
                os.path.abspath(lm.name) if os.path.isdir(lm.name) else lm.name,
                lm.name,
                revision=lm.revision,
                dtype=str(model.dtype).removeprefix("torch."),
                template=lm.template,
                down=lm.view.down,
            ),
            partial(train, settings=settings, **given),
            fingerprint(weight_fingerprints(model)),
            lm.tokens_fingerprint(),
            whole,
            on_cpu=device.type == "cpu",
        )
        result: T = launch(partial(run, job), settings)
    finally:
        model.to(device)
    return result


def _load_again(source: str, name: str, **given: Any) -> LM:
    """A model from the place where it is, under the name that it has where it was loaded first."""
    return replace(load(source, **given), name=name)


def check_gpus(processes: int, visible: int) -> None:
    """Refuse more ranks than GPUs, since each has one of its own (DialdownError)."""
    if processes > visible:
        raise DialdownError(
            f"processes = {processes} needs as many GPUs, and {visible} can be seen here: set "
            f"processes={visible}, or choose others by CUDA_VISIBLE_DEVICES."
        )


def take_part(on_cpu: bool, parent: Connection) -> Any:
    """The life of a rank on a machine that joined: it hears from the first rank what to do."""
    return run(None, parent, on_cpu)


def run(job: Job | None, parent: Connection, on_cpu: bool = False) -> Any:
    """A rank's whole life."""
    # Python would end it only after the collective operation that it waits in.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    Thread(target=end_with_parent, daemon=True).start()
    quiet_libraries()
    warnings.simplefilter("ignore")
    here = int(os.environ["LOCAL_RANK"])

    def tell(what: str, done: int, total: int) -> None:
        parent.send((what, done, total))

    several_machines = int(os.environ["GROUP_WORLD_SIZE"]) > 1
    try:
        _meet(job.on_cpu if job else on_cpu, here)
        if several_machines:
            job = _heard(job)
        assert job is not None
        with enough_memory("set more processes, or lower batch_size and raise accumulation"):
            lm = _loaded(job, "cpu" if job.on_cpu or job.whole else f"cuda:{here}")
            with progress_to(tell) if here == 0 else silently():
                result = job.train(lm)
        if several_machines:
            # The first rank may be on another machine than the process that waits.
            result = of_main(lambda: result)
    except DialdownError as error:
        parent.send(str(error)[:MESSAGE])
        raise
    dist.destroy_process_group()
    return result


def _meet(on_cpu: bool, here: int) -> None:
    """Make one group of all ranks, with this one's part of the processor, or its GPU."""
    store, rank, ranks = next(rendezvous("env://", timeout=WAIT))
    store.set(f"device {rank}", "a CPU" if on_cpu else "a GPU")
    devices = [store.get(f"device {other}").decode() for other in range(ranks)]
    store.add("read", 1)
    if (other := next((at for at in range(ranks) if devices[at] != devices[0]), None)) is not None:
        # The store goes with its rank, and others are to read there, too.
        until = time.monotonic() + LAST_WORDS
        while store.add("read", 0) < ranks and time.monotonic() < until:
            time.sleep(0.05)
        raise DialdownError(
            f"Rank 0 trains on {devices[0]} and rank {other} on {devices[other]}, and all must on "
            "one kind: let machines with GPUs join one another, or hide their GPUs by "
            "CUDA_VISIBLE_DEVICES= and set device=cpu."
        )
    if on_cpu:
        cores = (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    else:
        torch.cuda.set_device(here)
    backend = "gloo" if on_cpu else "cuda:nccl,cpu:gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=WAIT)


def _heard(job: Job | None) -> Job:
    """The job, which the ranks of one machine have, for those of all."""
    having: list[Any] = [None] * count()
    dist.all_gather_object(having, job is not None)
    value = [job]
    dist.broadcast_object_list(value, src=having.index(True))
    assert value[0] is not None
    return value[0]


def _loaded(job: Job, device: str) -> LM:
    lm = job.load(device=device)
    if fingerprint(weight_fingerprints(lm.model)) != job.weights:
        raise DialdownError(
            f"{lm.name} has other weights on disk than the model that is to be trained, and each "
            "rank loads its own: save the model, and pass the folder."
        )
    if lm.tokens_fingerprint() != job.tokens:
        raise DialdownError(
            f"{lm.name} has another tokenizer or chat template on disk than the one that is to be "
            "trained with, and each rank loads its own: save model and tokenizer in one folder, "
            "and pass that."
        )
    return lm


def is_rank() -> bool:
    """Whether this process is one of the ranks of a training."""
    return dist.is_available() and dist.is_initialized()


def count() -> int:
    """How many ranks train, this process among them; 1 without ranks."""
    return dist.get_world_size() if is_rank() else 1


def on_gpu(model: Any) -> bool:
    """Whether a model is trained on a GPU, which a rank may put it on only later."""
    return "nccl" in dist.get_backend_config() if is_rank() else model.device.type != "cpu"


def wait() -> None:
    """Wait until every rank is here."""
    if is_rank():
        dist.barrier()


def on_main(work: Callable[[], T]) -> T | None:
    """Let the first rank do something, and the others wait for it."""
    result = work() if not is_rank() or dist.get_rank() == 0 else None
    wait()
    return result


def of_main(make: Callable[[], T]) -> T:
    """What the first rank makes, for all of them."""
    value: list[Any] = [make() if not is_rank() or dist.get_rank() == 0 else None]
    if is_rank():
        dist.broadcast_object_list(value)
    result: T = value[0]
    return result


def check_agreement(inputs: str) -> None:
    """Refuse ranks that would train different things (DialdownError)."""
    if not is_rank():
        return
    everyone: list[Any] = [None] * count()
    dist.all_gather_object(everyone, inputs)
    if differing := [rank for rank, other in enumerate(everyone) if other != everyone[0]]:
        raise DialdownError(
            f"{len(differing)} of {len(everyone)} ranks (first: rank {differing[0]}) were given "
            "another model, other pairs or other settings than rank 0: give all of them the same."
        )


def share(texts: Sequence[T]) -> Sequence[T]:
    """The part of what all ranks read together that is this rank's; where they cannot be shared out
    evenly, several ranks read the same, so that the mean over ranks is the mean over all.
    """
    parts = math.gcd(len(texts), count())
    size = len(texts) // parts
    part = dist.get_rank() % parts if is_rank() else 0
    return texts[part * size : (part + 1) * size]


def whole(policy: Any, model: Any) -> Any:
    """A policy with all of its weights, on the first rank, where each rank holds a part; others
    give it back as it is.

    Args:
        policy: what was trained.
        model: a model of its kind whose weights are whole.
    """
    from torch.distributed.tensor import DTensor

    if not any(isinstance(weight, DTensor) for weight in policy.parameters()):
        return policy
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(policy, options=options)
    if dist.get_rank() != 0:
        return policy
    plain = copy.deepcopy(model)
    plain.load_state_dict(weights)
    return plain
