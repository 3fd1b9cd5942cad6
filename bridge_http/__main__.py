"""Run the bridge: `zmqrt-bridge`, or `python -m zmqrt.bridge_http`."""

from __future__ import annotations

from ..protocol.descriptors import raise_limit
from ..protocol.errors import ConfigurationError
from ..protocol.logs import configure_logging
from ..protocol.settings import command
from .config import BridgeSettings


@command(BridgeSettings, name="zmqrt-bridge", help="Serve POST /infer over HTTP for the fleet behind a broker.")
def main(settings: BridgeSettings) -> None:
    """Check what must be so before anybody is let in, then serve."""
    settings.check_exposure()
    configure_logging(settings.log_level, settings.log_format, role="bridge")
    settings.warn()
    raise_limit()
    try:
        from .server import serve
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error}; the bridge needs: pip install 'zmqrt[bridge]'") from None
    serve(settings)


if __name__ == "__main__":
    main()
