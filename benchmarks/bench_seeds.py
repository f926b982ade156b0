"""What training S seeds at once costs, in units of training one.

One iteration of the whole loop on the pendulum (collect, fit, imagine, improve; preset
`fast`), learning started. Both numbers of seeds run in turn, in processes of their own
with as many host devices as cores.
"""

from collections.abc import Iterator

from benchmarks import peer
from benchmarks.measure import Settings, compare
from benchmarks.record import Row, num_cores

MODULE = "benchmarks.peer_seeds"


def rows(settings: Settings) -> Iterator[Row]:
    counts = (2, 5, 8, 16) if settings.full else settings.pick((8,), (2,))
    devices = num_cores()
    config = {"smoke": settings.smoke, "devices": devices}
    with peer.Process(MODULE, {**config, "seeds": 1}) as one:
        for count in counts:
            with peer.Process(MODULE, {**config, "seeds": count}) as many:
                ratio = compare(one, many, name=many.name, settings=settings)
            if count == counts[0]:
                yield Row(
                    "seeds/one",
                    "1 seed, an iteration",
                    one.facts["env_steps"] / ratio.ours_s,
                    "steps/s",
                    note=f"{one.facts['bytes'] / 1e6:.0f} MB of state and workspace",
                )
            yield Row(
                "seeds/many",
                f"{count} seeds on {many.facts['devices']} devices",
                ratio.median,
                "x the time of one",
                higher_is_better=False,
                target=5.0 if count == 8 else None,
                note=(
                    f"95 % interval {ratio.low:.2f} - {ratio.high:.2f}; "
                    f"{many.facts['bytes'] / 1e6:.0f} MB"
                ),
            )
