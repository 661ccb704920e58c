// What a program sees of its own endpoints on one port; prints no number that may vary.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static int port;

static struct sockaddr_in at(const char *ip) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, ip, &a.sin_addr);
    return a;
}

static void say(const char *what, int r) {
    printf("%s: %s\n", what, r < 0 ? strerror(errno) : "ok");
}

// Prints one end of a socket; the port only when it is ours.
static void name(const char *what, int fd, int (*call)(int, struct sockaddr *, socklen_t *)) {
    struct sockaddr_storage s = {0};
    socklen_t len = sizeof s;
    char ip[64];
    if (call(fd, (struct sockaddr *)&s, &len) < 0) {
        say(what, -1);
        return;
    }
    int v6 = s.ss_family == AF_INET6;
    void *addr = v6 ? (void *)&((struct sockaddr_in6 *)&s)->sin6_addr
                    : (void *)&((struct sockaddr_in *)&s)->sin_addr;
    int p = ntohs(((struct sockaddr_in *)&s)->sin_port);
    inet_ntop(s.ss_family, addr, ip, sizeof ip);
    printf("%s: %s port %s len %u\n", what, ip, p == port ? "ours" : p ? "other" : "0", len);
}

static volatile int hits;
static void hit(int s) { (void)s, hits++; }

static void interrupted_accept(int l) {
    struct sigaction a = {.sa_handler = hit};
    sigaction(SIGALRM, &a, 0);
    // Again and again: a signal that comes before the call is none of the call's.
    struct itimerval t = {{0, 50000}, {0, 50000}}, off = {0};
    setitimer(ITIMER_REAL, &t, 0);
    int r = accept(l, 0, 0), e = errno;
    setitimer(ITIMER_REAL, &off, 0);
    errno = e;
    say("accept with a signal", r);
    printf("handler ran %d\n", hits > 0);
}

static void pair(int l, struct sockaddr *to, socklen_t len, int nonblocking) {
    struct sockaddr_storage peer;
    socklen_t peer_len = sizeof peer;
    int c = socket(to->sa_family, SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), 0), e = 0;
    int r = connect(c, to, len);
    if (r < 0 && errno == EINPROGRESS) {
        struct pollfd p = {c, POLLOUT, 0};
        poll(&p, 1, 5000);
        socklen_t el = sizeof e;
        getsockopt(c, SOL_SOCKET, SO_ERROR, &e, &el);
        errno = e;
        r = e ? -1 : 0;
    }
    say("connect", r);
    if (r == 0) {
        int s = accept(l, (struct sockaddr *)&peer, &peer_len);
        say("accept", s);
        struct sockaddr_storage own;
        socklen_t own_len = sizeof own;
        getsockname(c, (struct sockaddr *)&own, &own_len);
        printf("peer told is client's own: %d\n",
               ((struct sockaddr_in *)&peer)->sin_port == ((struct sockaddr_in *)&own)->sin_port);
        name("client's peer", c, getpeername);
        name("server's own", s, getsockname);
        char b[6] = "";
        say("write", write(c, "hello", 5));
        say("read", read(s, b, 5));
        printf("%s\n", b);
        close(s);
    }
    close(c);
}

int main(int argc, char **argv) {
    (void)argc;
    port = atoi(argv[1]);
    struct sockaddr_in any = at("0.0.0.0"), lo = at("127.0.0.1");
    int l = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    say("bind", bind(l, (void *)&any, sizeof any));
    name("bound", l, getsockname);
    say("bind again", bind(l, (void *)&any, sizeof any));
    say("getpeername", getpeername(l, (void *)&any, &(socklen_t){sizeof any}));
    any = at("0.0.0.0");
    say("listen", listen(l, 16));
    name("listening", l, getsockname);
    for (int i = 0; i < 2; i++) pair(l, (void *)&lo, sizeof lo, i);

    int second = socket(AF_INET, SOCK_STREAM, 0);
    say("second bind", bind(second, (void *)&lo, sizeof lo));
    say("bind to a short address", bind(second, (void *)&lo, 8));
    say("bind to a long address", bind(second, (void *)&lo, 4096));
    say("bind to a bad pointer", bind(second, (void *)8, sizeof lo));
    say("bind to nothing of ours", bind(99, (void *)&lo, sizeof lo));
    say("bind no socket", bind(0, (void *)&lo, sizeof lo));
    say("listen on no socket", listen(0, 1));
    say("connect to a bad pointer", connect(second, (void *)8, sizeof lo));
    say("getsockname to a bad pointer", getsockname(l, (void *)8, &(socklen_t){16}));
    say("getsockname with a bad length", getsockname(l, (void *)&any, &(socklen_t){-1}));
    struct sockaddr_in part = {0};
    socklen_t len = 4;
    say("getsockname cut short", getsockname(l, (void *)&part, &len));
    printf("len %u port %d addr %x\n", len, ntohs(part.sin_port) == port, part.sin_addr.s_addr);
    interrupted_accept(l);

    struct sockaddr_un u = {.sun_family = AF_UNIX};
    int n = snprintf(u.sun_path + 1, 90, "endpoints-test-%d", getpid());
    int ul = socket(AF_UNIX, SOCK_STREAM, 0), uc = socket(AF_UNIX, SOCK_STREAM, 0);
    say("unix bind", bind(ul, (void *)&u, 3 + n));
    say("unix listen", listen(ul, 1));
    say("unix connect", connect(uc, (void *)&u, 3 + n));
    int d = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in zero = {.sin_family = AF_INET};
    say("udp bind", bind(d, (void *)&zero, sizeof zero));
    say("udp connect", connect(d, (void *)&lo, sizeof lo));

    close(l);
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    l = socket(AF_INET6, SOCK_STREAM, 0);
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    say("v6 bind", bind(l, (void *)&six, sizeof six));
    say("v6 listen", listen(l, 16));
    name("v6 listening", l, getsockname);
    pair(l, (void *)&lo, sizeof lo, 0);
    six.sin6_addr = in6addr_loopback;
    pair(l, (void *)&six, sizeof six, 0);
    close(l);
    say("connect after close", connect(second, (void *)&lo, sizeof lo));
    return 0;
}
