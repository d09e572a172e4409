"""Makes a program run its workers as loops in Python: put this folder in front of PYTHONPATH."""

import sys


class Finder:
    """Waits for the module that decides, so that nothing is imported that the program does not import."""

    def find_spec(self, name, path=None, target=None):
        if name != "trio_offload._interpreter.locate":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.runtime = lambda: module.WorkerRuntime("", "", "a test wants it so")

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
