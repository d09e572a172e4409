# The first line is a comment, so that it can be left out (python -x).
"""What this process and a worker of it see of their interpreters, as JSON in a file: {"parent": ..., "worker": ...}.

    compare_interpreters.py FOLDERS FILE [CHANGE] ...

With some switches nothing would find this folder or the packages, so FOLDERS are appended to sys.path. CHANGE is Python
code that is run before the worker starts; only the first one that begins with "change:".
"""

import os
import sys

ANSWER = sys.argv[2]
for _folder in sys.argv[1].split(os.pathsep):
    if _folder not in sys.path:
        sys.path.append(_folder)

import json  # noqa: E402

import interpreter_facts  # noqa: E402
import trio  # noqa: E402

import trio_offload  # noqa: E402


async def main():
    for argument in sys.argv[3:]:
        if argument.startswith("change:"):
            exec(argument.removeprefix("change:"), {})
            break
    parent = interpreter_facts.facts()
    async with trio_offload.open_worker_context() as context:
        worker = await context.run_sync(interpreter_facts.facts)
    return {"parent": parent, "worker": worker}


if __name__ == "__main__":
    found = json.dumps(trio.run(main))
    with open(ANSWER, "w", encoding="ascii") as file:
        file.write(found)
