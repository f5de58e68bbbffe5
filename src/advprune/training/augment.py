"""Training images moved about: each epoch sees each of them a little elsewhere."""

import torch
import torch.nn.functional as F


def augment(
    images: torch.Tensor, flip: bool, crop: int, generator: torch.Generator
) -> torch.Tensor:
    """Mirror each image with probability 1/2 and shift it by up to `crop` pixels (zero padding).

    images: uint8 or float `[N, C, H, W]`; the draws are made on the generator's device, one set
    an image.
    """
    n, _, height, width = images.shape
    if flip:
        chosen = torch.rand(n, generator=generator, device=generator.device) < 0.5
        chosen = chosen.to(images.device).view(-1, 1, 1, 1)
        images = torch.where(chosen, images.flip(3), images)
    if crop:
        padded = F.pad(images, (crop, crop, crop, crop))
        offsets = torch.randint(
            0, 2 * crop + 1, (2, n, 1), generator=generator, device=generator.device
        ).to(images.device)
        rows = offsets[0] + torch.arange(height, device=images.device)  # [N, H]
        columns = offsets[1] + torch.arange(width, device=images.device)  # [N, W]
        samples = torch.arange(n, device=images.device)
        picked = padded.permute(0, 2, 3, 1)[
            samples[:, None, None], rows[:, :, None], columns[:, None, :]
        ]
        images = picked.permute(0, 3, 1, 2)  # [N, C, H, W]
    return images
