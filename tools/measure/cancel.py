"""How long a decode takes to end once it is interrupted: `cancel.py PROGRAM [WxH [TIMES]]`.

Starts `PROGRAM decode` of the sample, sends SIGINT at a random time in it, and waits for the program to end. Prints the milliseconds in between.
"""

import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

program, size, times = sys.argv[1], (sys.argv[2:] or ["1024x1024"])[0], int((sys.argv[3:] or ["20"])[0])
sample = pathlib.Path(__file__).parents[2] / "examples/sample.safetensors"
random.seed(0)
waits = []
with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / "out.png"
    command = [program, "decode", "--latent", str(sample), "--size", size, "-o", str(out)]
    for _ in range(times):
        child = subprocess.Popen(command, stderr=subprocess.PIPE)
        time.sleep(random.uniform(2, 8))
        asked = time.monotonic()
        child.send_signal(signal.SIGINT)
        message = child.communicate()[1].decode().strip().splitlines()[-1:]
        waits.append((time.monotonic() - asked) * 1e3)
        assert child.returncode == 1, f"it ended with {child.returncode}: {message}"
        assert not list(out.parent.iterdir()), "it left a file"
waits.sort()
print(f"{size}, {times} times: median {waits[len(waits) // 2]:.0f} ms, worst {waits[-1]:.0f} ms")
