"""What every other room stands on: errors, files, processes, weights, versions, precision."""
