"""The reference classifier of generated samples: their classes, its confidence and its features."""

from __future__ import annotations

from torch import Tensor, nn

FEATURES = 128


class ReferenceClassifier(nn.Module):
    """Images ``(batch, channels, size, size)`` in [-1, 1] to logits ``(batch, classes)``, by convolutions."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()

        def convolved(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]

        self.body = nn.Sequential(
            *convolved(channels, width),
            *convolved(width, 2 * width, 2),
            *convolved(2 * width, 2 * width),
            *convolved(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * width, FEATURES),
            nn.GELU(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """``(batch, 128)``."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
