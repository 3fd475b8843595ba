"""A process that converts blocks; `tasks.data.workers` starts it and talks to it.

Over a socket comes first what is wanted, then one block after another; a portion goes back for each. It ends when the
other side is gone.
"""

import os
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection

from tasks.data.conversion import Wanted, convert


def main(channel: int) -> None:
    """Convert blocks until the other side closes.

    Args:
        channel: Descriptor of the socket.
    """
    os.set_inheritable(channel, False)
    connection = Connection(channel)
    with suppress(EOFError, ConnectionError):
        wanted: Wanted = connection.recv()
        while True:
            block, most = connection.recv()
            try:
                connection.send(convert(block, wanted, most))
            except ConnectionError:
                raise
            except Exception:  # ours, whatever it is: the other side shows it
                connection.send(traceback.format_exc())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it decides
    main(int(sys.argv[1]))
