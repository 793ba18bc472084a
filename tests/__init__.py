"""The tests of headscope, on one thread a process.

Set before numpy and torch are imported, which read it then; processes that tests start get it from here. Tensors are
tiny: a second thread costs more than it gives, and many times more on a busy machine, where threads wait for another.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
