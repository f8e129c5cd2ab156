"""Memory of two processes that train on as many images as CelebA has."""

import subprocess
import sys
from pathlib import Path

import pytest
from numpy.lib.format import open_memmap

CELEBA = (162_770, 3, 64, 64)
GIB = 2**30

# Reads every image once, as an epoch would, and trains a few steps of the paper's network.
WORKER = """
import sys
import numpy as np, torch
from pathlib import Path
from hgmvae_bench.grid import TrainingSettings
from hgmvae_bench.training.network.encoders import Network
from hgmvae_bench.plugins.registry import MODELS
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.stacking import SingleModel
from hgmvae_bench.training.trainer import Trainer

torch.set_num_threads(1)
images = torch.from_numpy(np.load(sys.argv[1], mmap_mode="c"))
for part in images.split(10_000):
    part.max()
cpu, plugin, shape = torch.device("cpu"), MODELS["vae"], tuple(images.shape[1:])
model = plugin.build(
    input_dim=shape, latent_dim=128, reconstruction_loss="mse",
    network=Network(shape, 32), settings=plugin.settings,
)
trainer = Trainer(
    SingleModel(model, RunRNG(0, cpu)), images, TrainingSettings(), batch_seeds=[0], device=cpu
)
for step, _ in enumerate(trainer.steps(1)):
    if step == 3:
        break
fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
rollup = dict(
    line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
)
print("MEMORY", fields["VmHWM"].split()[0], fields["RssAnon"].split()[0], rollup["Pss"].split()[0])
sys.stdout.flush()
sys.stdin.read()  # Stay until the others have measured too.
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
@pytest.mark.extended
def test_workers_share_the_images_and_stay_below_4_gib(tmp_path):
    path = tmp_path / "train_images.npy"
    open_memmap(path, mode="w+", dtype="uint8", shape=CELEBA).flush()  # A sparse file.
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        figures = []
        for worker in workers:
            line = next(line for line in worker.stdout if line.startswith("MEMORY"))
            figures.append([int(kb) * 1024 for kb in line.split()[1:]])
    finally:
        for worker in workers:
            worker.communicate()
    images = 162_770 * 3 * 64 * 64
    for peak, own, _ in figures:
        assert images < peak < 4 * GIB
        assert own < 2 * GIB, "the images are mapped, not copied"
    # Pss counts shared memory proportionally: together they hold the images once.
    assert sum(share for *_, share in figures) < images + sum(own for _, own, _ in figures) + GIB
