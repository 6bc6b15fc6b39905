"""Run the command line from a checkout: ``python cli.py train``. Installed, the same is ``qrkt-hw``."""

from qrkt_hw.commands import main

if __name__ == "__main__":
    main()
