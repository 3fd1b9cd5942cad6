"""A role that lives and dies as told: `python -m zmqrt.protocol.parent_watch GRACE_S support.fake_role WORDS…`."""

import json
import os
import signal
import subprocess
import sys
import time
from types import FrameType


def main(words: list[str]) -> None:
    """Do what the words say, in their order."""
    for word in words:
        match word.split("="):
            case ["ready"]:
                say({"event": "ready", "role": "fake", "endpoints": {"pid": str(os.getpid())}})
            case ["error", text]:
                say({"level": "error", "message": text})
            case ["print", text]:
                print(text, flush=True)
            case ["exit", code]:
                sys.exit(int(code))
            case ["deaf"]:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case ["drains"]:
                signal.signal(signal.SIGTERM, leave)
            case ["child"]:
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
                print(f"child {child.pid}", flush=True)
            case _:
                raise SystemExit(f"what is {word}?")
    time.sleep(600)


def leave(_number: int, _frame: FrameType | None) -> None:
    """End as a role does that has drained."""
    sys.exit(0)


def say(record: dict[str, object]) -> None:
    """Write a record as a role does."""
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
