"""Limits of QPU time and money: what has been billed, and whether more may be asked for."""

from __future__ import annotations

from qrkt_hw.backends.device.pricing import prices
from qrkt_hw.errors import UserError

PLAN = "payg"  # whose price counts for limits of money


class Budget:
    """A limit on QPU seconds, on money, or on both.

    Args:
        max_seconds: QPU seconds; None for no limit.
        max_cost: USD; None for no limit.
        usd_per_second: price of a QPU second; needed for ``max_cost``.
        where: the flag or key that set the limit of seconds, for messages.

    Raises:
        ValueError: a limit of money without a price.
    """

    def __init__(
        self,
        max_seconds: float | None = None,
        max_cost: float | None = None,
        usd_per_second: float | None = None,
        where: str = "--max-qpu-seconds",
    ) -> None:
        if max_cost is not None and usd_per_second is None:
            raise ValueError("max_cost needs usd_per_second")
        self.max_seconds, self.max_cost, self.usd_per_second, self.where = max_seconds, max_cost, usd_per_second, where
        self.billed = 0.0

    @classmethod
    def of(cls, backend: str, own: float | None, max_seconds: float | None, max_cost: float | None) -> Budget:
        """The limits of the flags, else the backend's own; money counts at pay-as-you-go prices.

        Args:
            backend: its name, for messages.
            own: QPU seconds that its entry allows; None for no limit.
            max_seconds, max_cost: QPU seconds and USD by flags.
        """
        price = prices().plans[PLAN].usd_per_second
        if max_seconds is None and max_cost is None:
            return cls(own, None, price, f"max_seconds of backend {backend}")
        return cls(max_seconds, max_cost, price)

    @property
    def limit(self) -> float | None:
        """Seconds that may be billed in all; None without a limit. A price of 0 is no limit."""
        limits = [] if self.max_seconds is None else [self.max_seconds]
        if self.max_cost is not None and self.usd_per_second:
            limits.append(self.max_cost / self.usd_per_second)
        return min(limits, default=None)

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
        by_cost = (
            self.max_cost is not None
            and self.usd_per_second
            and (self.max_seconds is None or self.max_cost / self.usd_per_second < self.max_seconds)
        )
        if by_cost:
            return f"--max-cost {self.max_cost:g} USD ({self.limit:.1f} s)"
        return f"{self.where} {self.max_seconds:g} s"
