"""Start the service by hand: ``python -m tests.ibm_service``."""

from __future__ import annotations

import argparse
import shlex
import sys

from tests.ibm_service import devices
from tests.ibm_service.server import environment, listen
from tests.ibm_service.state import INSTANCES, Service


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.ibm_service", description=__doc__)
    parser.add_argument("--port", type=int, default=8787, help="0 takes a free one [8787]")
    parser.add_argument("--plan", choices=sorted(INSTANCES), default="premium", help="of the account [premium]")
    parser.add_argument("--key", default="loopback-api-key", help="the API key that is accepted")
    parser.add_argument("--noisy", action="store_true", help="run circuits with the noise of the device's fake backend")
    parser.add_argument("--queue-seconds", type=float, default=0.0, help="how long a job waits [0]")
    parser.add_argument("--run-seconds", type=float, default=0.0, help="how long a job runs at least [0]")
    parser.add_argument("--devices", nargs="*", choices=sorted(devices.FOLDERS), default=list(devices.LISTED))
    options = parser.parse_args()
    service = Service(options.noisy, options.queue_seconds, options.run_seconds, options.key, tuple(options.devices))
    server = listen(service, options.port)
    port = server.server_address[1]
    for name, value in environment(port, options.key, options.plan).items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"# {', '.join(options.devices)} on port {port}, plan {options.plan}; Ctrl-C stops it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
