"""`python -m saebench_meta.cli`."""

from saebench_meta.cli import main

main()
