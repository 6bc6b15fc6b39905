"""Limits of QPU time and money: what has been billed, and whether more may be asked for."""

from __future__ import annotations

from qrkt_hw.backends.device.pricing import prices
from qrkt_hw.errors import UserError

PLAN = "payg"  # whose price counts for limits of money


class Budget:
    """A limit on QPU seconds, on money, or on both; without either nothing is limited.

    Args:
        qpu_seconds: that may be billed; None for no limit.
        usd: that may be billed, at pay-as-you-go prices; None for no limit.
        where: the flag or key that sets the limit of seconds, for messages.
    """

    def __init__(
        self, qpu_seconds: float | None = None, usd: float | None = None, where: str = "--max-qpu-seconds"
    ) -> None:
        self.qpu_seconds, self.usd, self.where = qpu_seconds, usd, where
        self.billed = 0.0
        price = prices().plans[PLAN].usd_per_second
        by_cost = usd / price if usd is not None and price else None  # a price of 0 is no limit
        self.by_cost = by_cost is not None and (qpu_seconds is None or by_cost < qpu_seconds)
        self.limit = by_cost if self.by_cost else qpu_seconds

    @property
    def flag(self) -> str | None:
        """The flag that was given; None where neither was."""
        return self.where if self.qpu_seconds is not None else "--max-cost" if self.usd is not None else None

    @property
    def left(self) -> float | None:
        """Seconds that are left, at least 0; None without a limit."""
        return None if self.limit is None else max(0.0, self.limit - self.billed)

    def admit(self, seconds: float) -> None:
        """Let a job of so many estimated seconds through.

        Raises:
            UserError: it would exceed the limit; names limit, billed and needed.
        """
        if self.limit is not None and self.billed + seconds > self.limit:
            over = self.billed + seconds - self.limit
            raise UserError(
                f"{self.named}: {self.billed:.1f} s are billed and the next job needs {seconds:.1f} s, "
                f"{over:.1f} s more than the limit; what came back is kept"
            )

    def charge(self, seconds: float) -> None:
        """Add what a job was billed."""
        self.billed += seconds

    @property
    def named(self) -> str:
        """The limit that binds, with its flag and value."""
        if self.by_cost:
            return f"--max-cost {self.usd:g} USD ({self.limit:.1f} s)"
        return f"{self.where} {self.qpu_seconds:g} s"
