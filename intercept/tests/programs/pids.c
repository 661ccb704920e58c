// What a program sees of processes and threads; prints relations between numbers, never numbers.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define SAY(what, ok) printf("%s: %s\n", what, (ok) ? "yes" : "no")
#define NONE 3999999

static void say(const char *what, long r) {
    printf("%s: %s\n", what, r < 0 ? strerror(errno) : "ok");
}

static int *shared;
static volatile int hits;
static void hit(int s) { (void)s, hits++; }

static void handle(int signal, int flags) {
    struct sigaction a = {.sa_handler = hit, .sa_flags = flags};
    sigaction(signal, &a, 0);
}

static void alarms(int on) {
    struct itimerval t = {{0, on * 20000}, {0, on * 20000}};
    setitimer(ITIMER_REAL, &t, 0);
}

static pid_t raw_clone3(struct clone_args *a) { return syscall(SYS_clone3, a, sizeof *a); }

static void forks(void) {
    pid_t me = getpid(), p;
    int st;
    SAY("main thread has the process's number", me == syscall(SYS_gettid));
    if (!(p = fork())) {
        shared[0] = getpid(), shared[1] = getppid(), shared[2] = syscall(SYS_gettid);
        _exit(7);
    }
    SAY("wait returns the child", wait4(p, &st, 0, 0) == p);
    SAY("child's own number", shared[0] == p && shared[2] == p);
    SAY("child's parent", shared[1] == me);
    printf("status %d\n", WEXITSTATUS(st));
    errno = 0;
    say("wait again", wait4(p, &st, 0, 0));
    say("kill it", kill(p, 0));

    volatile int parent_word = 0;
    int *child_word = &shared[3];
    struct clone_args a = {.flags = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID,
                           .parent_tid = (long)&parent_word,
                           .child_tid = (long)child_word,
                           .exit_signal = SIGCHLD};
    if (!(p = raw_clone3(&a)))
        _exit(getpid() != *child_word);
    SAY("clone3's parent word", parent_word == p);
    SAY("clone3's wait", waitpid(p, &st, 0) == p && st == 0);
    say("clone3 with a short struct", syscall(SYS_clone3, &a, 8));
    say("clone3 with a bad pointer", syscall(SYS_clone3, (void *)8, sizeof a));
    p = syscall(SYS_clone, CLONE_PARENT_SETTID | SIGCHLD, 0, &parent_word, 0, 0);
    if (!p) _exit(0);
    SAY("clone's word", parent_word == p && waitpid(p, 0, 0) == p);
    if (!(p = vfork())) _exit(9);
    SAY("vfork", waitpid(p, &st, 0) == p && WEXITSTATUS(st) == 9);
    char *args[] = {"true", 0}, *env[] = {0};
    SAY("posix_spawn", posix_spawnp(&p, "true", 0, 0, args, env) == 0 && waitpid(p, &st, 0) == p && !st);
    SAY("system", system("exit 3") == 3 << 8);
}

static void *thread(void *own) {
    shared[7] = getpid();
    *(volatile int *)own = syscall(SYS_gettid);
    pause();
    return 0;
}

static void threads(void) {
    pthread_t t;
    volatile int tid = 0;
    shared[5] = getpid();
    handle(SIGUSR1, 0);
    hits = 0;
    pthread_create(&t, 0, thread, (void *)&tid);
    while (!tid) sched_yield();
    SAY("a thread has its own number", tid != getpid());
    SAY("and shares the process", shared[7] == shared[5]);
    say("tgkill with a wrong process", syscall(SYS_tgkill, tid, tid, 0));
    int r = syscall(SYS_tgkill, getpid(), tid, SIGUSR1);
    say("tgkill", r);
    pthread_join(t, 0);
    printf("handler ran %d\n", hits);
    for (int i = 0; i < 200 && syscall(SYS_tkill, tid, 0) == 0; i++) usleep(1000);
    say("tkill of a dead thread", syscall(SYS_tkill, tid, 0));
}

static void signals(void) {
    siginfo_t i;
    int st;
    pid_t p = fork();
    if (!p) { pause(); _exit(0); }
    say("kill", kill(p, SIGTERM));
    memset(&i, 0, sizeof i);
    say("waitid", waitid(P_PID, p, &i, WEXITED | WNOWAIT));
    SAY("waitid tells the child", i.si_pid == p && i.si_status == SIGTERM);
    SAY("wait for any", waitpid(-1, &st, 0) == p && WTERMSIG(st) == SIGTERM);
    memset(&i, 0x55, sizeof i);
    say("waitid without children", waitid(P_ALL, 0, &i, WEXITED));
    say("wait without children", waitpid(-1, 0, WNOHANG));
    say("wait with a bad option", wait4(-1, 0, 0x40000000, 0));
    say("kill of nobody", kill(NONE, 0));
    say("kill with a bad signal", kill(getpid(), 99));
    for (int restart = 0; restart < 2; restart++) {
        handle(SIGALRM, restart ? SA_RESTART : 0);
        hits = 0;
        if (!(p = fork())) { usleep(150000); _exit(3); }
        alarms(1);
        errno = 0;
        pid_t w = waitpid(p, &st, 0);
        int e = errno;
        alarms(0);
        printf("waited through signals, restart %d: %s, handler %d\n", restart,
               w == p ? "child" : strerror(e), hits > 0);
        if (w != p) waitpid(p, &st, 0);
    }
    hits = 0;
    handle(SIGALRM, 0);
    pid_t me = getpid();
    alarms(1);
    int failed = 0, otherwise = 0;
    for (int n = 0; n < 3000; n++)
        if (kill(me, 0) || getpgid(0) < 0) failed++, otherwise += errno != EINTR;
    alarms(0);
    // A signal that lands before the supervisor has received the call shows as EINTR: a window of
    // the kernel's that cannot be closed from outside. It never shows twice for one signal.
    SAY("calls that never block failed by signals at most", failed <= hits && !otherwise);
    sigset_t all, old;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &old);
    if (!(p = fork())) _exit(0);
    SAY("with all signals blocked", waitpid(p, 0, 0) == p);
    sigset_t now;
    sigprocmask(SIG_SETMASK, &old, &now);
    SAY("they still were", sigismember(&now, SIGTRAP) == 1);
}

static void groups(void) {
    int st;
    pid_t p = fork();
    if (!p) { pause(); _exit(0); }
    say("setpgid", setpgid(p, p));
    SAY("getpgid", getpgid(p) == p);
    say("setpgid of nobody", setpgid(NONE, 0));
    say("kill the group", kill(-p, SIGKILL));
    SAY("wait for the group", waitpid(-p, &st, 0) == p && WTERMSIG(st) == SIGKILL);
    say("kill a group that is gone", kill(-p, 0));
    say("getpgid of nobody", getpgid(NONE));
    if (!(p = fork())) {
        pid_t s = setsid();
        _exit(!(s == getpid() && getsid(0) == s && getpgrp() == s && setsid() == -1 && errno == EPERM));
    }
    waitpid(p, &st, 0);
    SAY("a session of its own", st == 0);
    int go[2];
    if (pipe(go)) return;
    p = fork();
    if (!p) {
        setpgid(0, 0);
        if (!fork()) { char b; close(go[1]); _exit(read(go[0], &b, 1) != 0 || getpgrp() != shared[6]); }
        shared[6] = getpid();
        _exit(0);
    }
    waitpid(p, &st, 0);
    SAY("a group outlives its leader", kill(-p, 0) == 0);
    close(go[0]), close(go[1]);
}

static void others(void) {
    struct rlimit r;
    struct sched_param s;
    cpu_set_t c;
    int st;
    pid_t p = fork();
    if (!p) { pause(); _exit(0); }
    say("prlimit", prlimit(p, RLIMIT_NOFILE, 0, &r));
    say("sched_getaffinity", sched_getaffinity(p, sizeof c, &c));
    say("sched_getscheduler", sched_getscheduler(p));
    say("sched_getparam", sched_getparam(p, &s));
    errno = 0;
    SAY("getpriority", getpriority(PRIO_PROCESS, p) == 0 && !errno);
    say("getpriority of nobody", getpriority(PRIO_PROCESS, NONE));
    int fd = syscall(SYS_pidfd_open, p, 0);
    say("pidfd_open", fd);
    say("pidfd_open of nobody", syscall(SYS_pidfd_open, NONE, 0));
    say("pidfd_send_signal", syscall(SYS_pidfd_send_signal, fd, SIGKILL, 0, 0));
    SAY("waitid by pidfd", waitid(P_PIDFD, fd, &(siginfo_t){0}, WEXITED) == 0);
    say("prlimit of nobody", prlimit(NONE, RLIMIT_NOFILE, 0, &r));
    SAY("set_tid_address", syscall(SYS_set_tid_address, &st) == getpid());
}

static void many(void) {
    pid_t p[200];
    int seen = 0, st;
    for (int i = 0; i < 200; i++)
        if (!(p[i] = fork())) _exit(i & 127);
    for (int i = 0; i < 200; i++) {
        pid_t w = wait(&st);
        for (int k = 0; k < 200; k++)
            if (p[k] == w && WEXITSTATUS(st) == (k & 127)) p[k] = -1, seen++;
    }
    printf("200 children: %d\n", seen);
}

static void *executes(void *self) {
    char pid[16];
    snprintf(pid, sizeof pid, "%d", getpid());
    execl(self, self, "executed", pid, (char *)0);
    return 0;
}

int main(int argc, char **argv) {
    setvbuf(stdout, 0, _IONBF, 0);
    if (argc > 2) {
        int st;
        pid_t p = fork();
        if (!p) _exit(5);
        SAY("the number stays over an exec by a thread", getpid() == atoi(argv[2]));
        SAY("and children are made", waitpid(p, &st, 0) == p && WEXITSTATUS(st) == 5);
        return 0;
    }
    shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    forks();
    threads();
    signals();
    groups();
    others();
    many();
    pthread_t t;
    pthread_create(&t, 0, executes, argv[0]);
    pause();
    return 1;
}
