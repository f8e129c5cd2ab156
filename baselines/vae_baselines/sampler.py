"""A pythae sampler that draws from a model's own prior."""

from __future__ import annotations

from pathlib import Path

import torch
from pythae.samplers import BaseSampler
from torch import Tensor


class PriorSampler(BaseSampler):  # type: ignore[misc]
    """Decodes samples of the model's prior, whatever that is.

    pythae's ``NormalSampler`` takes every prior for N(0, I), which those of GMVAE, VaDE and VAMP
    are not.

    Args:
        model: a model with ``sample_latent``, such as every baseline here.
    """

    @torch.no_grad()
    def sample(
        self,
        num_samples: int = 1,
        batch_size: int = 500,
        output_dir: str | None = None,
        return_gen: bool = True,
    ) -> Tensor | None:
        """Generate images.

        Args:
            num_samples: how many.
            batch_size: how many are decoded at a time.
            output_dir: folder where they are saved as PNG files, if given.
            return_gen: whether to return them.

        Returns:
            Images (num_samples, C, H, W) in [0, 1], or ``None`` without ``return_gen``.
        """
        latent = self.model.sample_latent(num_samples)
        images = torch.cat(
            [self.model.decoder(part)["reconstruction"] for part in latent.split(batch_size)]
        )
        if output_dir is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images):
                self.save_img(image, output_dir, f"{number:08d}.png")
        return images if return_gen else None
