"""Options: pydantic models from which flags, YAML keys, defaults, help and validation come."""
