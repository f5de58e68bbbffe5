"""The training loop: SGD with Nesterov momentum, one-cycle schedule, label smoothing.

What a batch is attacked with, and what is minimized, is the recipe's (adversarial.py). Every epoch
draws its order, its augmentation and its random starts from generators seeded by (seed, epoch), so
a run that is killed and resumed at an epoch's end gives the same weights as an unbroken one.

Under torchrun each process trains on its share of every batch, with random starts of its own;
torch averages the gradients, and batch-norm takes the statistics of a share.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from advprune.core import distributed
from advprune.core.device import device_of
from advprune.core.errors import UserError
from advprune.core.files import atomic
from advprune.core.progress import progress
from advprune.core.train_settings import RecipeSettings, TrainSettings
from advprune.models.fold import Following, channels_last
from advprune.training.accuracy import accuracy
from advprune.training.adversarial import Method, collapsed, fgsm_images, overfit
from advprune.training.augment import augment
from advprune.training.average import Average
from advprune.training.replay import Replayed

Row = dict[str, float]
History = list[Row]  # one row per epoch
CHECK = 50  # steps from one look at the loss to the next
STARTS = 1 << 60  # keeps the seeds of random starts apart from those of orders


@dataclass
class _Run:
    """What changes while training, besides the model; with it, all that a killed run needs.

    network: the model as gradients are taken of it, which averages them over processes.
    folded: a quicker form of it to attack, where there is one. replayed: on a GPU, a quicker one
    still, made at the first step.
    best: the weights that would be returned now, where epochs are chosen between.
    """

    network: nn.Module
    folded: Following | None
    images: torch.Tensor
    labels: torch.Tensor
    optimizer: SGD
    schedule: OneCycleLR
    average: Average | None
    history: History = field(default_factory=list)
    best: dict[str, torch.Tensor] | None = None
    replayed: Replayed | None = None


@dataclass(frozen=True)
class Trainer:
    """Trains `model` in place on uint8 images `[N, C, H, W]` and labels `[N]`, or probabilities
    `[N, K]` in their place.

    Of recipes that attack their images, the weights of the epoch of highest robust accuracy on the
    validation images are kept (early stopping: Rice et al., Overfitting in adversarially robust
    deep learning, 2020), of several such epochs the last, which has had more training at a lower
    rate. Of standard training, the last epoch's.

    Without validation images the last epoch's weights are kept, of fgsm those before a collapse.

    state_path: where the state after each epoch is kept; a state found there is resumed. None keeps
    nothing. after_step: called with the model after every step, which it may change in place.
    before_epoch: called with the epoch, counted from 0; what it does to the model must follow from
    that and from the model's own state, or a resumed run would differ. measure: more columns of an
    epoch's row. finished: ends the training before the last epoch. groups: parameters of the model
    with a weight decay or rate of their own, as SGD takes them.
    probe: images and labels that each epoch is judged on, for the history alone.
    """

    model: nn.Module
    train: tuple[torch.Tensor, torch.Tensor]
    val: tuple[torch.Tensor, torch.Tensor] | None
    settings: TrainSettings
    recipe: RecipeSettings
    seed: int
    state_path: Path | None
    after_epoch: Callable[[int], None] = lambda epoch: None
    after_step: Callable[[nn.Module], None] = lambda model: None
    before_epoch: Callable[[int], None] = lambda epoch: None
    measure: Callable[[nn.Module], Row] = lambda model: {}
    finished: Callable[[History], bool] = lambda history: False
    groups: tuple[dict[str, Any], ...] = ()
    probe: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def method(self) -> Method:
        """The recipe at this profile's budget."""
        return Method(self.recipe, self.settings)

    @property
    def epochs(self) -> int:
        """The recipe's epochs, or else the profile's."""
        return self.recipe.epochs or self.settings.epochs

    def run(self) -> History:
        """Train for all epochs; returns one row per epoch.

        Columns: epoch; loss and accuracy on the training batches as they were trained on (TRADES:
        accuracy on the clean images); accuracy on validation images; where the recipe attacks its
        images, `val_robust_accuracy` under PGD; and of fgsm `probe_accuracy` (PGD) and
        `fgsm_accuracy` on a training minibatch, and `collapsed`, 1 where catastrophic overfitting
        ended the training; of a `probe` `probe_clean` and, under PGD, `probe_robust`. UserError
        where the loss stops being a number.
        """
        channels_last(self.model)
        run, per_epoch = self._begin(), self._batches(len(self.train[0]))
        self._resume(run)
        history = run.history
        with progress("train, batches", self.epochs * per_epoch) as advance:
            advance(len(history) * per_epoch)
            while len(history) < self.epochs and not (collapsed(history) or self.finished(history)):
                self.before_epoch(len(history))
                history.append(self._epoch(run, advance) | self.measure(self.model))
                self._judge(run)
                self._store(run)
                self.after_epoch(len(history) - 1)
        if run.best or run.average:
            self.model.load_state_dict(run.best or self._judged(run).state_dict())
        self.model.to(memory_format=torch.contiguous_format).eval()
        return history

    def _begin(self) -> _Run:
        device, settings = device_of(self.model), self.settings
        images, labels = (t.to(device) for t in self.train)
        apart = {id(parameter) for group in self.groups for parameter in group["params"]}
        rest = [p for p in self.model.parameters() if id(p) not in apart]
        groups = [{"lr": settings.lr} | group for group in ({"params": rest}, *self.groups)]
        rates = [group["lr"] for group in groups]
        momentum, decay = settings.momentum, settings.weight_decay
        optimizer = SGD(groups, settings.lr, momentum, weight_decay=decay, nesterov=momentum > 0)
        steps = max(self.epochs * self._batches(len(images)), 2)
        schedule = OneCycleLR(optimizer, rates, total_steps=steps, cycle_momentum=False)
        average = Average(self.model, self.recipe.ema) if self.recipe.ema else None
        folded = Following.of(self.model) if self.method.attacks else None
        network = distributed.parallel(self.model)
        return _Run(network, folded, images, labels, optimizer, schedule, average)

    def _batches(self, n: int) -> int:
        """Batches an epoch; a last one of a single image is left out (batch-norm needs two)."""
        whole, rest = divmod(n, self.settings.batch)
        return max(whole + (rest > 1), 1)

    def _epoch(self, run: _Run, advance: Callable[[int], None]) -> Row:
        epoch, n, device = len(run.history), len(run.images), run.images.device
        seed = self.seed * 1_000_003 + epoch
        generator = torch.Generator(device).manual_seed(seed)
        starts = torch.Generator(device).manual_seed(STARTS + (distributed.rank() << 52) + seed)
        order = torch.randperm(n, generator=generator, device=device)
        batches = order.split(self.settings.batch)[: self._batches(n)]
        self.model.train()
        steps: list[tuple[torch.Tensor, torch.Tensor, int]] = []  # read at the end: no GPU waits
        for index, rows in enumerate(batches):
            x = augment(run.images[rows], self.settings.flip, self.settings.crop, generator)
            own = distributed.share(len(rows))
            x, y = (x / 255)[own], run.labels[rows][own]
            loss, correct = self._step(run, x, y, starts)
            steps.append((loss, correct, len(y)))
            due = index % CHECK == 0 or index == len(batches) - 1
            if due and not torch.isfinite(loss):
                raise UserError("training: the loss is not a number; lower train.lr and run again")
            advance(1)
        losses, corrects, counts = zip(*steps, strict=True)
        found = zip(torch.stack(losses).tolist(), counts, strict=True)
        loss_sum = sum(loss * count for loss, count in found)
        right = int(torch.stack(corrects).sum())
        total_loss, total_right, seen = distributed.total(loss_sum, right, sum(counts))
        return {
            "epoch": epoch + 1,
            "train_loss": round(total_loss / seen, 5),
            "train_accuracy": round(total_right / seen, 4),
        }

    def _step(
        self, run: _Run, x: torch.Tensor, y: torch.Tensor, starts: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step; returns the mean loss and how many images are right."""
        with self._autocast(x.device):
            crafted = self.method.craft(self._attacked(run, x), x, y, starts)
            loss, logits = self.method.loss(run.network, x, crafted, y)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        run.schedule.step()
        distributed.agree(self.model)
        self.after_step(self.model)
        if run.average:
            run.average.update(self.model)
        classes = y if y.ndim == 1 else y.argmax(1)
        return loss.detach(), (logits.detach().argmax(1) == classes).sum()

    def _autocast(self, device: torch.device) -> torch.autocast:
        """Mixed precision, where the settings ask for it."""
        usual = "bfloat16" if device.type == "cuda" else "float32"
        chosen = usual if self.settings.precision == "auto" else self.settings.precision
        return torch.autocast(device.type, torch.bfloat16, enabled=chosen == "bfloat16")

    def _attacked(self, run: _Run, x: torch.Tensor) -> nn.Module:
        """What is attacked in the place of the model: folded where possible, replayed on a GPU."""
        if run.folded is None:
            return self.model
        network = run.folded.refresh()
        if not x.is_cuda or distributed.processes() > 1:
            return network
        if run.replayed is None:
            run.replayed = Replayed(network, x)
        return run.replayed

    def _judged(self, run: _Run) -> nn.Module:
        """The model that is validated and returned: the average, where there is one."""
        return run.average.model if run.average else self.model

    def _judge(self, run: _Run) -> None:
        """Complete the last row of the history, and keep the weights where they are the best."""
        row, model = run.history[-1], self._judged(run)
        if self.probe is not None:
            row["probe_clean"] = round(accuracy(model, *self.probe), 4)
            row["probe_robust"] = self._robust_accuracy(model, *self.probe)
        keep = False
        if self.recipe.method == "fgsm":
            row |= self._probe(run)
            row["collapsed"] = int(collapsed(run.history))
            keep = not overfit(row, run.history)
        if self.val is not None:
            row["val_accuracy"] = round(accuracy(model, *self.val), 4)
        if self.val is not None and self.method.attacks:
            row["val_robust_accuracy"] = self._robust_accuracy(model, *self.val)
            keep = row["val_robust_accuracy"] >= max(r["val_robust_accuracy"] for r in run.history)
        if keep:
            run.best = {name: t.clone() for name, t in model.state_dict().items()}

    def _robust_accuracy(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
        return round(accuracy(model, self.method.probe(model, x, y), y), 4)

    def _probe(self, run: _Run) -> Row:
        """Accuracy under PGD and FGSM on a minibatch of training images, the same each epoch.

        Of the weights that are trained, not their average: they are what collapses.
        """
        generator = torch.Generator().manual_seed(STARTS + self.seed)
        rows = torch.randperm(len(run.images), generator=generator)[: self.settings.batch]
        x, y = self.train[0][rows], self.train[1][rows]
        device, eps = device_of(self.model), self.method.eps
        fast = fgsm_images(self.model, (x / 255).to(device), y.to(device), eps, generator)
        return {
            "probe_accuracy": self._robust_accuracy(self.model, x, y),
            "fgsm_accuracy": round(accuracy(self.model, fast, y), 4),
        }

    def _store(self, run: _Run) -> None:
        if self.state_path is None or not distributed.is_main():
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "schedule": run.schedule.state_dict(),
            "history": run.history,
            "best": run.best,
            "average": run.average and run.average.model.state_dict(),
            "average_steps": run.average and run.average.steps,
        }
        with atomic(self.state_path) as temporary:
            torch.save(state, temporary)

    def _resume(self, run: _Run) -> None:
        """Load a stored state, if there is one; that of the first process, for all."""
        state = distributed.from_main(self._read)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.schedule.load_state_dict(state["schedule"])
        run.history.extend(state["history"])
        run.best = state["best"]
        if run.average:
            run.average.model.load_state_dict(state["average"])
            run.average.steps = state["average_steps"]

    def _read(self) -> dict[str, Any] | None:
        path = self.state_path
        if path is None or not path.is_file():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds: pickle, zip, EOF, runtime
            raise UserError(
                f"the training state {path} is damaged; delete it to start anew"
            ) from error
