"""A peer that sleeps as long as it is told; run by test_peer.py in a child process."""

import time

from benchmarks import peer


def setup(config):
    if "missing" in config:
        raise peer.MissingError(config["missing"])
    if "crash" in config:
        raise ZeroDivisionError(config["crash"])
    print("this line must not reach the parent")
    return peer.Ready("echo 1.0", lambda: time.sleep(config["seconds"]), {"legs": 4})


if __name__ == "__main__":
    peer.serve(setup)
