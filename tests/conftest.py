"""What every test starts from: no settings, and no ignored signals, of whoever runs it."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from zmqrt.protocol.settings import known_roles, settings_of


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Hide the user's settings file and variables from the tests and from the processes they start."""
    ours = {name for cls in known_roles().values() for one in settings_of(cls) for name in one.env_names}
    folder = tmp_path_factory.mktemp("config")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name in ours or name.startswith("ZMQRT_"):
                patch.delenv(name)
        patch.setenv("XDG_CONFIG_HOME", str(folder))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # else each process compiles all that it imports
        patch.delenv("PYTHONUNBUFFERED", raising=False)  # what must be seen at once is flushed by who writes it
        yield folder


def pytest_runtest_call() -> None:
    """Keep torch to one thread: the models of tests are tiny, and other tests run beside this one."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


# Threads that spin while they wait take the cores of other tests; read where torch is loaded, which is later than this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# So does `nohup` with hangups. Whoever runs the tests with it goes on; what they start gets what is usual.
if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda _number, _frame: None)

# No deadline: how long an example takes depends on who else uses the machine. A failure prints how to repeat it.
settings.register_profile("thorough", deadline=None, print_blob=True)
settings.register_profile("zmqrt", settings.get_profile("thorough"), max_examples=30)
settings.load_profile("zmqrt")
