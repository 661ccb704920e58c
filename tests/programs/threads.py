"""Two hundred threads, blocked in every way Python knows, and one that goes round and wakes them."""

import http.server
import json
import os
import queue
import select
import sys
import threading
import time

COUNT = 200
rounds = [0] * COUNT
lock = threading.Condition()
turn = [0]


def by_queue(number, box):
    while True:
        box.get()
        rounds[number] += 1


def by_pipe(number, read):
    while True:
        assert os.read(read, 1) == b"x"
        rounds[number] += 1


def by_poll(number, read):
    poll = select.poll()
    poll.register(read, select.POLLIN)
    while True:
        if poll.poll(1000):
            os.read(read, 1)
            rounds[number] += 1


def by_condition(number):
    seen = 0
    while True:
        with lock:
            lock.wait_for(lambda: turn[0] != seen)
            seen = turn[0]
        rounds[number] += 1


wakers = []
for number in range(COUNT):
    kind = number % 4
    if kind == 0:
        box = queue.Queue()
        wakers.append(lambda box=box: box.put(1))
        target, arguments = by_queue, (number, box)
    elif kind == 3:
        target, arguments = by_condition, (number,)
    else:
        read, write = os.pipe()
        wakers.append(lambda write=write: os.write(write, b"x"))
        target, arguments = (by_pipe if kind == 1 else by_poll), (number, read)
    threading.Thread(target=target, args=arguments, daemon=True).start()


def conduct():
    while True:
        for wake in wakers:
            wake()
        with lock:
            turn[0] += 1
            lock.notify_all()
        time.sleep(0.02)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        alive = {str(number): count for number, count in enumerate(rounds)}
        tids = sorted(thread.native_id for thread in threading.enumerate())
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"alive": alive, "fixed": {"pid": os.getpid(), "tids": tids}}).encode())

    def log_message(self, *_):
        pass


threading.Thread(target=conduct, daemon=True).start()
http.server.HTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
