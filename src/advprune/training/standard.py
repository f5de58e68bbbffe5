"""The training loop: SGD with Nesterov momentum, one-cycle schedule, label smoothing.

What a batch is attacked with, and what is minimized, is the recipe's (adversarial.py). Every epoch
draws its order, its augmentation and its random starts from generators seeded by (seed, epoch), so
a run that is killed and resumed at an epoch's end gives the same weights as an unbroken one.

Under torchrun each process trains on its share of every batch, with random starts of its own;
torch averages the gradients, and batch-norm takes the statistics of a share.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from advprune.core import distributed
from advprune.core.device import device_of, salted
from advprune.core.errors import UserError
from advprune.core.progress import progress
from advprune.core.train_settings import FineTuneSettings, RecipeSettings, TrainSettings
from advprune.models.fold import Following, Replayed, channels_last
from advprune.models.stochastic import undisturbed
from advprune.training.adversarial import Method
from advprune.training.inputs import Data, Inputs, Pair, load_state, save_state

Row = dict[str, float]
History = list[Row]  # one row per epoch
CHECK = 50  # steps from one look at the loss to the next
STARTS = 1 << 60  # keeps the seeds of random starts apart from those of orders


@dataclass
class Trainer:
    """Trains `model` in place on uint8 images `[N, C, H, W]` and labels `[N]`, or probabilities
    `[N, K]` in their place.

    Of recipes that attack their images, the weights of the epoch of highest robust accuracy on the
    validation images are kept (Rice et al., Overfitting in adversarially robust deep learning,
    2020), of several such epochs the last; without validation images and of standard training,
    those of the last epoch.
    """

    model: nn.Module
    train: Pair
    val: Pair | None
    settings: TrainSettings
    recipe: RecipeSettings
    seed: int
    state_path: Path | None  # of the state after each epoch, from which a killed run goes on
    after_epoch: Callable[[History], None] = lambda history: None  # called with the history so far
    after_step: Callable[[nn.Module], None] = lambda model: None  # may change the model in place
    # Called with the epoch, counted from 0; what it does to the model must follow from that and the
    # model's own state, or a resumed run would differ.
    before_epoch: Callable[[int], None] = lambda epoch: None
    measure: Callable[[], Row] = dict  # more columns of an epoch's row
    finished: Callable[[History], bool] = lambda history: False  # before the last epoch
    # Parameters with a weight decay or rate of their own, as SGD takes them.
    groups: Sequence[dict[str, Any]] = ()

    def __post_init__(self) -> None:
        """Nothing is trained yet."""
        self.method = Method(self.recipe, self.settings)
        self.epochs = self.recipe.epochs or self.settings.epochs
        # A last batch of a single image is left out: batch-norm needs two.
        whole, rest = divmod(len(self.train[0]), self.settings.batch)
        self.batches = max(whole + (rest > 1), 1)
        self.history: History = []
        self.best: dict[str, torch.Tensor] | None = None  # where epochs are chosen between
        self.replayed: Replayed | None = None  # on a GPU, what is attacked

    def run(self) -> History:
        """Train for all epochs; returns one row per epoch: loss and accuracy on the training
        batches as they were trained on (TRADES: accuracy on the clean images), `measure`, accuracy
        on validation images, and under PGD where the recipe attacks its images. UserError where the
        loss stops being a number."""
        channels_last(self.model)
        self.history, self.best = [], None
        self._begin()
        state = distributed.from_main(lambda: load_state(self.state_path))
        if state is not None:  # that of the first process, for all
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.history, self.best = state["history"], state["best"]
        history = self.history
        with progress("train, batches", self.epochs * self.batches) as advance:
            advance(len(history) * self.batches)
            while len(history) < self.epochs and not self.finished(history):
                self.before_epoch(len(history))
                draws = salted(self.seed, "draws", str(len(history)), str(distributed.rank()))
                with undisturbed(self.images.device, draws):  # of dropout in networks of others
                    history.append(self._epoch(advance) | self.measure())
                self._judge()
                if distributed.is_main():
                    kept = {name: part.state_dict() for name, part in self.parts.items()}
                    kept |= {"history": history, "best": self.best}
                    save_state(self.state_path, kept)
                self.after_epoch(history)
        if self.best:
            self.model.load_state_dict(self.best)
        self.model.to(memory_format=torch.contiguous_format).eval()
        return history

    def _begin(self) -> None:
        settings, model, own = self.settings, self.model, self.groups
        self.images, self.labels = (t.to(device_of(model)) for t in self.train)
        apart = {id(parameter) for group in own for parameter in group["params"]}
        rest = [p for p in model.parameters() if id(p) not in apart]
        groups = [{"lr": settings.lr} | group for group in ({"params": rest}, *own)]
        decay, momentum = settings.weight_decay, settings.momentum
        optimizer = SGD(groups, settings.lr, momentum, weight_decay=decay, nesterov=momentum > 0)
        rates, steps = [group["lr"] for group in groups], max(self.epochs * self.batches, 2)
        schedule = OneCycleLR(optimizer, rates, total_steps=steps, cycle_momentum=False)
        # All that keeps a state.
        self.parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
        # Gradients are averaged over processes; attacks take a quicker form, where there is one.
        self.network = distributed.parallel(model)
        self.folded = Following.of(model) if self.method.attacks else None

    def _epoch(self, advance: Callable[[int], None]) -> Row:
        epoch, device, settings = len(self.history), self.images.device, self.settings
        seed = self.seed * 1_000_003 + epoch
        generator = torch.Generator(device).manual_seed(seed)
        starts = torch.Generator(device).manual_seed(STARTS + (distributed.rank() << 52) + seed)
        order = torch.randperm(len(self.images), generator=generator, device=device)
        batches = order.split(settings.batch)[: self.batches]
        rounds = settings.precision == "auto" and device.type == "cuda"
        rounds |= settings.precision == "bfloat16"
        self.model.train()
        steps: list[tuple[torch.Tensor, torch.Tensor, int]] = []  # read at the end: no GPU waits
        for index, rows in enumerate(batches):
            x = augment(self.images[rows], settings.flip, settings.crop, generator)
            own = distributed.share(len(rows))
            x, y = (x / 255)[own], self.labels[rows][own]
            with torch.autocast(device.type, torch.bfloat16, enabled=rounds):
                attacked = self.folded.refresh() if self.folded else self.model
                if self.folded and x.is_cuda and distributed.processes() == 1:
                    attacked = self.replayed = self.replayed or Replayed(attacked, x)
                crafted = self.method.craft(attacked, x, y, starts)
                loss, logits = self.method.loss(self.network, x, crafted, y)
            self.parts["optimizer"].zero_grad()
            loss.backward()
            self.parts["optimizer"].step()
            self.parts["schedule"].step()
            distributed.agree(self.model)
            self.after_step(self.model)
            classes = y if y.ndim == 1 else y.argmax(1)
            loss, correct = loss.detach(), (logits.detach().argmax(1) == classes).sum()
            steps.append((loss, correct, len(y)))
            due = index % CHECK == 0 or index == len(batches) - 1
            if due and not torch.isfinite(loss):
                raise UserError("training: the loss is not a number; lower train.lr and run again")
            advance(1)
        losses, corrects, counts = zip(*steps, strict=True)
        found = zip(torch.stack(losses).tolist(), counts, strict=True)
        loss_sum, right = sum(loss * n for loss, n in found), int(torch.stack(corrects).sum())
        total_loss, total_right, seen = distributed.total(loss_sum, right, sum(counts))
        return {
            "epoch": epoch + 1,
            "train_loss": round(total_loss / seen, 5),
            "train_accuracy": round(total_right / seen, 4),
        }

    def _judge(self) -> None:
        """Complete the last row of the history, and keep the weights where they are the best."""
        row, model = self.history[-1], self.model
        if self.val is not None:
            row["val_accuracy"] = round(accuracy(model, *self.val), 4)
        if self.val is not None and self.method.attacks:
            attacked = self.method.probe(model, *self.val)
            row["val_robust_accuracy"] = round(accuracy(model, attacked, self.val[1]), 4)
            if row["val_robust_accuracy"] >= max(r["val_robust_accuracy"] for r in self.history):
                self.best = {name: t.clone() for name, t in model.state_dict().items()}


def train(
    model: nn.Module, inputs: Inputs, settings: TrainSettings, recipe: RecipeSettings, **fields: Any
) -> History:
    """Train `model` in place, from scratch; returns its history. fields: of `Trainer`, in place of
    what `inputs` says or besides."""
    given: dict[str, Any] = {
        "train": (inputs.train.images, inputs.train.labels),
        "val": (inputs.val.images, inputs.val.labels),
        "seed": inputs.seed,
        "state_path": inputs.state,
        "after_epoch": inputs.after_epoch,
    }
    return Trainer(model, settings=settings, recipe=recipe, **given | fields).run()


def finetune(
    model: nn.Module,
    setting: FineTuneSettings,
    data: Data,
    seed: int,
    after_step: Callable[[nn.Module], None] = lambda model: None,
) -> History:
    """Train `model` in place on the images of `data`; the last epoch is kept. seed: of this
    training. after_step: called after every step, to hold what must not change."""
    return Trainer(
        model,
        ((data.images * 255).round().to(torch.uint8), data.labels),
        None,
        data.train.model_copy(update={"lr": setting.lr}),
        RecipeSettings(**setting.model_dump(exclude={"lr"})),
        seed,
        data.state,
        after_step=after_step,
    ).run()


@torch.no_grad()
def accuracy(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int = 256
) -> float:
    """Share of images `[N, C, H, W]`, uint8 or in [0, 1], classified right in evaluation mode."""
    mode = model.training
    model.eval()
    device = next(model.parameters()).device
    scale = 255 if images.dtype == torch.uint8 else 1

    def right(pair: tuple[torch.Tensor, torch.Tensor]) -> int:
        return int((model(pair[0].to(device) / scale).argmax(1).cpu() == pair[1]).sum())

    pairs = list(zip(images.split(batch), labels.split(batch), strict=True))
    found = sum(distributed.spread(pairs, right))
    model.train(mode)
    return found / max(len(labels), 1)


def augment(
    images: torch.Tensor, flip: bool, crop: int, generator: torch.Generator
) -> torch.Tensor:
    """Mirror each image with probability 1/2 and shift it by up to `crop` pixels (zero padding).

    images: uint8 or float `[N, C, H, W]`; draws are made on the generator's device, for each image.
    """
    n, _, height, width = images.shape
    if flip:
        chosen = torch.rand(n, generator=generator, device=generator.device) < 0.5
        chosen = chosen.to(images.device).view(-1, 1, 1, 1)
        images = torch.where(chosen, images.flip(3), images)
    if crop:
        shape, device = (2, n, 1), generator.device
        offsets = torch.randint(0, 2 * crop + 1, shape, generator=generator, device=device)
        top, left = offsets.to(images.device)
        rows = top + torch.arange(height, device=images.device)  # [N, H]
        columns = left + torch.arange(width, device=images.device)  # [N, W]
        samples = torch.arange(n, device=images.device)[:, None, None]
        padded = F.pad(images, (crop, crop, crop, crop)).permute(0, 2, 3, 1)
        picked = padded[samples, rows[:, :, None], columns[:, None, :]]  # [N, H, W, C]
        images = picked.permute(0, 3, 1, 2)
    return images
