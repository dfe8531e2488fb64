"""R3: the networks of Rusu et al. 2016 have as many parameters as the paper says, and its geometric means come out."""

from __future__ import annotations

import pytest
import torch

from opdbench.rl.convolutional import RUSU, ConvNetwork
from opdbench.stats.aggregate import geometric_mean

PARAMETERS = {"teacher": 1_693_362, "net1": 427_874, "net2": 113_346, "net3": 61_954, "multi-3": 1_882_668,
              "multi-10": 6_756_721}
PERCENT_OF_TEACHER = {  # table B1, ten games, KL; and what the paper says that their geometric means are
    "net1": ([87.1, 105.6, 142.5, 103.5, 102.5, 100.6, 129.6, 109.3, 142.7, 78.6], 108.3),
    "net2": ([85.3, 98.1, 141.3, 103.5, 86.4, 103.7, 130.6, 102.7, 163.5, 49.4], 101.7),
    "net3": ([75.2, 78.6, 117.1, 103.5, 96.2, 96.9, 107.9, 84.1, 137.4, 20.9], 83.9),
    "multi-10": ([55.2, 71.1, 128.9, 102.9, 89.3, 99.6, 132.9, 154.7, 31.8, 106.4], 89.3),
}


@pytest.mark.parametrize("name", RUSU)
def test_r3_rusus_networks_have_the_papers_numbers_of_parameters(name: str) -> None:
    with torch.device("meta"):  # nothing is drawn or stored
        network = ConvNetwork(RUSU[name])
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


def test_every_game_has_its_own_actions_and_controller_over_one_trunk() -> None:
    network = ConvNetwork(RUSU["multi-3"])
    frames_n = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert [network(frames_n, game).shape for game in range(3)] == [(2, 3), (2, 3), (2, 6)]
    network(frames_n, 1).sum().backward()
    assert network.hidden.weight.grad is not None and network.controllers[0].weight.grad is None
    assert network.controllers[1].weight.grad is not None and network.heads[2].weight.grad is None


@pytest.mark.parametrize("name", PERCENT_OF_TEACHER)
def test_r3_rusus_geometric_means(name: str) -> None:
    percent, published = PERCENT_OF_TEACHER[name]
    assert geometric_mean(percent) == pytest.approx(published, abs=0.1)
