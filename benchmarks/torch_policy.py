"""The policy that the torch peers sample under; sizes as in `nn.Actor`."""

import torch
from torch import nn


class Actor(nn.Module):
    """`O - 256 - 256 - A` with layer norm and ELU, tanh mean, one spread per action."""

    def __init__(self, obs_size: int, act_size: int, hidden: int = 256):
        super().__init__()
        layers = []
        for inputs in (obs_size, hidden):
            layers += [nn.Linear(inputs, hidden), nn.LayerNorm(hidden, 1e-3), nn.ELU()]
        self.mean = nn.Sequential(*layers, nn.Linear(hidden, act_size), nn.Tanh())
        self.log_std = nn.Parameter(torch.full((act_size,), -0.1))

    def forward(self, obs):
        mean = self.mean(obs)
        return mean, (torch.exp(self.log_std) + 0.1).expand_as(mean)
