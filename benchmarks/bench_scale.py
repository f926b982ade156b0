"""What sharing one seed's batch between host devices costs, beside one device.

`update` is one update of the world model on a large batch, `devices` one iteration of
the whole loop on the pendulum, whose updates take two milliseconds: environments,
replay and batches are cut into as many parts as there are devices. The devices are the
same cores, so keeping the speed of one device is all that can be had here; on real ones
the work is divided. What is not divided (the optimiser, a sum over devices per update)
every host device does again, which small updates show and large ones do not.
"""

from collections.abc import Iterator

from benchmarks import peer
from benchmarks.bench_seeds import MODULE
from benchmarks.measure import Settings, compare
from benchmarks.record import Row

TARGET = 0.9


def rows(settings: Settings) -> Iterator[Row]:
    large = {"width": 256, "batch": 4096}
    large = settings.pick(large, {"width": 16, "batch": 16})
    size = f"batch {large['batch']}, width {large['width']}"
    yield from shared(settings, "update", "benchmarks.peer_update", large, size)
    loop = {"smoke": settings.smoke, "seeds": 1, "shard": "batch"}
    yield from shared(settings, "devices", MODULE, loop, "the whole loop, batch 128")


def shared(settings, name: str, module: str, config: dict, size: str) -> Iterator[Row]:
    """Rows of one piece of work on ever more devices."""
    with peer.Process(module, {**config, "devices": 1}) as one:
        for devices in settings.pick((2, 4, 8), (2,)):
            with peer.Process(module, {**config, "devices": devices}) as many:
                ratio = compare(many, one, name=one.name, settings=settings)
            yield Row(
                f"scale/{name}",
                f"{many.facts['devices']} host devices, {size}",
                ratio.median,
                "x the speed of one",
                target=TARGET,
                note=f"95 % interval {ratio.low:.2f} - {ratio.high:.2f}",
            )
