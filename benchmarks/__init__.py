"""Programs that measure. They import all they need at once, so libraries are told to be quiet before."""

from seg2any.system.console import quiet_libraries

quiet_libraries()
