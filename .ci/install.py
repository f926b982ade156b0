"""Installs this package, editable, and says where the time went.

    python .ci/install.py [EXTRAS]

Versions come from constraints.txt. Byte code is left to the first import, which needs
a fraction of the files (on 2 cores: 10 s less here, 2 s more there).
"""

import datetime
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOG = pathlib.Path(sys.prefix) / "pip.log"


def phases(log: str) -> tuple[float, float, int]:
    """Seconds until pip begins to unpack, seconds from there on, packages unpacked."""
    start = switch = end = None
    packages = 0
    for line in log.splitlines():
        stamp, _, text = line.partition(" ")
        try:
            end = datetime.datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S,%f")
        except ValueError:  # a continued line
            continue
        start = start or end
        if text.startswith("Installing collected packages:"):
            switch = end
            packages = text.count(",") + 1
    if start is None or end is None:
        return 0.0, 0.0, 0
    switch = switch or end
    return (switch - start).total_seconds(), (end - switch).total_seconds(), packages


def main() -> int:
    extras = f"[{sys.argv[1]}]" if len(sys.argv) > 1 else ""
    print(
        f"Installing jaxwm{extras} into {sys.prefix} (about a minute) ...", flush=True
    )
    LOG.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-compile"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    command += ["--log", str(LOG)]
    command += ["-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}{extras}"]
    # With a log, pip's warnings come through -qq; they matter only if it fails.
    pip = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if pip.returncode:
        print(pip.stderr, f"pip failed; its log is {LOG}", sep="\n", file=sys.stderr)
        return pip.returncode
    fetch, unpack, packages = phases(LOG.read_text(errors="replace"))
    print(
        f"Installed {packages} packages: {fetch:.0f} s to find and download them, "
        f"{unpack:.0f} s to install."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
