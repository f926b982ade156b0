"""A peer that sleeps as long as it is told; run by test_peer.py in a child process."""

import time

from benchmarks import peer


def setup(config):
    if "missing" in config:
        raise peer.MissingError(config["missing"])
    if "crash" in config:
        raise ZeroDivisionError(config["crash"])
    print("this line must not reach the parent")
    seconds = config["seconds"]
    if isinstance(seconds, dict):
        call = {k: lambda s=s: time.sleep(s) for k, s in seconds.items()}
    else:
        call = lambda: time.sleep(seconds)
    return peer.Ready("echo 1.0", call, {"legs": 4})


if __name__ == "__main__":
    peer.serve(setup)
