"""What this machine is, beside what other programs tell of it."""

import os
import platform
import subprocess
import sys

import pytest

from textlstm.machine import processor, usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are set aside on Linux")
def test_cores_are_those_that_a_process_may_use():
    told = subprocess.run(["nproc"], stdout=subprocess.PIPE, check=True, env={"PATH": os.environ["PATH"]})
    assert usable_cores() == int(told.stdout)
    program = (
        "import os; from textlstm.machine import usable_cores; "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(usable_cores())"
    )
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout == b"1\n"


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux has /proc/cpuinfo")
def test_a_processor_has_the_name_that_the_system_gives_it():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = {line.partition(":")[2].strip() for line in file if line.startswith("model name")}
    assert processor() in (names if names else {platform.processor(), platform.machine()})
