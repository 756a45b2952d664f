"""An example of a package with plugins for saebench-meta: a loader and a task."""
