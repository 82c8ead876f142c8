"""What the tabs share."""

import os
import subprocess
import sys
import threading
from contextvars import ContextVar

from ui.form import in_turn

who = ContextVar("who", default="nobody")


def test_few_draw_at_once_and_one_may_call_another():
    most = 2 * os.cpu_count()
    lock, all_in, go = threading.Lock(), threading.Event(), threading.Event()
    inside = highest = 0

    @in_turn
    def inner(number):
        assert who.get() == number  # as the request is that of who asks
        return number

    @in_turn
    def outer(number):
        nonlocal inside, highest
        with lock:
            inside += 1
            highest = max(highest, inside)
            if inside == most:
                all_in.set()
        go.wait(30)
        with lock:
            inside -= 1
        return inner(number)

    found = []

    def ask(number):
        who.set(number)
        found.append(outer(number))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(3 * most)]
    for thread in threads:
        thread.start()
    assert all_in.wait(30)
    go.set()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == list(range(3 * most)) and highest == most


def test_a_drawing_that_fails_gives_its_place_back():
    @in_turn
    def fail():
        raise KeyError("x")

    for _ in range(4 * os.cpu_count()):
        try:
            fail()
        except KeyError:
            continue
    done = []
    thread = threading.Thread(target=in_turn(lambda: done.append(1)))
    thread.start()
    thread.join(30)
    assert done


def test_what_is_drawn_computes_alone_and_nothing_else_does():
    """In a process of its own, as PyTorch keeps the number of every thread."""
    script = """
import threading, torch
torch.set_num_threads(2)
from ui.form import in_turn
torch.ones(10).exp()
print(in_turn(lambda: [torch.ones(10).exp(), torch.get_num_threads()][1])(), torch.get_num_threads())
other = threading.Thread(target=lambda: print(torch.get_num_threads()))
other.start()
other.join()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["1", "2", "2"]
