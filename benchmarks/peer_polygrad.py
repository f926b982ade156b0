"""Peer: the authors' own PolyGRAD, from a checkout that the user names.

    POLYGRAD_REFERENCE=/path/to/polygrad-world-models make bench

Its package imports simulators and loggers that its model code does not use; those that
are not installed are replaced by empty modules. It computes in float32 on the CPU (its
half-precision contexts are for CUDA and switch themselves off). Run by
bench_diffusion.py in a process of its own.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import pathlib
import sys
import types
import warnings

from benchmarks import peer

VARIABLE = "POLYGRAD_REFERENCE"
NAME = "polygrad-world-models"
UNUSED = ("gym", "wandb", "tap", "git", "d4rl", "mujoco_py", "matplotlib")


class _Anything(types.ModuleType):
    """A module in which every name exists and is an empty class."""

    __path__ = ()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None})


class _Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module for everything below the given names."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Anything(spec.name)

    def exec_module(self, module):
        pass


def load():
    """The checkout's `polygrad.models`.

    Raises:
        MissingError: without a checkout, or without what its model code needs.
    """
    root = os.environ.get(VARIABLE)
    if not root:
        raise peer.MissingError(f"{NAME}: skipped, {VARIABLE} names no checkout")
    if not (pathlib.Path(root) / "polygrad" / "models").is_dir():
        raise peer.MissingError(
            f"{NAME}: skipped, {VARIABLE} = {root} holds no polygrad/models"
        )
    reason = peer.missing("torch", "einops", "scipy")
    if reason:
        raise peer.MissingError(f"{NAME}: {reason}")
    absent = [name for name in UNUSED if importlib.util.find_spec(name) is None]
    sys.meta_path.append(_Unused(absent))
    sys.path.insert(0, root)
    warnings.simplefilter("ignore")
    import polygrad.models

    return polygrad.models


class _Identity:
    """Normaliser of data that are standard already."""

    def normalize(self, x, key):
        return x

    def unnormalize(self, x, key):
        return x


def setup(config: dict) -> peer.Ready:
    models = load()
    import torch

    from benchmarks import torch_policy

    torch.set_num_threads(config["threads"])
    torch.manual_seed(0)
    batch, horizon = config["batch"], config["horizon"]
    obs_size, act_size = config["obs"], config["action"]
    network = models.ResidualMLPDenoiser(
        horizon=horizon,
        transition_dim=obs_size + 2,
        cond_dim=act_size,
        dim_mults=(1,),
        attention=False,
        dropout=0.0,
        embed_dim=128,
        hidden_dim=config["width"],
        num_layers=config["depth"],
    )
    diffusion = models.GaussianDiffusion(
        network,
        horizon,
        obs_size,
        act_size,
        n_timesteps=config["levels"],
        loss_type="l2",
        predict_epsilon=False,
        noise_sched_tau=config["tau"],
        action_condition_noise_scale=0.0,
    )
    facts = {"weights": sum(p.numel() for p in network.parameters())}
    name = f"{NAME} on torch {torch.__version__}"

    optimiser = torch.optim.Adam(network.parameters(), lr=3e-4)
    x = torch.randn(batch, horizon, obs_size + 2)
    action = torch.randn(batch, horizon, act_size)

    def train():
        loss, _ = diffusion.loss(x, action, {0: x[:, 0, :obs_size]})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    policy = torch_policy.Actor(obs_size, act_size)

    def act(states, normed_input):
        del normed_input  # standard data
        mean, stddev = policy(states)
        return torch.distributions.Independent(
            torch.distributions.Normal(mean, stddev), 1
        )

    start = torch.randn(batch, obs_size)

    def sample():
        diffusion(
            {0: start},
            policy=act,
            normalizer=_Identity(),
            verbose=False,
            guidance_scale=0.005,
            guidance_type="grad",
            clip_std=3.0,
            clip_state_change=0.25,
        )

    return peer.Ready(name, {"train": train, "sample": sample}, facts)


if __name__ == "__main__":
    peer.serve(setup)
