"""A hundred processes: groups, sessions, grandchildren, a zombie and a stopped one, sharing an anonymous map.

Each counts in its own word of the shared memory and shares four megabytes that were filled before
the fork. The first process answers over HTTP.
"""

import http.server
import json
import mmap
import os
import signal
import struct
import sys
import time
import zlib

COUNT = 100
shared = mmap.mmap(-1, 8 * COUNT)
legacy = os.urandom(4 << 20)
SUM = zlib.crc32(legacy[:65536])


def count(number):
    value = 0
    while True:
        time.sleep(0.05)
        value += 1
        assert zlib.crc32(legacy[:65536]) == SUM
        struct.pack_into("q", shared, 8 * number, value)


def sprout(number):
    pid = os.fork()
    if pid:
        return pid
    if number % 5 == 1:
        os.setsid()
    elif number % 5 == 2:
        os.setpgid(0, 0)
    if number % 10 == 3:
        # A grandchild counts; this one waits for it.
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            os._exit(0)
    count(number)


pids = [sprout(number) for number in range(COUNT)]
zombie = os.fork()
if zombie == 0:
    os._exit(7)
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
sleeper = os.fork()
if sleeper == 0:
    os.setpgid(0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    signal.pause()
os.waitid(os.P_PID, sleeper, os.WSTOPPED | os.WNOWAIT)


def state(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return {"ppid": int(fields[1]), "pgid": int(fields[2]), "sid": int(fields[3])}


def letter(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        alive = {str(n): struct.unpack_from("q", shared, 8 * n)[0] for n in range(COUNT)}
        fixed = {str(pid): state(pid) for pid in [os.getpid(), zombie, sleeper, *pids]}
        fixed.update(zombie=letter(zombie), sleeper=letter(sleeper), sum=zlib.crc32(legacy[:65536]) == SUM)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"alive": alive, "fixed": fixed}).encode())

    def log_message(self, *_):
        pass


http.server.HTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
