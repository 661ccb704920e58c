"""Threads, a subprocess on pipes and an asyncio loop; each shows over HTTP that it is alive.

/put?KEY=VALUE and /get?KEY keep data in memory, /state is JSON: numbers under "alive" must grow,
everything under "fixed" must stay what it is.
"""

import asyncio
import collections
import http.server
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

alive = collections.Counter()
data = {}


def ticker(name):
    while True:
        time.sleep(0.01)
        alive[name] += 1


jobs, results = queue.Queue(), queue.Queue()


def worker():
    while True:
        results.put(jobs.get() * 2)


def boss():
    number = 0
    while True:
        number += 1
        jobs.put(number)
        assert results.get() == 2 * number
        alive["queue"] += 1
        time.sleep(0.005)


child = subprocess.Popen(
    [sys.executable, "-c", "import sys\nfor line in sys.stdin: print(int(line) + 1, flush=True)"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
)


def converse():
    number = 0
    while True:
        child.stdin.write(f"{number}\n")
        child.stdin.flush()
        answer = int(child.stdout.readline())
        assert answer == number + 1, (number, answer)
        number = answer
        alive["subprocess"] += 1
        time.sleep(0.01)


async def beat(name, pause):
    while True:
        await asyncio.sleep(pause)
        alive[name] += 1


async def echo(end):
    reader, writer = await asyncio.open_connection(sock=end)
    while True:
        writer.write(await reader.readexactly(8))
        await writer.drain()


async def ask(end):
    reader, writer = await asyncio.open_connection(sock=end)
    while True:
        token = os.urandom(8)
        writer.write(token)
        assert await reader.readexactly(8) == token
        alive["socketpair"] += 1
        await asyncio.sleep(0.01)


async def loop():
    one, other = socket.socketpair()
    await asyncio.gather(beat("asyncio", 0.01), echo(one), ask(other))


def on_alarm(*_):
    alive["itimer"] += 1


def guard(work, *arguments):
    def run():
        try:
            work(*arguments)
        except BaseException as error:
            data["failed"] = repr(error)
            raise

    threading.Thread(target=run, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        if url.path == "/put":
            data.update(urllib.parse.parse_qsl(url.query))
            answer = "ok"
        elif url.path == "/get":
            answer = data.get(url.query, "")
        else:
            fixed = {"pid": os.getpid(), "child": child.pid, "failed": data.get("failed"), "cwd": os.getcwd()}
            fixed["threads"] = threading.active_count()
            answer = json.dumps({"alive": alive, "fixed": fixed})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
for name in "abc":
    guard(ticker, "thread " + name)
guard(worker)
guard(boss)
guard(converse)
guard(lambda: asyncio.run(loop()))
http.server.HTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
