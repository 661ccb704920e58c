// What a program sees of System V objects; prints no id.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define SAY(what, ok) printf("%s: %s\n", what, (ok) ? "yes" : "no")
#define KEY 0x5eed0bad

static void say(const char *what, long r) {
    printf("%s: %s\n", what, r < 0 ? strerror(errno) : "ok");
}

static void hit(int s) { (void)s; }

static void shm(void) {
    struct shmid_ds d;
    int id = shmget(KEY, 4096, IPC_CREAT | IPC_EXCL | 0600);
    say("shmget", id);
    say("shmget again", shmget(KEY, 4096, IPC_CREAT | IPC_EXCL | 0600));
    SAY("shmget finds it", shmget(KEY, 0, 0) == id);
    say("shmget larger", shmget(KEY, 8192, 0));
    say("shmget of no key", shmget(KEY + 1, 4096, 0));
    char *a = shmat(id, 0, 0), *b;
    pid_t p = fork();
    if (!p) {
        b = shmat(id, 0, 0);
        strcpy(b, "hello");
        _exit(0);
    }
    waitpid(p, 0, 0);
    printf("written by a child: %s\n", a);
    say("shmctl", shmctl(id, IPC_STAT, &d));
    SAY("its key", d.shm_perm.__key == KEY);
    SAY("its maker", d.shm_cpid == getpid() && d.shm_lpid == p && d.shm_nattch == 1);
    say("shmdt", shmdt(a));
    say("shmat of no id", (long)shmat(123456, 0, 0));
    say("shmctl of no id", shmctl(123456, IPC_STAT, &d));
    say("shmctl to a bad pointer", shmctl(id, IPC_STAT, (void *)8));
    say("remove", shmctl(id, IPC_RMID, 0));
    say("shmat after that", (long)shmat(id, 0, 0));
    SAY("private ones differ", (id = shmget(IPC_PRIVATE, 1, 0600)) != shmget(IPC_PRIVATE, 1, 0600));
    shmctl(id, IPC_RMID, 0);
    shmctl(id + 1, IPC_RMID, 0);
}

static void sem(void) {
    int id = semget(KEY, 2, IPC_CREAT | 0600);
    struct sembuf up = {1, 1, 0}, down = {1, -1, 0};
    say("semget", id);
    pid_t p = fork();
    if (!p) {
        usleep(50000);
        _exit(semop(id, &up, 1) != 0);
    }
    say("semop waits", semop(id, &down, 1));
    SAY("who was last", semctl(id, 1, GETPID) == getpid());
    waitpid(p, 0, 0);
    struct timespec t = {0, 30000000};
    say("semtimedop", semtimedop(id, &down, 1, &t));
    struct sigaction a = {.sa_handler = hit, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &a, 0);
    struct itimerval i = {{0, 30000}, {0, 30000}}, off = {0};
    setitimer(ITIMER_REAL, &i, 0);
    int r = semop(id, &down, 1), e = errno;
    setitimer(ITIMER_REAL, &off, 0);
    errno = e;
    say("semop with a signal", r);
    say("remove", semctl(id, 0, IPC_RMID));
    say("semop after that", semop(id, &up, 1));
}

static void msg(void) {
    struct { long type; char text[8]; } m = {1, "hello"}, got = {0};
    struct msqid_ds d;
    int id = msgget(KEY, IPC_CREAT | 0600);
    say("msgget", id);
    pid_t p = fork();
    if (!p) {
        usleep(50000);
        _exit(msgsnd(id, &m, sizeof m.text, 0) != 0);
    }
    SAY("msgrcv waits", msgrcv(id, &got, sizeof got.text, 0, 0) == 8 && !strcmp(got.text, "hello"));
    say("msgctl", msgctl(id, IPC_STAT, &d));
    SAY("who used it", d.msg_lspid == p && d.msg_lrpid == getpid() && d.msg_perm.__key == KEY);
    waitpid(p, 0, 0);
    say("msgrcv of none", msgrcv(id, &got, 8, 0, IPC_NOWAIT));
    say("remove", msgctl(id, IPC_RMID, 0));
    say("msgsnd after that", msgsnd(id, &m, 8, 0));
}

int main(void) {
    setvbuf(stdout, 0, _IONBF, 0);
    shm();
    sem();
    msg();
    return 0;
}
