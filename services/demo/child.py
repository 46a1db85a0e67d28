"""Runs one `headwater` command as a child that the kernel ends when the demo dies, however that dies.

``python -m services.demo.child PARENT_PID COMMAND [OPTIONS]``
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int) -> None:
    """Asks the kernel for a SIGTERM when the thread that started this process ends.

    Raises:
        SystemExit: The parent is gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        raise SystemExit("the demo is gone")


if __name__ == "__main__":
    end_with_parent(int(sys.argv.pop(1)))
    from services.cli import main

    main()
