"""The order of work on a lent GPU: `first_run.sh`, and checks that run one by one (`python -m benchmarks.gpu`)."""
