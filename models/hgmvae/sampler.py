"""pythae sampler for the prior of HGMVAE."""

from __future__ import annotations

import torch
from pythae.samplers import BaseSampler
from torch import Tensor


class HGMVAESampler(BaseSampler):  # type: ignore[misc]
    """Sampler that decodes the latents drawn by the model's ``sample_latent``; it needs no fit.

    Args:
        model: a trained :class:`~hgmvae.model.HGMVAE`.
        sampler_config: pythae's base config; the default one if None.
    """

    @torch.no_grad()
    def sample(
        self,
        num_samples: int = 1,
        batch_size: int = 500,
        output_dir: str | None = None,
        return_gen: bool = True,
        save_sampler_config: bool = False,
    ) -> Tensor | None:
        """Draw images from the prior.

        Args:
            num_samples: number of images.
            batch_size: images decoded at a time.
            output_dir: folder for the images as PNG files ``00000000.png``, …; None writes none.
            return_gen: whether to return the images.
            save_sampler_config: whether to save the sampler's config in ``output_dir``.

        Returns:
            Images (num_samples, C, H, W) in [0, 1], or None without ``return_gen``.
        """
        batches = [
            self.model.decoder(latent)["reconstruction"]
            for latent in self.model.sample_latent(num_samples).split(batch_size)
        ]
        images = torch.cat(batches)
        if output_dir is not None:
            for index, image in enumerate(images):
                self.save_img(image, output_dir, f"{index:08d}.png")
            if save_sampler_config:
                self.save(output_dir)
        return images if return_gen else None
