"""What tensors free is kept for the next ones: by the C library, and in places by size. In processes of their own: it is once a process."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from twoviews import build, config, device, memory, native

FAULTS = """
import resource, sys, torch
from twoviews import memory
if sys.argv[1] == "kept":
    memory.keep_freed_memory()
for _ in range(16):
    torch.ones(16 << 20)  # an aligned block needs a little more than the last one left: the first few do not fit
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.ones(16 << 20)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PLACES = """
import gc, os, re, resource, sys, threading
import torch
from twoviews import memory
before = torch.ones(4 << 20, dtype=torch.uint8)
assert memory.keep_places()
MB = 1 << 20

def tensor(size, value=None):
    return torch.empty(size, dtype=torch.uint8) if value is None else torch.full((size,), value, dtype=torch.uint8)

def mapped():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
"""


def faults(how: str) -> int:
    """Page faults of sixteen tensors of 64 MiB, one after another."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", PLACES + script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True, scope="module")
def _compiler() -> None:
    assert device.compiler(), "these tests need g++ or clang++"
    assert native.library(native.MEMORY) is not None


def test_freed_tensors_are_used_again() -> None:
    """A block that goes back to the system is zeroed page by page when it comes again: a fourth of a training step."""
    glibc = platform.libc_ver()[0] == "glibc"
    assert memory.keep_freed_memory() == glibc
    if glibc:
        assert faults("kept") * 4 < faults("not kept"), "the allocator may still take a block or two anew"


@pytest.mark.parametrize(
    ("freed", "wanted", "same"), [(8, 8, True), (8, 4, True), (8, 5, True), (8, 3, False), (8, 9, False), (1, 1, True), (64, 64, True)]
)
def test_a_place_serves_all_from_half_its_size_on(freed: int, wanted: int, same: bool) -> None:
    run(f"x = tensor({freed} * MB); lay = x.data_ptr(); del x; assert (tensor({wanted} * MB).data_ptr() == lay) == {same}")


def test_of_two_places_the_nearer_in_size_is_taken() -> None:
    run("x, y = tensor(8 * MB), tensor(6 * MB); lay = y.data_ptr(); del x, y; assert tensor(5 * MB).data_ptr() == lay")


def test_what_is_in_use_is_nobody_elses() -> None:
    run("""
kept = [tensor(MB + 4096 * i, i) for i in range(64)]
for i in range(0, 64, 2):
    kept[i] = tensor(2 * MB, 100 + i)
for i, x in enumerate(kept):
    assert (x == (i if i % 2 else 100 + i)).all()
    assert x.data_ptr() % 64 == 0
assert (before == 1).all()
del before
""")


def test_places_too_small_make_room() -> None:
    """A process that goes from many small maps to a few large ones does not hold both."""
    run("""
small = [tensor(2 * MB, 1) for _ in range(128)]
del small
at_most = mapped() + 32 * MB
large = [tensor(64 * MB, 2) for _ in range(4)]
assert mapped() < at_most, (mapped(), at_most)
""")


def test_larger_ones_stay_for_the_next_step() -> None:
    """A step goes from large maps to small ones and back: the large ones must not be mapped anew each time."""
    run("""
def step():
    maps = [tensor(size * MB, 1) for size in (64, 64, 32, 32, 16, 16, 8, 8)]
for _ in range(2):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 1000
""")


@pytest.mark.parametrize(("freed", "between", "again"), [((2,) * 32, 8, (2,) * 27), ((64,), 8, (64,)), ((64, 8), 3, (64, 8))])
def test_no_more_makes_room_than_is_asked_for(freed: tuple[int, ...], between: int, again: tuple[int, ...]) -> None:
    """Nor does what is too large: a step from large maps to small ones would have its large ones mapped anew."""
    run(f"""
places = [tensor(size * MB, 1) for size in {freed}]
del places
held = tensor({between} * MB, 1)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
places = [tensor(size * MB, 1) for size in {again}]
assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 1000
""")


def test_where_memory_ends_idle_places_go_first_and_torchs_own_words_are_said() -> None:
    run("""
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * MB, -1))
x = tensor(250 * MB); del x
tensor(30 * MB)  # does not take that place, and fits beside it
y = tensor(90 * MB)  # only without it
try:
    tensor(400 * MB)
except RuntimeError as error:
    assert "can't allocate memory" in str(error), error
else:
    raise AssertionError("it had no room")
assert tensor(8).sum() is not None
""")


def test_where_memory_ends_for_a_small_tensor_idle_places_go_too() -> None:
    run("""
held = []
x = tensor(250 * MB); del x
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 20 * MB, -1))
for _ in range(100):
    held.append(tensor(MB - 4096))
""")


def test_sizes_change_and_small_tensors_are_torchs() -> None:
    run("""
x = tensor(MB, 3)
x.resize_(3 * MB)
assert (x[:MB] == 3).all()
x.untyped_storage().resize_(0)
y = torch.from_numpy(tensor(2 * MB, 4).numpy())
gc.collect()
tensor(2 * MB, 5)
assert (y == 4).all()
assert tensor(0).numel() == 0 and tensor(100, 7).sum() == 700
""")


def test_threads_take_and_leave_places_at_once() -> None:
    run("""
def work(seed):
    order, held = torch.Generator().manual_seed(seed), []
    for i in range(300):
        size = int(torch.randint(1, 5, (1,), generator=order)) * MB
        held.append(tensor(size, (seed + i) % 251))
        if len(held) > 4:
            x = held.pop(0)
            assert (x == x[0]).all()
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
failed = []
threading.excepthook = lambda args: failed.append(args.exc_value)
for t in threads: t.start()
for t in threads: t.join()
assert not failed, failed
""")


def test_a_forked_process_has_its_own_and_waits_for_nobody() -> None:
    """Another thread allocates all the while: a child that was forked while it held the lock would never end."""
    run("""
done = False
def busy():
    while not done:
        tensor(2 * MB)
thread = threading.Thread(target=busy); thread.start()
x = tensor(4 * MB, 1)
for _ in range(100):
    child = os.fork()
    if not child:
        y = tensor(2 * MB, 2); x.fill_(3)
        os._exit(0 if (y == 2).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
done = True
thread.join()
assert (x == 1).all()
""")


def test_a_map_of_a_block_lies_where_the_last_one_lay_whatever_came_between() -> None:
    """What the C library does not do: between large blocks there come small ones that stay, and then no large one fits."""
    run("""
memory.keep_freed_memory()
def step():
    maps, small = [], []
    for _ in range(8):
        maps.append(tensor(16 * MB, 1)); small.append(tensor(72 << 10, 1))
    return small
stay = [step() for _ in range(2)]
at_most = mapped() + 32 * MB
stay += [step() for _ in range(8)]
assert mapped() < at_most, (mapped(), at_most)
""")


@pytest.mark.parametrize(("words", "kept"), [([], True), (["compile=false"], False)])
def test_a_run_on_a_cpu_keeps_places_where_it_may_compile(words: list[str], kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(memory, "keep_places", lambda: said.append("places"))
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: said.append("freed"))
    build.build(config.load("pretrain", ["recipe=demo", "device=cpu", "threads=1", *words]))
    assert said == ["freed", "places"][: 1 + kept]


def test_without_a_compiler_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda source=native.VIEWS: None)
    assert not memory.keep_places()


def test_each_torch_has_a_library_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is linked with torch: another one's would be loaded and could break."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Path] = []
    real = native._compile
    monkeypatch.setattr(native, "_compile", lambda command, path: made.append(path) or real(command, path))
    for version in ("2.14.1", "2.14.2"):
        monkeypatch.setattr(torch, "__version__", version)
        native.library.__wrapped__(native.MEMORY)
    assert len(set(made)) == 2
