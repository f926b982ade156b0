"""Peer: the same denoiser, training step and guided sampler in plain eager torch.

Written for this comparison, with the policy's score in closed form. Run by
bench_diffusion.py in a process of its own.
"""

import math

from benchmarks import peer


def denoiser(horizon: int, row: int, action: int, width: int, depth: int):
    """The residual MLP of `nn.ResidualDenoiser` with `nn.RandomTime` features."""
    import torch
    from torch import nn

    flat = horizon * (row + action)
    embed = max(flat, 128)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

        def forward(self, h):
            return h + self.linear(torch.relu(self.norm(h)))

    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.frequencies = nn.Parameter(torch.randn(8), requires_grad=False)
            self.time = nn.Sequential(
                nn.Linear(17, embed), nn.SiLU(), nn.Linear(embed, embed)
            )
            self.embed = nn.Linear(flat, embed)
            self.enter = nn.Linear(embed, width)
            self.blocks = nn.Sequential(*[Block() for _ in range(depth)])
            self.norm = nn.LayerNorm(width)
            self.leave = nn.Linear(width, horizon * row)

        def forward(self, x, action, time):
            time = time[:, None]
            phase = 2 * math.pi * time * self.frequencies
            features = torch.cat([time, phase.sin(), phase.cos()], -1)
            h = self.embed(torch.cat([x, action], -1).flatten(1)) + self.time(features)
            h = torch.relu(self.norm(self.blocks(self.enter(h))))
            return self.leave(h).view_as(x)

    return Denoiser()


def schedule(levels: int, tau: float):
    """`(abar, beta, c1, c2, variance)` of the cosine schedule, in float64."""
    import torch

    steps = torch.arange(levels + 1, dtype=torch.float64)
    f = torch.cos(steps * math.pi / (2 * levels)) ** (2 * tau)
    g = (f[-1] - f) / (f[-1] - f[0])
    beta = (1 - g[1:] / g[:-1]).clamp(0, 0.999)
    abar = torch.cumprod(1 - beta, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    c1 = beta * before.sqrt() / (1 - abar)
    c2 = (1 - before) * (1 - beta).sqrt() / (1 - abar)
    variance = beta * (1 - before) / (1 - abar)
    return [x.float() for x in (abar, beta, c1, c2, variance)]


def acting(config: dict) -> peer.Ready:
    """A diffusion policy: actions denoised by DDIM, given an observation."""
    import torch

    chunk = config["horizon"]
    network = denoiser(
        chunk, config["action"], config["obs"], config["width"], config["depth"]
    )
    abar = schedule(config["levels"], config["tau"])[0]
    times = torch.linspace(config["levels"] - 1, 0, config["calls"]).round().long()
    obs = torch.zeros(1, chunk, config["obs"])

    @torch.no_grad()
    def act():
        x = torch.randn(1, chunk, config["action"])
        for i, t in enumerate(times):
            x0 = network(x, obs, t.float()[None]).clamp(-1, 1)
            if i + 1 == len(times):
                return x0
            eps = (x - abar[t].sqrt() * x0) / (1 - abar[t]).sqrt()
            after = abar[times[i + 1]]
            x = after.sqrt() * x0 + (1 - after).sqrt() * eps

    facts = {"weights": sum(p.numel() for p in network.parameters())}
    return peer.Ready(f"torch {torch.__version__}", act, facts)


def setup(config: dict) -> peer.Ready:
    reason = peer.missing("torch")
    if reason:
        raise peer.MissingError(reason)
    import torch

    from benchmarks import torch_policy

    torch.set_num_threads(config["threads"])
    torch.manual_seed(0)
    batch, horizon, levels = config["batch"], config["horizon"], config["levels"]
    obs_size, act_size = config["obs"], config["action"]
    shape = (batch, horizon, obs_size + 2)
    if "calls" in config:
        return acting(config)
    network = denoiser(horizon, shape[-1], act_size, config["width"], config["depth"])
    abar, _, c1, c2, variance = schedule(levels, config["tau"])
    signal, noise = abar.sqrt(), (1 - abar).sqrt()
    facts = {"weights": sum(p.numel() for p in network.parameters())}
    name = f"torch {torch.__version__}"

    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=3e-4)
    x0, action = torch.randn(shape), torch.randn(batch, horizon, act_size)

    def train():
        t = torch.randint(0, levels, (batch,))
        a, s = signal[t, None, None], noise[t, None, None]
        x = a * x0 + s * torch.randn(shape)
        x[:, 0, :obs_size] = x0[:, 0, :obs_size]
        out = network(x, a * action, t.float())
        error = (out - x0) ** 2
        error[:, 0, :obs_size] = 0
        optimiser.zero_grad()
        error.mean().backward()
        optimiser.step()

    policy = torch_policy.Actor(obs_size, act_size)
    start = torch.randn(batch, obs_size)

    @torch.no_grad()
    def sample():
        x, action = torch.randn(shape), torch.randn(batch, horizon, act_size)
        x[:, 0, :obs_size] = start
        for t in reversed(range(levels)):
            x0 = network(x, signal[t] * action, torch.full((batch,), float(t)))
            x0[:, 0, :obs_size] = start
            mean = c1[t] * x0 + c2[t] * x
            if t <= 10:
                mean = x + (mean - x).clamp(-0.25, 0.25)
            mu, sigma = policy(x0[..., :obs_size])
            action = torch.clamp(action, mu - 3 * sigma, mu + 3 * sigma)
            x = mean
            if t > 0:
                spread = variance[t].sqrt()
                action = action + 0.005 * (mu - action) / sigma**2
                action = action + spread * torch.randn_like(action)
                x = mean + spread * torch.randn(shape)
            x[:, 0, :obs_size] = start
        return x, action

    return peer.Ready(name, {"train": train, "sample": sample}, facts)


if __name__ == "__main__":
    peer.serve(setup)
