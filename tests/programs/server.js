// Timers, promises, a worker thread, a child process and an HTTP server.
// /put?KEY=VALUE, /get?KEY, and /state as in server.py.
const http = require('http');
const { Worker } = require('worker_threads');
const { spawn } = require('child_process');

const alive = { interval: 0, immediate: 0, promise: 0, worker: 0, child: 0 };
const data = new Map();

setInterval(() => { alive.interval += 1; }, 10);
setInterval(() => setImmediate(() => { alive.immediate += 1; }), 20);
(async () => {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 15));
    alive.promise += 1;
  }
})();

const worker = new Worker("const { parentPort } = require('worker_threads');" +
  'parentPort.on("message", (n) => parentPort.postMessage(n * 2));', { eval: true });
let sent = 1;
worker.on('message', (answer) => {
  if (answer !== sent * 2) throw new Error(`worker said ${answer} to ${sent}`);
  alive.worker += 1;
  sent += 1;
  setTimeout(() => worker.postMessage(sent), 10);
});
worker.postMessage(sent);

const child = spawn('cat');
child.stdout.on('data', (text) => {
  alive.child += text.length;
  setTimeout(() => child.stdin.write('x'), 10);
});
child.stdin.write('x');

http.createServer((request, response) => {
  const url = new URL(request.url, 'http://pod');
  if (url.pathname === '/put') {
    for (const [key, value] of url.searchParams) data.set(key, value);
    response.end('ok');
  } else if (url.pathname === '/get') {
    response.end(data.get(url.search.slice(1)) ?? '');
  } else {
    response.end(JSON.stringify({ alive, fixed: { pid: process.pid, child: child.pid } }));
  }
}).listen(Number(process.argv[2]), '0.0.0.0');
