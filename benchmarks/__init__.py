"""Measure speed and memory; see `python -m benchmarks.NAME --help`.

Libraries print when they are imported, so they are silenced before any benchmark imports them.
"""

from seg2any.system.console import quiet_libraries

quiet_libraries()
