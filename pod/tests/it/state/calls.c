// Every call that can wait, each in a child of its own: prints "CASE ok" when the call ended as it would
// have ended without a stop, else what it gave. The parent ends those that have no time-out.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WAIT 4
static struct timespec ts = {WAIT, 0};
static int go[2], sv[2], sem, queue;
static volatile sig_atomic_t got;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}
static void on(int s) { got = s; }

static long sleep_plain(void) { return syscall(SYS_nanosleep, &ts, 0); }
static long sleep_rest(void) { struct timespec r; return nanosleep(&ts, &r); }
static long sleep_clock(void) { return -clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, 0); }
static long sleep_until(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  t.tv_sec += WAIT;
  return -clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0);
}
static long do_poll(void) { struct pollfd p = {sv[0], POLLIN, 0}; return poll(&p, 1, WAIT * 1000); }
static long do_ppoll(void) { struct pollfd p = {sv[0], POLLIN, 0}; return ppoll(&p, 1, &ts, 0); }
static long do_select(void) {
  fd_set s;
  FD_ZERO(&s);
  FD_SET(sv[0], &s);
  struct timeval t = {WAIT, 0};
  return select(sv[0] + 1, &s, 0, 0, &t);
}
static long do_pselect(void) {
  fd_set s;
  FD_ZERO(&s);
  FD_SET(sv[0], &s);
  return pselect(sv[0] + 1, &s, 0, 0, &ts, 0);
}
static long do_epoll(void) {
  int e = epoll_create1(0);
  struct epoll_event v = {EPOLLIN, {0}};
  epoll_ctl(e, EPOLL_CTL_ADD, sv[0], &v);
  return epoll_wait(e, &v, 1, WAIT * 1000);
}
static long do_epoll2(void) {
  int e = epoll_create1(0);
  struct epoll_event v;
  return syscall(SYS_epoll_pwait2, e, &v, 1, &ts, 0, 0);
}
static int word;
static long timed_out(long r) { return r == -1 && errno == ETIMEDOUT ? 0 : r == -1 ? -1 : -1000; }
static long futex_relative(void) { return timed_out(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &ts, 0, 0)); }
static long futex_date(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  t.tv_sec += WAIT;
  return timed_out(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &t, 0, -1));
}
static long again(long r) { return r == -1 && errno == EAGAIN ? 0 : r == -1 ? -1 : -1000; }
static long do_recv(void) {
  struct timeval t = {WAIT, 0};
  char c;
  setsockopt(sv[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
  return again(recv(sv[0], &c, 1, 0));
}
static long do_sigtimedwait(void) {
  sigset_t s;
  sigemptyset(&s);
  sigaddset(&s, SIGUSR2);
  sigprocmask(SIG_BLOCK, &s, 0);
  return again(sigtimedwait(&s, 0, &ts));
}
static long do_semtimedop(void) {
  struct sembuf b = {0, -1, 0};
  return again(semtimedop(sem, &b, 1, &ts));
}
static long do_semop(void) { struct sembuf b = {1, -1, 0}; return semop(sem, &b, 1); }
static long do_msgrcv(void) { struct { long t; char c; } m; return msgrcv(queue, &m, 1, 7, 0) == 1 ? 0 : -1; }
static long interrupted(long r) { return r == -1 && errno == EINTR && got == SIGUSR1 ? 0 : -1000; }
static long do_pause(void) { return interrupted(pause()); }
static long do_sigsuspend(void) {
  sigset_t s;
  sigemptyset(&s);
  sigaddset(&s, SIGUSR1);
  sigprocmask(SIG_BLOCK, &s, 0);
  sigemptyset(&s);
  return interrupted(sigsuspend(&s));
}
static long epoll_signalled(void) {
  int e = epoll_create1(0);
  struct epoll_event v;
  return interrupted(epoll_wait(e, &v, 1, -1));
}
static long do_read(void) { char c; return read(go[0], &c, 1); }
static long do_wait4(void) {
  pid_t p = fork();
  if (!p) {
    char c;
    _exit(read(go[0], &c, 1) == 0 ? 7 : 1);
  }
  int st;
  return waitpid(p, &st, 0) == p && WIFEXITED(st) && WEXITSTATUS(st) == 7 ? 0 : -1;
}

static struct { const char *name; long (*call)(void); int timed; int signal; } cases[] = {
    {"nanosleep", sleep_plain, 1, 0},       {"nanosleep+rest", sleep_rest, 1, 0},
    {"clock_nanosleep", sleep_clock, 1, 0}, {"clock_nanosleep+date", sleep_until, 1, 0},
    {"poll", do_poll, 1, 0},                {"ppoll", do_ppoll, 1, 0},
    {"select", do_select, 1, 0},            {"pselect", do_pselect, 1, 0},
    {"epoll_wait", do_epoll, 1, 0},         {"epoll_pwait2", do_epoll2, 1, 0},
    {"futex", futex_relative, 1, 0},        {"futex+date", futex_date, 1, 0},
    {"recv", do_recv, 1, 0},                {"sigtimedwait", do_sigtimedwait, 1, 0},
    {"semtimedop", do_semtimedop, 1, 0},    {"semop", do_semop, 0, 0},
    {"msgrcv", do_msgrcv, 0, 0},            {"pause", do_pause, 0, SIGUSR1},
    {"sigsuspend", do_sigsuspend, 0, SIGUSR1}, {"epoll+signal", epoll_signalled, 0, SIGUSR1},
    {"read", do_read, 0, 0},                {"wait4", do_wait4, 0, 0},
};
#define N (int)(sizeof cases / sizeof *cases)

static int wanted(int i, const char *skip) {
  return !strstr(skip, cases[i].name);
}
static void child(int i) {
  char line[128];
  double t = now();
  close(go[1]);
  errno = 0;
  long r = cases[i].call();
  int e = errno;
  const char *early = cases[i].timed && now() - t < WAIT ? " early" : "";
  int n = r == 0 && !*early ? snprintf(line, sizeof line, "%s ok\n", cases[i].name)
                            : snprintf(line, sizeof line, "%s %ld errno %d%s\n", cases[i].name, r, e, early);
  write(1, line, n);
  _exit(0);
}

int main(int argc, char **argv) {
  const char *skip = argc > 1 ? argv[1] : "";
  pid_t pids[N];
  int timed = 0, st;
  struct sigaction sa = {.sa_handler = on};
  sigaction(SIGUSR1, &sa, 0);
  pipe(go);
  if (strstr(skip, "recv")) pipe(sv);
  else socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
  if (!strstr(skip, "sem")) sem = semget(IPC_PRIVATE, 2, 0600);
  if (!strstr(skip, "msg")) queue = msgget(IPC_PRIVATE, 0600);
  for (int i = 0; i < N; i++) {
    if (!wanted(i, skip)) continue;
    timed += cases[i].timed;
    if (!(pids[i] = fork())) child(i);
  }
  write(1, "ready\n", 6);
  for (int n = 0; n < timed;) {
    pid_t p = wait(&st);
    if (p < 0) { perror("wait"); return 1; }
    for (int i = 0; i < N; i++) n += wanted(i, skip) && p == pids[i] && cases[i].timed;
  }
  for (int i = 0; i < N; i++)
    if (wanted(i, skip) && cases[i].signal) kill(pids[i], cases[i].signal);
  if (!strstr(skip, "sem")) { struct sembuf b = {1, 1, 0}; semop(sem, &b, 1); }
  if (!strstr(skip, "msg")) { struct { long t; char c; } m = {7, 'x'}; msgsnd(queue, &m, 1, 0); }
  close(go[1]);
  while (wait(&st) > 0);
  write(1, "done\n", 5);
  return 0;
}
