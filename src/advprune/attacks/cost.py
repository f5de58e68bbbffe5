"""What an attack costs: images passed forward and gradients taken, counted as they happen."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class Cost:
    """Counts of single images: `forwards` through the model, and `gradients` among them."""

    forwards: int = 0
    gradients: int = 0

    def watch(self, model: nn.Module) -> None:
        """Count whatever passes through `model` from now on; an attack's private copy, that is.

        A forward pass of images that require a gradient is taken to be followed by a backward one.
        """

        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.forwards += len(inputs[0])
            self.gradients += len(inputs[0]) * inputs[0].requires_grad

        model.register_forward_pre_hook(count)
