"""Check Seg2Any on a GPU: `first_run.sh` in order, `python -m benchmarks.gpu` one by one."""
