import torch

from hgmvae_bench.training.rng import RunRNG

CPU = torch.device("cpu")


def test_draws_depend_only_on_the_seed_and_earlier_draws_of_the_same_run():
    torch.manual_seed(7)
    alone = [torch.rand(3) for _ in range(2)]
    first, second = RunRNG(7, CPU), RunRNG(8, CPU)
    drawn = []
    for _ in range(2):
        with first.activate():
            drawn.append(torch.rand(3))
        with second.activate():
            torch.rand(5)
        torch.rand(1)
    assert torch.equal(torch.stack(drawn), torch.stack(alone))


def test_the_outer_state_is_restored_even_after_an_error():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    try:
        with RunRNG(1, CPU).activate():
            torch.rand(2)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert torch.equal(torch.rand(4), expected)
