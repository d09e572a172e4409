"""Runs cells in a Jupyter kernel, as a notebook's page does.

    python notebook.py CELLS ANSWER [HOW]

CELLS is a JSON list of cells: each a text, or a text with `interrupt_at`, the path of a file (once that is there the kernel is
interrupted), or with `until`, a text that is waited for: what is written to a descriptor may be shown after the cell's end.
ANSWER gets, as JSON, what each cell gave (lists of `[kind, text]`), and who was left in the kernel's session at the end. HOW it
ends: `quit` (the default: it is asked to) or `kill` (as «restart the kernel» does when it has to).
"""

import json
import sys
import threading
import time
from pathlib import Path

from jupyter_client.manager import KernelManager
from running import TIMEOUT, left_in_session

PATIENCE = TIMEOUT / 2


def main(cells, answer, how="quit"):
    manager = KernelManager(kernel_name="python3", transport="ipc")
    manager.start_kernel()
    pid = manager.provisioner.pid
    given = []
    try:
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=PATIENCE)
        for cell in json.loads(Path(cells).read_text()):
            text, options = (cell, {}) if isinstance(cell, str) else cell
            given.append(given_by(client, manager, text, **options))
        client.stop_channels()
    finally:
        manager.shutdown_kernel(now=how == "kill")
        manager.context.destroy()
    # It is the leader of a session of its own; its workers are in that one too.
    Path(answer).write_text(json.dumps({"cells": given, "left": left_in_session(pid)}))


def given_by(client, manager, cell, interrupt_at=None, until=None):
    outputs = []

    def take(message):
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            outputs.append([content["name"], content["text"]])
        elif kind == "execute_result":
            outputs.append(["result", content["data"]["text/plain"]])
        elif kind == "error":
            outputs.append(["error", f"{content['ename']}: {content['evalue']}"])

    if interrupt_at is not None:
        threading.Thread(target=interrupt, args=(manager, Path(interrupt_at)), daemon=True).start()
    client.execute_interactive(cell, timeout=PATIENCE, output_hook=take)
    while until is not None and not any(until in text for _, text in outputs):
        take(client.get_iopub_msg(timeout=PATIENCE))
    return outputs


def interrupt(manager, sign):
    while not sign.exists():
        time.sleep(0.01)
    manager.interrupt_kernel()


if __name__ == "__main__":
    main(*sys.argv[1:])
