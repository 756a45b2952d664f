"""`python -m saebench_meta` is `saebench`."""

from saebench_meta.cli import main

main()
