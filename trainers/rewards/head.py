"""The head that turns an embedding into one number, the same for LAION aesthetic and ImageReward."""

from typing import cast

from torch import Tensor, nn


class ScoreHead(nn.Module):
    """Linear layers ``width → 1024 → 128 → 64 → 16 → 1``, without non-linearities, as published.

    The gaps in the numbering are the dropouts of training: names are those of the checkpoints.
    """

    def __init__(self, width: int) -> None:
        """Take the width of the embedding."""
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Identity(),
            nn.Linear(1024, 128),
            nn.Identity(),
            nn.Linear(128, 64),
            nn.Identity(),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """Turn ``[batch, width]`` into ``[batch]``."""
        return cast("Tensor", self.layers(embedding)).squeeze(-1)
