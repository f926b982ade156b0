"""Opens files of strangers, each in a process of its own, and says what it cost.

python -m tests.commands.reader     reads [KIND, PATH] as JSON, one a line, and answers
with the error's classes and text (null where there was none), the exit status, seconds
of the processor, and megabytes at the peak, those of children included.
"""

import json
import os
import sys

import h5py  # noqa: F401  before forking, as is the next
import jax
import numpy as np
import orbax.checkpoint  # noqa: F401
import safetensors.numpy  # noqa: F401

from jaxwm.commands import weights
from jaxwm.data import minari
from jaxwm.envs import mjcf
from jaxwm.measures import code
from jaxwm.train import checkpoint, guard, lock, run, sinks


def restore(path):
    return checkpoint.restore(path, {"a": np.zeros(300_000)})


def decode(path):
    with open(path, "rb") as file:
        return code.decode(file.read())


READERS = {
    "checkpoint": restore,
    "tidy": checkpoint.tidy,
    "weights": weights.read,
    "run": run.read,
    "dump": guard.read,
    "rows": sinks.read,
    "owner": lock.owner,
    "minari": minari.load,
    "inspect": minari.inspect,
    "code": decode,
    "mjcf": mjcf.load,
}


def main():
    for line in sys.stdin:
        kind, path = json.loads(line)
        heard, said = os.pipe()
        pid = os.fork()
        if pid == 0:
            answer = {"error": None, "text": ""}
            try:
                jax.block_until_ready(READERS[kind](path))
            except Exception as error:
                names = [base.__name__ for base in type(error).__mro__]
                answer = {"error": names, "text": str(error)[:2000]}
            os.write(said, json.dumps(answer).encode())
            os._exit(0)
        os.close(said)
        _, status, usage = os.wait4(pid, 0)
        answer = json.loads(os.read(heard, 1 << 16) or b"{}")
        os.close(heard)
        answer["status"] = os.waitstatus_to_exitcode(status)
        answer["seconds"] = usage.ru_utime + usage.ru_stime  # a busy machine is slow
        answer["megabytes"] = usage.ru_maxrss / 1e3
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
