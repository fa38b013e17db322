"""The ground floor: errors, files and locks, processes, weights, versions, precision."""
