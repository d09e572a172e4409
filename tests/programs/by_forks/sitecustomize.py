"""Makes a program's workers forks of it, whatever type it asks for: put this folder in front of PYTHONPATH."""

import sys


class Finder:
    """Waits for the module that chooses how workers start, so that nothing is imported that the program does not import."""

    def find_spec(self, name, path=None, target=None):
        if name != "trio_offload._launch.select":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            choose = module.launcher_for

            def launcher_for(options):
                from trio_offload._launch.fork import ForkLauncher

                return ForkLauncher(options, choose(options).trace)

            module.launcher_for = launcher_for

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
