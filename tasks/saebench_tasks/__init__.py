"""The built-in tasks, one module (or small package) a task."""
