"""What the project's two tools cost on this machine, each beside something run in the same minutes: `make bench`."""
import os
import platform

import export
import runner

if __name__ == "__main__":
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores\n")
    export.export_table()
    print()
    runner.runner_table()
