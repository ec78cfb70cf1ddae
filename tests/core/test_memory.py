"""Inside `kept_memory` freed blocks are used again instead of being asked of the kernel anew; afterwards they are given back."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
import threading

import pytest

from patchclamp.core.memory import kept_memory

BLOCK = 24 << 20
glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back at once")


def page_faults(rounds: int = 20) -> int:
    """Page faults of allocating, filling and freeing one block again and again."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(rounds):
        b"\1" * BLOCK
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def resident() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize()


@glibc_only
def test_a_block_that_was_freed_is_not_asked_of_the_kernel_again() -> None:
    with kept_memory():
        page_faults(2)
        assert page_faults(20) < 100


@glibc_only
def test_what_was_kept_is_given_back_by_the_outermost_block_even_after_an_error() -> None:
    before = resident()
    with pytest.raises(ValueError, match="in the middle"), kept_memory():
        with kept_memory():
            page_faults(2)
        assert resident() > before + BLOCK // 2
        raise ValueError("in the middle")
    assert resident() < before + BLOCK // 2


@glibc_only
def test_blocks_of_several_threads_end_with_the_last_one() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with kept_memory():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    with kept_memory():
        page_faults(2)
    still = page_faults(20)  # the other thread's block goes on
    leave.set()
    thread.join()
    assert still < 100


def test_without_glibc_nothing_happens() -> None:
    code = (
        "import platform; platform.libc_ver = lambda *a, **k: ('', '')\n"
        "from patchclamp.core import memory\n"
        "with memory.kept_memory(): assert memory._glibc() is None and memory._HOLDERS == [0]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
