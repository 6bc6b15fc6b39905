"""Models: the vision transformer and how options become one."""
