"""The training loop that all methods share: task loss, distillation, the method's terms, checkpoints, a log."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune_rt.errors import DataError, TrainingError
from dynprune_rt.methods import checkpoint
from dynprune_rt.methods.base import Calibration, Method, StepContext, gate_parameters
from dynprune_rt.methods.graph import trace
from dynprune_rt.methods.losses import distillation
from dynprune_rt.methods.run_inputs import Loader, check_batch, choose_device, class_count, first_batches, load_start
from dynprune_rt.methods.schedules import learning_rate
from dynprune_rt.methods.settings import Settings
from dynprune_rt.methods.teacher import Teacher


@dataclass
class Training:
    """What `train` returns: the finished model in eval mode, the method (with its state), and one row per epoch."""

    model: nn.Module
    method: Method
    history: list[dict[str, Any]] = field(default_factory=list)


Progress = Callable[[int, int, str], None]


def train(
    model: nn.Module,
    loader: Loader,
    method: Method,
    *,
    settings: Settings | None = None,
    classes: int | None = None,
    calibration: Calibration | None = None,
    validation: Iterable[tuple[Tensor, Tensor]] | None = None,
    teacher: nn.Module | None = None,
    teacher_cache: str | Path | None = None,
    start: Mapping[str, Tensor] | None = None,
    device: str | torch.device | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Training:
    """Make a pretrained ``model`` dynamic or smaller with ``method``; both are left as they are.

    calibration: batches of training images, not augmented, that methods score channels and set gates with (default:
    the loader's first three). validation: batches whose accuracy is logged per epoch; never test images.
    teacher: network to distil from (default: the model as given); off with ``settings.distillation=0``.
    teacher_cache: folder that keeps the teacher's logits for other runs over the same batches (see `Teacher`).
    start: weights of an earlier run of the same method and structure, to go on from with a new schedule.
    device: default CUDA where there is one, else the CPU. folder: keeps ``checkpoint.pt`` (written after every epoch;
    a run whose folder holds one continues it, to the same weights as without the interruption) and ``log.jsonl``.
    progress: called with (steps done, steps in all, a text).

    Raises DataError for labels out of range or images that are not finite, TrainingError for a model with nothing to
    gate, a target that cannot be met, a checkpoint of another run, or a loss that is not finite (the last good
    checkpoint stays).
    """
    settings = settings or Settings()
    if len(loader) < 1:
        raise TrainingError("nothing to train: the loader has no batch")
    target = choose_device(device)
    torch.manual_seed(settings.seed)
    batches = calibration if calibration is not None else first_batches(loader, 3)
    if len(batches) == 0:
        raise DataError("no calibration images")
    example = batches[0][0][:1].float().cpu()
    traced = trace(copy.deepcopy(model).cpu(), example)
    classes = classes if classes is not None else class_count(model, example)
    for images, labels in batches:
        check_batch(images, labels, classes)
    guide = None
    if settings.distillation > 0:
        if teacher is not None and class_count(teacher, example) != classes:
            raise TrainingError(f"the teacher tells {class_count(teacher, example)} classes apart, not {classes}")
        guide = Teacher(copy.deepcopy(teacher or model), target, settings.precision, teacher_cache)

    method = copy.deepcopy(method)
    method.calibration = batches
    run = {"settings": asdict(settings), "method": method.name, "config": method.config(), "batches": len(loader)}
    path = Path(folder) / "checkpoint.pt" if folder is not None else None
    saved = checkpoint.load(path, run) if path is not None and path.is_file() else None
    if saved is not None:
        method.state = saved["state"]
        student = method.rebuild(traced)
        student.load_state_dict(saved["model"])
    else:
        student = method.prepare(traced, batches, classes)
        if start is not None:
            load_start(student, start)
    loop = _Loop(student, method, settings, len(loader), target, guide, classes)
    history: list[dict[str, Any]] = []
    if saved is not None:
        loop.resume(saved)
        history = saved["history"]

    for epoch in range(loop.epoch, settings.epochs):
        row = loop.run_epoch(loader, progress)
        if validation is not None:
            row["validation"] = accuracy(loop.model, validation, target, settings.precision)
        history.append(row)
        if path is not None:
            checkpoint.save(path, {"run": run, "history": history, **loop.content()})
            with (path.parent / "log.jsonl").open("a") as log:
                log.write(json.dumps({"epoch": epoch + 1, "method": method.name, **row}) + "\n")
    return Training(method.finalise(loop.model.cpu().float()), method, history)


def accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> float:
    """Share of images classified right, in eval mode."""
    device = torch.device(device)
    training = model.training
    model.eval()
    right = count = 0
    for images, labels in batches:
        with torch.no_grad(), _autocast(device, precision):
            logits = model(images.to(device))
        right += int((logits.argmax(1).cpu() == labels.cpu()).sum())
        count += len(labels)
    model.train(training)
    if count == 0:
        raise DataError("no images to measure accuracy on")
    return right / count


class _Loop:
    """The state of a run between epochs."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        settings: Settings,
        steps: int,
        device: torch.device,
        teacher: Teacher | None,
        classes: int,
    ) -> None:
        self.method, self.settings, self.device, self.classes = method, settings, device, classes
        self.steps, self.epoch, self.teacher = steps, 0, teacher
        self.adopt(model)

    def adopt(self, model: nn.Module) -> None:
        """Train ``model`` from here on, with a fresh optimiser."""
        self.model = model.to(self.device, memory_format=torch.channels_last)
        gates = {id(p) for p in gate_parameters(model)}
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if id(p) not in gates], "weight_decay": self.settings.weight_decay},
            {"params": [p for p in parameters if id(p) in gates], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(
            [g for g in groups if g["params"]], lr=self.settings.learning_rate, momentum=self.settings.momentum,
            nesterov=self.settings.momentum > 0,
        )  # fmt: skip

    def content(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": self.method.state,
            "generator": torch.get_rng_state(),
        }

    def resume(self, saved: dict[str, Any]) -> None:
        self.epoch = saved["epoch"]
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["generator"])

    def run_epoch(self, loader: Loader, progress: Progress | None) -> dict[str, Any]:
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(self.epoch)
        total = self.settings.epochs * self.steps
        sums = {"loss": 0.0, "penalty": 0.0, "accuracy": 0.0}
        started, cpu = time.monotonic(), time.process_time()
        self.model.train()
        if self.teacher is not None:
            self.teacher.begin_epoch(self.epoch)
        done = 0
        for done, (images, labels) in enumerate(loader, 1):
            step = self.epoch * self.steps + done - 1
            values = self._step(images, labels, step, total)
            for key, value in values.items():
                sums[key] += value
            if progress is not None:
                progress(step + 1, total, f"epoch {self.epoch + 1}/{self.settings.epochs} loss {values['loss']:.3f}")
            if done == self.steps:
                break
        if done < self.steps:
            raise DataError(f"the loader announced {self.steps} batches and gave {done}")
        if self.teacher is not None:
            self.teacher.end_epoch()
        self.epoch += 1
        replaced = self.method.end_epoch(self.model, self.epoch / self.settings.epochs)
        if replaced is not None:
            self.adopt(replaced)
        row = {key: value / self.steps for key, value in sums.items()}
        row["seconds"] = time.monotonic() - started
        row["cpu_seconds"] = time.process_time() - cpu
        return row

    def _step(self, images: Tensor, labels: Tensor, step: int, total: int) -> dict[str, float]:
        settings = self.settings
        if step % self.steps == 0:
            check_batch(images, labels, self.classes)
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        rate = learning_rate(step, total, settings.learning_rate, settings.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.method.begin_step(self.model, step / total)
        with _autocast(self.device, settings.precision):
            logits = self.model(images).float()
            losses = F.cross_entropy(logits, labels, reduction="none")
            loss = losses.mean()
            if self.teacher is not None:
                term = distillation(logits, self.teacher.logits(images), settings.temperature)
                loss = (1 - settings.distillation) * loss + settings.distillation * term
            penalty = self.method.penalty(StepContext(self.model, logits, labels, losses, step / total))
        task = float(loss.detach())
        if penalty is not None:
            loss = loss + penalty
        extra = float(penalty.detach()) if penalty is not None else 0.0
        if not math.isfinite(task + extra):
            raise TrainingError(
                f"the loss is not finite at step {step + 1} (task {task}, {self.method.name} terms {extra}); lower the "
                "learning rate, train in fp32, or start from a pretrained model. The last checkpoint is kept"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        right = (logits.detach().argmax(1) == labels).float().mean()
        return {"loss": task, "penalty": extra, "accuracy": float(right)}


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
