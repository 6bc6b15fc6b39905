"""IBM Quantum on loopback: a service that the unmodified client talks to, and that misbehaves on demand.

``python -m tests.ibm_service --help`` starts it by hand, :class:`tests.ibm_service.process.Loopback` in tests.
"""
