"""One of every kernel object that a descriptor or an id can stand for, each looked at on every request.

/state is JSON: numbers under "alive" must grow, everything under "fixed" must stay what it is. What
can only be read by taking it away is put back. IPC objects, which outlive a process, are made in a
pod only.
"""

import collections
import ctypes
import fcntl
import http.server
import json
import mmap
import os
import select
import signal
import struct
import sys
import tempfile
import termios
import threading

alive = collections.Counter()
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
here = tempfile.mkdtemp(dir=os.path.dirname(os.path.abspath(sys.argv[0])))


def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def again(fd, size=4096):
    """Reads what waits and writes it back."""
    data = os.read(fd, size)
    os.write(ends[fd], data)
    return data.hex()


pipe, pipe_in = os.pipe()
os.write(pipe_in, b"queued" * 1000)
packets, packets_in = os.pipe2(os.O_DIRECT)
os.write(packets_in, b"one")
os.write(packets_in, b"two!")
os.mkfifo(here + "/fifo")
fifo = os.open(here + "/fifo", os.O_RDWR)
os.write(fifo, b"by name")
ends = {pipe: pipe_in, packets: packets_in, fifo: fifo}

counter = call("eventfd", 5, os.O_NONBLOCK)
semaphore = call("eventfd", 3, os.O_NONBLOCK | 1)
memory = os.memfd_create("a memory", os.MFD_ALLOW_SEALING)
os.write(memory, b"contents")
fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
shared = mmap.mmap(-1, 1 << 20)

timer = call("timerfd_create", 1, os.O_NONBLOCK)
call("timerfd_settime", timer, 0, struct.pack("qqqq", 0, 10_000_000, 0, 10_000_000), None)
far = call("timerfd_create", 0, os.O_NONBLOCK)
call("timerfd_settime", far, 3, struct.pack("qqqq", 0, 0, 4_102_444_800, 0), None)

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
mask = struct.pack("Q", 1 << (signal.SIGUSR1 - 1)) + bytes(120)
signals = call("signalfd", -1, mask, os.O_NONBLOCK)
watch = call("inotify_init1", os.O_NONBLOCK)
os.mkdir(here + "/watched")
watched = call("inotify_add_watch", watch, (here + "/watched").encode(), 0x100)

poll = select.epoll()
gone = os.dup(pipe)
poll.register(gone, select.EPOLLIN)
os.close(gone)
poll.register(counter, select.EPOLLIN)
poll.register(signals, select.EPOLLIN)
outer = select.epoll()
outer.register(poll, select.EPOLLIN)

child = os.fork()
if child == 0:
    while True:
        shared[0:8] = struct.pack("Q", struct.unpack("Q", shared[0:8])[0] + 1)
        select.select([], [], [], 0.01)
process = os.pidfd_open(child)
dead = os.fork()
if dead == 0:
    os._exit(0)
corpse = os.pidfd_open(dead)
os.waitpid(dead, 0)

whole = open(here + "/whole", "w")
fcntl.flock(whole, fcntl.LOCK_EX)
part = open(here + "/part", "w")
fcntl.lockf(part, fcntl.LOCK_EX, 10, 5)

master, slave = os.openpty()
quiet = termios.tcgetattr(slave)
quiet[3] &= ~termios.ECHO
termios.tcsetattr(slave, termios.TCSANOW, quiet)
termios.tcsetwinsize(slave, (33, 77))
os.write(master, b"typed ahead\n")

if os.path.exists("/dev/shm"):
    stored = tempfile.TemporaryFile("w+", dir="/dev/shm")
    stored.write("in shared memory")
    stored.flush()

in_pod = open("/proc/1/comm").read().startswith("pod-init")
if in_pod:
    segment = call("shmget", 77, 8192, 0o1600)
    attached = call("shmat", segment, None, 0)
    ctypes.memmove(attached, b"segment", 7)
    parting = call("shmget", 0, 4096, 0o1600)
    parting_at = call("shmat", parting, None, 0)
    ctypes.memmove(parting_at, b"marked", 6)
    call("shmctl", parting, 0, None)
    semaphores = call("semget", 78, 2, 0o1600)
    call("semctl", semaphores, 1, 16, 7)
    messages = call("msgget", 79, 0o1600)
    call("msgsnd", messages, struct.pack("q", 3) + b"hello", 5, 0)
    queue = call("mq_open", b"/jobs", os.O_CREAT | os.O_RDWR | os.O_NONBLOCK, 0o600, None)
    call("mq_send", queue, b"job", 3, 4)


def ipc():
    text = ctypes.create_string_buffer(8208)
    length = call("msgrcv", messages, text, 8192, 0, 0o4000)
    message = text.raw[: 8 + length]
    call("msgsnd", messages, message, length, 0)
    size = call("mq_receive", queue, text, 8192, None)
    job = text.raw[:size]
    call("mq_send", queue, job, size, 4)
    return {
        "segment": [call("shmget", 77, 0, 0) == segment, ctypes.string_at(attached, 8).hex()],
        "marked": ctypes.string_at(parting_at, 6).hex(),
        "semaphores": [call("semget", 78, 0, 0) == semaphores, call("semctl", semaphores, 1, 12)],
        "message": message.hex(),
        "job": job.hex(),
    }


def held(try_lock):
    """Whether another process is kept out."""
    pid = os.fork()
    if pid == 0:
        try:
            try_lock()
            os._exit(1)
        except OSError:
            os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def expiry(fd):
    now = ctypes.create_string_buffer(32)
    call("timerfd_gettime", fd, now)
    return struct.unpack("qqqq", now.raw)


def terminal():
    typed = os.read(slave, 100)
    os.write(master, typed)
    os.write(slave, b"shown\n")
    return [typed.decode(), os.read(master, 100).decode(), os.ttyname(slave), termios.tcgetwinsize(slave)]


def events():
    names = {pipe: "pipe", counter: "counter", signals: "signals", gone: "gone"}
    ready = sorted(names.get(fd, str(fd)) for fd, _ in poll.poll(0))
    return [ready, len(outer.poll(0))]


def fixed():
    value = os.read(counter, 8)
    os.write(counter, value)
    ones = [os.read(semaphore, 8)[0] for _ in range(2)]
    os.write(semaphore, struct.pack("Q", 2))
    facts = {
        "pipe": again(pipe, 65536),
        "packets": [again(packets), again(packets)],
        "fifo": again(fifo),
        "eventfd": [value.hex(), ones],
        "memfd": [os.pread(memory, 100, 0).decode(), fcntl.fcntl(memory, fcntl.F_GET_SEALS)],
        "memfd name": os.readlink(f"/proc/self/fd/{memory}"),
        "timer": [expiry(timer)[1], expiry(far)[2] > 1_000_000_000],
        "epoll": events(),
        "pidfds": [select.select([fd], [], [], 0)[0] == [fd] for fd in (process, corpse)],
        "flock": held(lambda: fcntl.flock(open(here + "/whole"), fcntl.LOCK_SH | fcntl.LOCK_NB)),
        "posix lock": held(lambda: fcntl.lockf(open(here + "/part", "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 9)),
        "free": not held(lambda: fcntl.lockf(open(here + "/part", "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)),
        "terminal": terminal(),
    }
    if os.path.exists("/dev/shm"):
        stored.seek(0)
        facts["shared memory file"] = stored.read()
    if in_pod:
        facts["ipc"] = ipc()
    return facts


def exercise():
    """Makes each thing that reports events report one."""
    alive["timerfd"] += struct.unpack("Q", os.read(timer, 8))[0] if select.select([timer], [], [], 1)[0] else 0
    os.kill(os.getpid(), signal.SIGUSR1)
    alive["signalfd"] += os.read(signals, 128)[0] == signal.SIGUSR1
    name = tempfile.NamedTemporaryFile(dir=here + "/watched").name
    event = struct.unpack_from("iIII", os.read(watch, 4096))
    alive["inotify"] += event[:2] == (watched, 0x100) and not os.path.exists(name)
    alive["shared with the child"] = struct.unpack("Q", shared[0:8])[0]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        exercise()
        answer = json.dumps({"alive": alive, "fixed": fixed()})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


assert threading.active_count() == 1, "signals to the process must reach the only thread"
http.server.HTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
