"""Everything that waits for a GPU, in one command of at most ten minutes, with its JSON and a page.

    python -m benchmarks.gpu [--device cpu --tiny] [--minutes 9.5] [--output DIR]

A part that fails says why and the others go on. When the time is over, an alarm ends the part that
runs and nothing else begins; `make gpu` ends after ten minutes what even that does not end. Figures
are written as each part ends. On a processor parts that only a GPU has are rehearsed with what
stands in for them, and say so.
"""

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.data.slices import SHAPE, write_case
from benchmarks.machine import machine
from benchmarks.methods.segmentation_step import SIDES, make_balancer
from cggm import BalanceHandler
from cggm.runs import NonFiniteGuard
from cggm.runs.loop import DeferredLooks
from cggm_seg.data.cache import build_cache
from cggm_seg.data.cases import find_cases
from cggm_seg.data.slices import SliceDataset
from cggm_seg.inference import InferenceSettings, predict_cases, predict_volume
from cggm_seg.networks import MultiEncoderDeepLabV3Plus

RESULTS = Path(__file__).parent / "results"
NO_TIME = "no time was left"
Figures = dict[str, Any]


@dataclass
class Bench:
    """What all parts measure on.

    Attributes:
        device: The GPU, or a processor that stands in for it.
        encoder: Of each modality.
        size: Height and width of a slice.
        batch: Slices of a step.
        steps: That are timed, behind as many that are not.
        cases: Volumes of the feeding and of the inference.
        shape: Of these.
        until: When the time is over, by the monotonic clock.
    """

    device: torch.device
    encoder: str = "resnet101"
    size: int = 160
    batch: int = 16
    steps: int = 8
    cases: int = 2
    shape: tuple[int, int, int] = SHAPE
    until: float = float("inf")
    figures: Figures = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is measured."""
        return self.device.type == "cuda"

    def network(self) -> MultiEncoderDeepLabV3Plus:
        """A network, always the same."""
        torch.manual_seed(0)
        return MultiEncoderDeepLabV3Plus(encoder_name=self.encoder).to(self.device)

    def data(self) -> tuple[Tensor, Tensor]:
        """A batch of random slices and their labels, always the same."""
        torch.manual_seed(1)
        shape = (self.batch, 4, self.size, self.size)
        images, labels = torch.randn(shape), torch.randint(0, 4, (shape[0], *shape[2:]))
        return images.to(self.device), labels.to(self.device)

    def wait(self) -> None:
        """Wait for the device, to take the time."""
        if self.on_gpu:
            torch.cuda.synchronize()


def steps_of(
    bench: Bench,
    side: str,
    precision: str = "float32",
    *,
    channels_last: bool = False,
    compiled: dict[str, str] | None = None,
) -> Figures:
    """Seconds of a step and peak memory of one side in one form."""
    network, (images, labels) = bench.network(), bench.data()
    if channels_last:
        network, images = (
            network.to(memory_format=torch.channels_last),
            images.to(memory_format=torch.channels_last),
        )
    balancer = make_balancer(side, network).bind(network)
    if compiled is not None:
        for encoder in network.encoders.values():
            encoder.compile(**compiled)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    autocast = partial(
        torch.autocast, bench.device.type, torch.bfloat16, enabled=precision == "bf16"
    )
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(2 * bench.steps):
        bench.wait()
        start = time.perf_counter()
        optimizer.zero_grad()
        with autocast():
            loss = balancer(network(images), labels)
        loss.backward()
        optimizer.step()
        bench.wait()
        seconds.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated() / 1e6 if bench.on_gpu else None
    taken = statistics.median(seconds[bench.steps :])
    return {"seconds": taken, "slices_per_second": bench.batch / taken, "peak_mb": memory}


def step(bench: Bench) -> Figures:
    """Time and memory of a step: joint and CGGM, in every form."""
    forms: dict[str, dict[str, Any]] = {
        "float32": {},
        "bf16": {"precision": "bf16"},
        "bf16, channels_last": {"precision": "bf16", "channels_last": True},
        "bf16, compiled": {"precision": "bf16", "compiled": {}},
        "bf16, CUDA graphs": {"precision": "bf16", "compiled": {"mode": "reduce-overhead"}},
    }
    if not bench.on_gpu:  # a rehearsal needs no C++ compiler
        forms.pop("bf16, CUDA graphs")
        forms["bf16, compiled"] |= {"compiled": {"backend": "eager"}}
    rows: Figures = {}
    for form, options in forms.items():
        for side in SIDES:
            rows[f"{side}, {form}"] = attempted(bench, partial(steps_of, side=side, **options))
        joint = rows[f"joint, {form}"].get("seconds")
        for side in SIDES:
            own = rows[f"{side}, {form}"]
            own["time_ratio"] = own["seconds"] / joint if joint and "seconds" in own else None
        torch._dynamo.reset()
    return rows


def numbers(bench: Bench) -> Figures:
    """Whether a step of CGGM gives what it gives on a processor, in float64."""
    found = []
    for device in (torch.device("cpu"), bench.device):
        network = bench.network().to(device).double()
        images, labels = (t.to(device) for t in bench.data())
        balancer = make_balancer("light heads", network).double().bind(network)
        network(images[:2].double())
        loss = balancer(network(images[:2].double()), labels[:2])
        loss.backward()
        gradients = [p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None]
        found.append((float(loss.detach()), torch.cat(gradients)))
    (one, expected), (other, gradient) = found
    gap = float((gradient - expected).norm() / expected.norm())
    assert gap < 1e-6, f"gradients differ by {gap}"
    return {"loss": {"loss_gap": abs(one - other), "gradient_gap": gap}}


def waits(bench: Bench) -> Figures:
    """How often the host waits for the device within a step, with and without deferred looks."""
    return {
        "looked at in each step": {"waits": _waits(bench, every=1)},
        "looked at every 16 steps": {"waits": _waits(bench, every=16)},
    }


class Questions(TorchDispatchMode):
    """Counts, on a processor, what the host would wait for a GPU with.

    Not what Adam asks: it keeps the number of its steps on the processor on a GPU, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        if function.overloadpacket.__name__ == "_local_scalar_dense":
            callers = {frame.f_code.co_name for frame, _ in traceback.walk_stack(None)}
            self.count += "_get_value" not in callers
        return function(*args, **(kwargs or {}))


def _waits(bench: Bench, *, every: int) -> float:
    network, (images, labels) = bench.network(), bench.data()
    balancer = make_balancer("light heads", network).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def iterate(engine: Engine, _: object) -> dict[str, Tensor]:
        optimizer.zero_grad()
        loss = balancer(network(images), labels)
        loss.backward()
        output: Any = {"loss": loss.detach()}
        engine.state.output = output
        optimizer.step()
        return output

    engine = Engine(iterate)
    BalanceHandler(balancer).attach(engine)
    looks = DeferredLooks(every, lambda _: None, lambda: (0, Path())) if every > 1 else None
    guard = NonFiniteGuard(
        *(network, optimizer, balancer), names=lambda _: (), save=lambda _: Path(), deferred=looks
    )
    guard.attach(engine)
    counts: list[int] = []

    def count() -> None:
        counts.append(len(caught) if bench.on_gpu else asked.count)

    with warnings.catch_warnings(record=True) as caught, Questions() as asked:
        warnings.simplefilter("always")
        engine.add_event_handler(Events.ITERATION_STARTED, count)
        engine.add_event_handler(Events.ITERATION_COMPLETED, count)
        if bench.on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            engine.run([0] * 6)
        finally:
            if bench.on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    # Neither the first step, in which everything is made, nor the last one, at the epoch's end.
    within = [after - before for before, after in zip(counts[::2], counts[1::2], strict=True)]
    return statistics.mean(within[1:-1])


def feeding(bench: Bench) -> Figures:
    """Slices per second that one core reads and augments, beside what a step takes."""
    with tempfile.TemporaryDirectory() as folder:
        cases = _cases(bench, Path(folder))
        cache, _ = build_cache(cases, Path(folder) / "cache", workers=1, progress=False)
        dataset = SliceDataset(
            cache, cache.case_ids, size=bench.size, slices_per_case=1000, augment=True
        )
        count = 50 * bench.steps
        start = time.perf_counter()
        for k in range(count):
            dataset[0, k % len(dataset)]
        rate = count / (time.perf_counter() - start)
    steps = bench.figures.get("step", {}).get("rows", {})
    wanted = max((row.get("slices_per_second") or 0 for row in steps.values()), default=0)
    cores = wanted / rate
    return {"one core": {"slices_per_second": rate, "cores_for_the_fastest_step": cores}}


def inference(bench: Bench) -> Figures:
    """Seconds of a case from its files to its label map."""
    rows: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        cases = _cases(bench, Path(folder))
        ways = {"auto": InferenceSettings(), "float32": InferenceSettings(precision="float32")}
        for name, settings in ways.items():
            for turn in ("first", "second"):
                start = time.perf_counter()
                predict_cases(bench.network(), cases, Path(folder) / (name + turn), settings)
                taken = time.perf_counter() - start
            rows[name] = {"seconds_per_case": taken / len(cases)}
    return rows


def _cases(bench: Bench, folder: Path) -> list[Any]:
    for k in range(bench.cases):
        write_case(folder / "data" / f"BraTS2021_{k:05}", k, bench.shape)
    return find_cases(folder / "data", labelled=True)[0]


def ranks(bench: Bench) -> Figures:
    """One rank: NCCL, DDP and SyncBatchNorm; Gloo and DDP alone on a processor."""
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29577", "RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= address
    dist.init_process_group("nccl" if bench.on_gpu else "gloo")
    try:
        network: nn.Module = bench.network()
        alone = _losses(bench, network, network)
        network = bench.network()
        if bench.on_gpu:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        wrapped = DistributedDataParallel(network)
        together = _losses(bench, network, wrapped)
    finally:
        dist.destroy_process_group()
        for name in address:
            os.environ.pop(name)
    gap = max(abs(a - b) for a, b in zip(alone, together, strict=True))
    assert gap < 1e-3, f"losses differ by {gap}"
    backend = "NCCL, SyncBatchNorm" if bench.on_gpu else "Gloo, BatchNorm (rehearsal)"
    return {backend: {"loss_gap": gap}}


def _losses(bench: Bench, network: nn.Module, wrapped: nn.Module) -> list[float]:
    images, labels = bench.data()
    balancer = make_balancer("light heads", network).bind(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = balancer(wrapped(images), labels)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    balancer.unbind()
    return found


class Short(nn.Module):
    """A network that memory is too short for beyond some slices, as a processor cannot have it."""

    def __init__(self, network: MultiEncoderDeepLabV3Plus, most: int) -> None:
        super().__init__()
        self.network, self.most, self.modalities = network, most, network.modalities

    def forward(self, images: Tensor) -> Tensor:
        """The network's logits, where memory suffices."""
        if len(images) > self.most:
            raise torch.OutOfMemoryError("rehearsed")
        return self.network(images)


def memory(bench: Bench) -> Figures:
    """Inference where memory is short: the batch is halved, the labels stay."""
    shape = (4, 64, 64, 8) if not bench.on_gpu else (4, 240, 240, 64)
    torch.manual_seed(2)
    volume = (100 + 20 * torch.randn(shape)).numpy()
    volume[:, :8], volume[:, -8:], volume[:, :, :8], volume[:, :, -8:] = 0, 0, 0, 0
    network = bench.network()
    settings = InferenceSettings(precision="float32", batch_size=64)
    expected = predict_volume(network, volume, InferenceSettings(precision="float32"))
    if bench.on_gpu:
        torch.cuda.empty_cache()
        held, total = (
            torch.cuda.memory_allocated(),
            torch.cuda.get_device_properties(0).total_memory,
        )
        torch.cuda.set_per_process_memory_fraction(min(1.0, (held + 1.5e9) / total))
        try:
            found = predict_volume(network, volume, settings)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    else:
        found = predict_volume(Short(network, 3), volume, settings)
    equal = float((found == expected).mean())
    assert equal > 0.9999, f"only {equal:.4%} of the voxels are equal"
    kind = "of 1.5 GB" if bench.on_gpu else "rehearsed"
    return {kind: {"voxels_equal": equal}}


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "numbers": numbers,
    "waits": waits,
    "ranks": ranks,
    "memory": memory,
    "step": step,
    "inference": inference,
    "feeding": feeding,
}


def attempted(bench: Bench, part: Callable[[Bench], Figures]) -> Figures:
    """What a part measured, or why it could not; it ends when the time is over."""
    left = bench.until - time.monotonic()
    if left <= 0:
        return {"failed": NO_TIME}
    try:
        signal.setitimer(signal.ITIMER_REAL, min(left, 1e6))
        return part(bench)
    except TimeIsOver:
        return {"failed": NO_TIME}
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class TimeIsOver(BaseException):
    """Raised in whatever runs then; no library takes it for an error of its own."""


def _end(_: int, __: object) -> None:
    raise TimeIsOver


def run(bench: Bench, output: Path, minutes: float, parts: Sequence[str]) -> bool:
    """Run parts, writing down each as it ends; returns whether all went well."""
    output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, _end)
    bench.until = time.monotonic() + 60 * minutes
    gpu = torch.cuda.get_device_name() if bench.on_gpu else None
    about = {"gpu": gpu, "cuda": torch.version.cuda if gpu else None, **machine("torch", "monai")}
    settings = {k: str(v) for k, v in vars(bench).items() if k not in ("figures", "until")}
    for name in parts:
        part = PARTS[name]
        start = time.monotonic()
        rows = attempted(bench, part)
        seconds = time.monotonic() - start
        bench.figures[name] = {"seconds": seconds, "rows": rows, "what": part.__doc__}
        record = {"machine": about, "settings": settings, "parts": bench.figures}
        (output / "gpu.json").write_text(json.dumps(record, indent=2) + "\n")
        (output / "gpu.md").write_text(page(record))
        print(f"{name:10} {seconds:6.1f} s  {rows.get('failed', 'ok')}", flush=True)
    print(f"\n{output / 'gpu.json'}\n{output / 'gpu.md'}")
    return not any("failed" in str(part["rows"]) for part in bench.figures.values())


def page(record: Figures) -> str:
    """The figures as Markdown."""
    about = record["machine"]
    rehearsed = "A rehearsal on a processor, NOT on a GPU: its figures mean nothing"
    where = f"{about['gpu'] or rehearsed}; torch {about['torch']}."
    lines = ["# What a GPU was asked", "", where, "", "```text"]
    lines += [f"{key} {value}" for key, value in record["settings"].items()] + ["```"]
    for name, part in record["parts"].items():
        rows = part["rows"]
        lines += ["", f"## {name}", "", f"{part['what']} ({part['seconds']:.0f} s)", ""]
        if "failed" in rows:
            lines.append(f"Failed: {rows['failed']}.")
            continue
        columns = dict.fromkeys(key for row in rows.values() for key in row)
        lines += [_row("", *columns), _row(*["---"] * (len(columns) + 1))]
        lines += [_row(key, *(_text(row.get(c)) for c in columns)) for key, row in rows.items()]
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def main() -> int:
    """Measure on the GPU, or rehearse on a processor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to rehearse")
    parser.add_argument("--tiny", action="store_true", help="small networks and few steps")
    parser.add_argument("--minutes", type=float, default=9.5, help="until all of it ends")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of gpu.json, gpu.md")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("PyTorch finds no GPU; `make gpu-dry` rehearses on a processor.")
        return 2
    tiny: dict[str, Any] = {"encoder": "tu-lcnet_050", "size": 32, "batch": 4}
    tiny |= {"steps": 2, "cases": 1, "shape": (64, 64, 16)}
    bench = Bench(device, **(tiny if options.tiny else {}))
    return 0 if run(bench, options.output, options.minutes, options.only or [*PARTS]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
