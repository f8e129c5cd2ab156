import json
import multiprocessing
import tempfile
import threading

import pytest
import torch

from hgmvae_bench.execution.speed import measure as measure_module
from hgmvae_bench.execution.speed import trainers
from hgmvae_bench.execution.speed.measure import (
    SpeedRatio,
    SpeedReport,
    SpeedSettings,
    Throughput,
    format_speed,
    measure_speed,
    take_turns,
)
from hgmvae_bench.execution.speed.trainers import (
    concurrent_seeds,
    stacked_seeds,
    with_torch_layers,
)
from hgmvae_bench.grid import Cell, NetworkSettings, TrainingSettings
from hgmvae_bench.plugins.registry import resolve_model
from hgmvae_bench.training.network.encoders import Network
from hgmvae_bench.training.stacking import StackingError

CPU = torch.device("cpu")


def cell(model="vae"):
    return Cell(
        dataset="digits",
        image_size=32,
        model=model,
        model_settings=resolve_model(model).settings,
        latent_dim=2,
        network=NetworkSettings(width=2),
        training=TrainingSettings(batch_size=16),
    )


def test_trainers_take_turns_and_the_first_turn_is_a_warm_up(monkeypatch):
    order, clock = [], [0.0]
    monkeypatch.setattr(measure_module.time, "perf_counter", lambda: clock[0])

    def lasting(name, *seconds):
        remaining = list(seconds)

        def epoch():
            order.append(name)
            clock[0] += remaining.pop(0)

        return epoch

    epochs = {"a": lasting("a", 8, 1, 4), "b": lasting("b", 2, 2, 0.5)}
    seconds = take_turns(epochs, 2, CPU)
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [1, 4], "b": [2, 0.5]}


def test_torchs_layers_give_the_same_output_with_the_same_parameters():
    torch.manual_seed(0)
    network = Network((1, 32, 32), width=4)
    encoder, decoder = network.point_encoder(3), network.decoder(3)
    x = torch.rand(5, 1, 32, 32)
    before = decoder(encoder(x)["embedding"])["reconstruction"]
    parameters = [id(p) for module in (encoder, decoder) for p in module.parameters()]
    plain = [with_torch_layers(module) for module in (encoder, decoder)]
    kinds = {type(m).__module__.split(".")[0] for p in plain for m in p.layers.modules()}
    assert kinds == {"torch"}
    assert [id(p) for module in plain for p in module.parameters()] == parameters
    after = plain[1](plain[0](x)["embedding"])["reconstruction"]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_every_trainer_trains_every_model(digits, tmp_path, tmp_path_factory, monkeypatch, caplog):
    # Torch creates this folder when its compiler is first imported.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(measure_module, "process_folder", lambda: tmp_path)
    monkeypatch.setattr(trainers, "process_folder", lambda: tmp_path)
    report = measure_speed(
        [cell("vae"), cell("hgmvae-u")],
        digits,
        ["ssim", "lpips"],
        SpeedSettings(CPU, threads=1, joint_seeds=2, steps=4, repeats=2),
    )
    assert [(t.model, t.trainer) for t in report.training] == [
        (model, trainer)
        for model in ("vae", "hgmvae-u")
        for trainer in ("suite", "suite, one seed", "bare loop", "pythae")
    ]
    assert all(len(t.turns) == 2 and min(t.turns) > 0 for t in report.training)
    assert report.scoring["ssim"] > 0
    training_seconds = 10 * len(digits.train_images) / report.training[0].median
    assert report.scoring_share == pytest.approx(sum(report.scoring.values()) / training_seconds)
    assert multiprocessing.active_children() == []
    assert 0.1 < report.start_up < 60
    assert json.loads(json.dumps(report.to_json()))["settings"]["joint_seeds"] == 2
    # Pythae's trainer creates folders and logs them.
    assert list(tmp_path.iterdir()) == []
    assert [line.name for line in caplog.records if line.name.startswith("pythae")] == []
    assert "bare loop" in format_speed(report)


def test_two_trainers_are_compared_turn_by_turn():
    """The machine slows down by half after the third turn."""
    turns = [300, 310, 320, 150, 155, 160, 165]
    of_pythae = [100, 100, 100, 50, 50, 50, 50]
    training = [
        Throughput("vae", "suite", turns),
        Throughput("vae", "pythae", of_pythae),
        Throughput("vae", "bare loop", turns),
    ]
    report = SpeedReport({}, {}, training, {}, 0, 0)
    ratios = {(r.trainer, r.reference): r for r in report.ratios}
    assert ratios["suite", "pythae"] == SpeedRatio("vae", "suite", "pythae", 3.1, (3.0, 3.3))
    assert ratios["suite", "bare loop"].interval == (1, 1)
    assert ("pythae", "pythae") not in ratios
    assert str(ratios["suite", "pythae"]) == "3.10 (3.00 – 3.30)"
    assert report.to_json()["ratios"][1]["median"] == 3.1


def test_fewer_than_six_turns_give_no_interval():
    suite, pythae = (Throughput("vae", name, [4.0, 2.0, 2.0]) for name in ("suite", "pythae"))
    assert SpeedRatio.of(suite, pythae) == SpeedRatio("vae", "suite", "pythae", 1, None)
    assert str(SpeedRatio.of(suite, pythae)) == "1.00"


def test_concurrent_seeds_have_processes_and_an_epoch_waits_for_all(digits):
    images = digits.train_images[:64]
    with concurrent_seeds(cell(), images, CPU, 2, threads=2) as epoch:
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        epoch()
        epoch()
    assert [worker.exitcode for worker in workers] == [0, 0]
    with concurrent_seeds(cell(), images, CPU, 2, threads=2) as epoch:
        victim = multiprocessing.active_children()[0]
        victim.kill()
        victim.join()
        with pytest.raises((EOFError, OSError)):
            epoch()


def test_an_unstackable_model_is_refused_with_its_operation(digits):
    images = digits.train_images[:64]
    stacked_seeds(cell(), images, CPU, 2)()
    with pytest.raises(StackingError, match="requires_grad_"):
        stacked_seeds(cell("pythae:RAE_GP"), images, CPU, 2)


def test_a_process_trains_one_epoch_for_each_message(digits, monkeypatch):
    trained = []
    monkeypatch.setattr(trainers, "train_epoch", trained.append)
    ours, theirs = multiprocessing.Pipe()
    work = theirs, cell(), digits.train_images[:64], 3, torch.get_num_threads()
    thread = threading.Thread(target=trainers.train_on_demand, args=work)
    thread.start()
    for n_epochs in (1, 2):
        ours.send("train")
        assert ours.recv() == "train"
        assert len(trained) == n_epochs
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
