"""Imported by the server of processes alone: what it starts for others than us sees requests to stop.

The server has these signals blocked, as our workers need it until the run has ended (see ``poa.data.workers``), and the
processes it forks inherit that. Those of the user's own code must end when they are told to.
"""

import os
import signal

from poa.data.workers import STOP_SIGNALS

os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS))
