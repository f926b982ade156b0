"""What sharing one seed's batch between host devices costs, beside one device.

One iteration of the whole loop on the pendulum, environments, replay and batches cut
into as many parts as there are devices. The devices are the same cores, so keeping the
speed of one device is all that can be had here; on real ones the work is divided.
"""

from collections.abc import Iterator

from benchmarks import peer
from benchmarks.bench_seeds import MODULE
from benchmarks.measure import Settings, compare
from benchmarks.record import Row


def rows(settings: Settings) -> Iterator[Row]:
    config = {"smoke": settings.smoke, "seeds": 1, "shard": "batch"}
    with peer.Process(MODULE, {**config, "devices": 1}) as one:
        for devices in settings.pick((2, 4, 8), (2,)):
            with peer.Process(MODULE, {**config, "devices": devices}) as many:
                ratio = compare(many, one, name=one.name, settings=settings)
            yield Row(
                "scale/devices",
                f"{many.facts['devices']} host devices, one batch",
                ratio.median,
                "x the speed of one",
                target=0.9,
                note=f"95 % interval {ratio.low:.2f} - {ratio.high:.2f}",
            )
