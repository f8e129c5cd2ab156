from __future__ import annotations

import pytest
import torch

import vae_baselines


def test_the_mmd_is_minimised(build, digits) -> None:
    """Codes far from the prior raise the loss by α + λ − 1 times the increase of the MMD."""
    torch.manual_seed(0)
    model = build(vae_baselines.INFO_VAE, alpha=0.5, lbd=10.0)
    prior, codes, mean, log_var = torch.randn(4, 64, 4)
    near, _, kl, near_mmd = model.loss_function(digits, digits, codes, prior, mean, log_var)
    far, recon, _, far_mmd = model.loss_function(digits, digits, codes + 3, prior, mean, log_var)
    assert far_mmd > near_mmd
    torch.testing.assert_close(far - near, 9.5 * (far_mmd - near_mmd))
    torch.testing.assert_close(far, recon + 0.5 * kl + 9.5 * far_mmd)


@pytest.mark.parametrize(("alpha", "lbd"), [(0.0, 1e-3), (0.0, 1.0), (-2.0, 2.0)])
def test_settings_that_maximise_the_mmd_are_refused(build, alpha, lbd) -> None:
    with pytest.raises(ValueError, match=r"alpha \+ lbd must be greater than 1"):
        build(vae_baselines.INFO_VAE, alpha=alpha, lbd=lbd)
