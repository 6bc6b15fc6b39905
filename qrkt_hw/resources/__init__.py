"""What a model or a template costs on a device, and whether it is quantum at all."""
