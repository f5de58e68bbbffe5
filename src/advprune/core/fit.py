"""From a picture of any size to the size that a network takes, as it was trained to be given it."""

from typing import TYPE_CHECKING

from pydantic import Field

from advprune.core.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image


class Fit(Settings):
    """The shorter side is resized to `resize` pixels, then the middle square of `crop` pixels is
    cut out; null leaves a step out.

    squash: both sides are resized, whatever their ratio. interpolation: `bilinear`, `bicubic` and
    what else torchvision calls so. Pixels are those of torchvision's and timm's transforms for
    evaluation. A picture that is smaller than `crop` gets a black border.
    """

    resize: int | None = Field(default=None, ge=1, le=4096)
    crop: int | None = Field(default=None, ge=1, le=4096)
    interpolation: str = Field(default="bilinear", pattern=r"^[a-z-]{1,20}$")
    squash: bool = False

    def __call__(self, picture: "Image") -> "Image":
        """The picture at the size that the network takes."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as transforms

        if self.resize is not None:
            sides = [self.resize] * (1 + self.squash)
            picture = transforms.resize(picture, sides, InterpolationMode(self.interpolation))
        if self.crop is not None:
            picture = transforms.center_crop(picture, self.crop)
        return picture
