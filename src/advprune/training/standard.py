"""Standard training: SGD with Nesterov momentum, one-cycle schedule, label smoothing.

Every epoch draws its order and its augmentation from a generator seeded by (seed, epoch), so a run
that is killed and resumed at an epoch's end gives the same weights as an unbroken one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from advprune.errors import UserError
from advprune.params import TrainSettings
from advprune.progress import progress

History = list[dict[str, float]]  # a row an epoch


def augment(
    images: torch.Tensor, flip: bool, crop: int, generator: torch.Generator
) -> torch.Tensor:
    """Mirror each image with probability 1/2 and shift it by up to `crop` pixels (zero padding).

    images: uint8 or float `[N, C, H, W]`; the draws are made on the CPU, one set an image.
    """
    n, _, height, width = images.shape
    if flip:
        chosen = torch.rand(n, generator=generator) < 0.5
        chosen = chosen.to(images.device).view(-1, 1, 1, 1)
        images = torch.where(chosen, images.flip(3), images)
    if crop:
        padded = F.pad(images, (crop, crop, crop, crop))
        offsets = torch.randint(0, 2 * crop + 1, (2, n, 1), generator=generator).to(images.device)
        rows = offsets[0] + torch.arange(height, device=images.device)  # [N, H]
        columns = offsets[1] + torch.arange(width, device=images.device)  # [N, W]
        samples = torch.arange(n, device=images.device)
        picked = padded.permute(0, 2, 3, 1)[
            samples[:, None, None], rows[:, :, None], columns[:, None, :]
        ]
        images = picked.permute(0, 3, 1, 2)  # [N, C, H, W]
    return images


@torch.no_grad()
def accuracy(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int = 256
) -> float:
    """Share of uint8 images `[N, C, H, W]` classified as their label, in evaluation mode."""
    mode = model.training
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        right += int((model(x.to(device) / 255).argmax(1).cpu() == y).sum())
    model.train(mode)
    return right / max(len(labels), 1)


@dataclass(frozen=True)
class Trainer:
    """Trains `model` in place on uint8 images `[N, C, H, W]` and labels `[N]`.

    state_path: where the state after each epoch is kept; a state found there is resumed.
    """

    model: nn.Module
    train: tuple[torch.Tensor, torch.Tensor]
    val: tuple[torch.Tensor, torch.Tensor]
    settings: TrainSettings
    seed: int
    state_path: Path
    after_epoch: Callable[[int], None] = lambda epoch: None

    def run(self) -> History:
        """Train for all epochs; returns a row an epoch: loss and accuracy on training batches,
        accuracy on validation images. UserError where the loss stops being a number."""
        device = next(self.model.parameters()).device
        images, labels = (t.to(device) for t in self.train)
        settings, per_epoch = self.settings, self._batches(len(images))
        optimizer = SGD(
            self.model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
        )
        schedule = OneCycleLR(
            optimizer,
            settings.lr,
            total_steps=max(settings.epochs * per_epoch, 2),
            cycle_momentum=False,
        )
        history: History = []
        first = self._resume(optimizer, schedule, history)
        with progress("train, batches", settings.epochs * per_epoch) as advance:
            advance(first * per_epoch)
            for epoch in range(first, settings.epochs):
                row = self._epoch(epoch, images, labels, optimizer, schedule, advance)
                history.append(row | {"val_accuracy": round(self._val_accuracy(), 4)})
                self._store(epoch + 1, optimizer, schedule, history)
                self.after_epoch(epoch)
        self.model.eval()
        return history

    def _val_accuracy(self) -> float:
        return accuracy(self.model, *self.val)

    def _batches(self, n: int) -> int:
        """Batches an epoch; a last one of a single image is left out (batch-norm needs two)."""
        whole, rest = divmod(n, self.settings.batch)
        return max(whole + (rest > 1), 1)

    def _epoch(
        self,
        epoch: int,
        images: torch.Tensor,
        labels: torch.Tensor,
        optimizer: SGD,
        schedule: OneCycleLR,
        advance: Callable[[int], None],
    ) -> dict[str, float]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(images), generator=generator)
        self.model.train()
        loss_sum, right, seen = 0.0, 0, 0
        for rows in order.split(self.settings.batch)[: self._batches(len(images))]:
            rows = rows.to(images.device)
            x = augment(images[rows], self.settings.flip, self.settings.crop, generator)
            loss, correct = self._step(x / 255, labels[rows], optimizer)
            schedule.step()
            loss_sum, right, seen = loss_sum + loss * len(rows), right + correct, seen + len(rows)
            advance(1)
        return {
            "epoch": epoch + 1,
            "train_loss": round(loss_sum / seen, 5),
            "train_accuracy": round(right / seen, 4),
        }

    def _step(self, x: torch.Tensor, y: torch.Tensor, optimizer: SGD) -> tuple[float, int]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
            logits = self.model(x)
            loss = F.cross_entropy(logits, y, label_smoothing=self.settings.label_smoothing)
        if not torch.isfinite(loss):
            raise UserError("training: the loss is not a number; lower train.lr and run again")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach()), int((logits.detach().argmax(1) == y).sum())

    def _store(self, epochs: int, optimizer: SGD, schedule: OneCycleLR, history: History) -> None:
        state = {
            "epochs": epochs,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "history": history,
        }
        self.state_path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.state_path.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(self.state_path)

    def _resume(self, optimizer: SGD, schedule: OneCycleLR, history: History) -> int:
        """Load a stored state, if there is one; returns the epochs already done."""
        if not self.state_path.is_file():
            return 0
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds: pickle, zip, EOF, runtime
            raise UserError(
                f"the training state {self.state_path} is damaged; delete it to start anew"
            ) from error
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        history.extend(state["history"])
        return int(state["epochs"])
