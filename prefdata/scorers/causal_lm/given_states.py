"""Hidden states in the place of the network that computed them, so that a model's own code makes logits of them."""

from __future__ import annotations

from typing import Any

from torch import nn


class GivenStates(nn.Module):
    """Replace a model's trunk by states that are computed already.

    The model's own code then makes logits of them: some families scale these, or cap them, and only they know how.
    """

    output: Any = None

    def __init__(self, trunk: Any) -> None:
        """Take the place of `trunk`; `output` is what it is to give next."""
        super().__init__()
        # Falcon-H1's head reads a factor of its trunk.
        self.lm_head_multiplier = getattr(trunk, "lm_head_multiplier", None)

    @property
    def decoder(self) -> GivenStates:
        """The same: OPT calls the decoder in its trunk."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Give `output`, whatever is asked."""
        return self.output
