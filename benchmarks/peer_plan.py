"""Peer: the cross-entropy solver of stable-worldmodel on the same networks in torch.

Written for this comparison but for the solver, which is the package's own. Needs
`pip install --no-deps stable-worldmodel loguru` beside torch and gymnasium: only its
solvers are imported, none of its many other parts.
"""

import contextlib
import importlib.util
import os
import sys
import types

from benchmarks import peer

OBS, ACTION = 3, 1


def solver():
    """The package's solver, and its version."""
    from importlib import metadata

    name = "stable_worldmodel"
    spec = importlib.util.find_spec(name)
    bare = types.ModuleType(name)  # its __init__ would import everything
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = bare
    from stable_worldmodel.solver import CEMSolver

    return CEMSolver, metadata.version("stable-worldmodel")


def network(sizes: dict):
    """One step `(x [N, O + A], cache) -> (out [N, O + 1], cache)` as a module."""
    import torch
    from torch import nn

    width = sizes["width"]

    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(OBS + ACTION, width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Linear(width, OBS + 1),
            )

        def forward(self, x, cache):
            return self.layers(x), cache

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_attend, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up = nn.Linear(width, 4 * width)
            self.down = nn.Linear(4 * width, width)

        def forward(self, x, cache):
            heads = sizes["heads"]
            q, k, v = (
                y.view(len(x), heads, 1, -1)
                for y in self.qkv(self.norm_attend(x)).chunk(3, -1)
            )
            if cache is not None:
                k = torch.cat([cache[0], k], 2)
                v = torch.cat([cache[1], v], 2)
            out = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + self.out(out.reshape(len(x), width))
            return x + self.down(nn.functional.gelu(self.up(self.norm_mlp(x)))), (k, v)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Linear(OBS + ACTION, width)
            self.blocks = nn.ModuleList(Block() for _ in range(sizes["blocks"]))
            self.leave = nn.Linear(width, OBS + 1)

        def forward(self, x, cache):
            h, new = self.token(x), []
            for i, block in enumerate(self.blocks):
                h, one = block(h, None if cache is None else cache[i])
                new.append(one)
            return self.leave(h), new

    return Dense() if sizes["network"] == "mlp" else Tokens()


def setup(sizes: dict) -> peer.Ready:
    if reason := peer.missing("torch", "gymnasium", "loguru", "stable_worldmodel"):
        raise peer.MissingError(reason)
    import gymnasium
    import numpy as np
    import torch

    torch.set_num_threads(sizes["threads"])
    CEMSolver, version = solver()
    net = network(sizes)

    class Model:
        def get_cost(self, info, candidates):
            obs, actions = info["obs"][0], candidates[0]  # [N, O], [N, H, A]
            cache, total = None, 0.0
            for k in range(actions.shape[1]):
                out, cache = net(torch.cat([obs, actions[:, k]], -1), cache)
                obs, total = obs + out[:, :OBS], total + out[:, OBS]
            return -total[None]

    search = CEMSolver(
        Model(),
        num_samples=sizes["num"],
        n_steps=sizes["iterations"],
        topk=sizes["elites"],
    )
    space = gymnasium.spaces.Box(-1, 1, (1, ACTION), np.float32)
    config = types.SimpleNamespace(horizon=sizes["horizon"], action_block=1)
    search.configure(action_space=space, n_envs=1, config=config)
    info = {"obs": torch.ones(1, OBS)}
    quiet = open(os.devnull, "w")  # noqa: SIM115, lives as long as the process

    def call():
        with contextlib.redirect_stdout(quiet):  # it prints every plan's time
            return search.solve(info)

    weights = sum(p.numel() for p in net.parameters())
    name = f"stable-worldmodel {version}, torch {torch.__version__}"
    return peer.Ready(name, call, {"weights": weights})


if __name__ == "__main__":
    peer.serve(setup)
