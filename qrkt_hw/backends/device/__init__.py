"""What makes device time cheap, clean and safe: devices, placement, time and price formulas."""
