"""Peak memory of a process that streams a dataset.

python -m benchmarks.streaming.stream_memory FOLDER BATCHES

Prints JSON: MiB after the imports, and at the peak.
"""

import json
import sys
from pathlib import Path

from benchmarks.streaming.stream_readers import open_stream
from hpcphotoz.config import Data


def peak_mib() -> float:
    """Largest resident size of this process so far, MiB.

    Not ru_maxrss: after vfork and exec it starts from the parent's peak (2061 MiB in a child that used 13).
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Stream this many batches, over several epochs if needed."""
    folder, wanted = Path(sys.argv[1]), int(sys.argv[2])
    imports, seen, epoch = peak_mib(), 0, 0
    stream = open_stream(folder, Data())
    while seen < wanted:
        for batch in stream.epoch(epoch):
            batch.images[0, 0, 0, 0].item()
            seen += 1
            if seen == wanted:
                break
        epoch += 1
    print(json.dumps({"objects": stream.rows, "imports_mib": imports, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
