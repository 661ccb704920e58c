//! The rows, one for each syscall, in the order of their numbers.
//!
//! `name(arguments) -> result { Class Verb }`: `V` is a value without a name in it; a
//! missing result is a plain value; a missing verb means that the call carries no name
//! of ours. Argument meanings are those of the man pages and of the kernel's
//! `include/linux/syscalls.h`.

use super::{
    Arg, Class,
    Dir::{In, Out},
    Kind, Row, Sysno, Verb,
};

const fn arg(kind: Kind, dir: super::Dir) -> Arg {
    Arg { kind, dir }
}

const V: Arg = arg(Kind::Value, In);
const FD: Arg = arg(Kind::Fd, In);
const PID: Arg = arg(Kind::Pid, In);
const PIDSET: Arg = arg(Kind::PidSet, In);
const TID: Arg = arg(Kind::Tid, In);
const PGID: Arg = arg(Kind::Pgid, In);
const WHO: Arg = arg(Kind::Who, In);
const KEY: Arg = arg(Kind::Key, In);
const SHM: Arg = arg(Kind::Shm, In);
const SEM: Arg = arg(Kind::Sem, In);
const MSG: Arg = arg(Kind::Msg, In);
const ADDR_IN: Arg = arg(Kind::Sockaddr, In);
const ADDR_OUT: Arg = arg(Kind::Sockaddr, Out);
const MSGHDR_IN: Arg = arg(Kind::Msghdr, In);
const MSGHDR_OUT: Arg = arg(Kind::Msghdr, Out);
const PIDBUF_IN: Arg = arg(Kind::PidBuf, In);
const PIDBUF_OUT: Arg = arg(Kind::PidBuf, Out);
const IPCBUF: Arg = arg(Kind::IpcBuf, Out);
const HOSTBUF_IN: Arg = arg(Kind::HostBuf, In);
const HOSTBUF_OUT: Arg = arg(Kind::HostBuf, Out);

macro_rules! or {
    ($default:expr) => {
        $default
    };
    ($default:expr, $given:expr) => {
        $given
    };
}

macro_rules! rows {
    ($($nr:ident ( $($arg:ident),* ) $(-> $ret:ident)? $({ $class:ident $verb:ident })?;)*) => {
        static ROWS: &[Row] = &[$(Row {
            nr: Sysno::$nr,
            args: &[$($arg),*],
            ret: or!(Kind::Value $(, Kind::$ret)?),
            class: or!(Class::None $(, Class::$class)?),
            verb: or!(Verb::None $(, Verb::$verb)?),
        }),*];
        const ORDER: &[Sysno] = &[$(Sysno::$nr),*];
    };
}

/// Where in the rows each syscall number is; a number without a row does not compile.
static INDEX: [u16; Sysno::table_size()] = {
    let mut index = [u16::MAX; Sysno::table_size()];
    let mut i = 0;
    while i < ORDER.len() {
        index[ORDER[i].id() as usize] = i as u16;
        i += 1;
    }
    let mut nr = Some(Sysno::first());
    while let Some(known) = nr {
        assert!(
            index[known.id() as usize] != u16::MAX,
            "a syscall has no row"
        );
        nr = known.next();
    }
    index
};

/// The row of a syscall.
#[must_use]
pub fn row(nr: Sysno) -> &'static Row {
    &ROWS[usize::from(INDEX[nr.id() as usize])]
}

rows! {
    read(FD, V, V);
    write(FD, V, V);
    open(V, V, V) -> Fd;
    close(FD);
    stat(V, V);
    fstat(FD, V);
    lstat(V, V);
    poll(V, V, V);
    lseek(FD, V, V);
    mmap(V, V, V, V, FD, V);
    mprotect(V, V, V);
    munmap(V, V);
    brk(V);
    rt_sigaction(V, V, V, V);
    rt_sigprocmask(V, V, V, V);
    rt_sigreturn();
    ioctl(FD, V, V) { Pids Pass };
    pread64(FD, V, V, V);
    pwrite64(FD, V, V, V);
    readv(FD, V, V);
    writev(FD, V, V);
    access(V, V);
    pipe(V);
    select(V, V, V, V, V);
    sched_yield();
    mremap(V, V, V, V, V);
    msync(V, V, V);
    mincore(V, V, V);
    madvise(V, V, V);
    shmget(KEY, V, V) -> Shm { Ipc Detour };
    shmat(SHM, V, V) { Ipc Detour };
    shmctl(SHM, V, IPCBUF) { Ipc Detour };
    dup(FD) -> Fd;
    dup2(FD, FD) -> Fd;
    pause();
    nanosleep(V, V);
    getitimer(V, V);
    alarm(V);
    setitimer(V, V, V);
    getpid() -> Pid { Pids Answer };
    sendfile(FD, FD, V, V);
    socket(V, V, V) -> Fd;
    connect(FD, ADDR_IN, V) { Endpoints Detour };
    accept(FD, ADDR_OUT, V) -> Fd { Endpoints Detour };
    sendto(FD, V, V, V, ADDR_IN, V) { Endpoints Pass };
    recvfrom(FD, V, V, V, ADDR_OUT, V) { Endpoints Pass };
    sendmsg(FD, MSGHDR_IN, V) { Endpoints Pass };
    recvmsg(FD, MSGHDR_OUT, V) { Endpoints Pass };
    shutdown(FD, V);
    bind(FD, ADDR_IN, V) { Endpoints Perform };
    listen(FD, V) { Endpoints Perform };
    getsockname(FD, ADDR_OUT, V) { Endpoints Answer };
    getpeername(FD, ADDR_OUT, V) { Endpoints Answer };
    socketpair(V, V, V, V);
    setsockopt(FD, V, V, V, V);
    getsockopt(FD, V, V, V, V);
    clone(V, V, PIDBUF_OUT, PIDBUF_OUT, V) -> Tid { Pids Detour };
    fork() -> Pid { Pids Detour };
    vfork() -> Pid { Pids Detour };
    execve(V, V, V);
    exit(V);
    wait4(PIDSET, V, V, V) -> Pid { Pids Detour };
    kill(PIDSET, V) { Pids Detour };
    uname(HOSTBUF_OUT) { Hosts Answer };
    semget(KEY, V, V) -> Sem { Ipc Detour };
    semop(SEM, V, V) { Ipc Detour };
    semctl(SEM, V, V, IPCBUF) { Ipc Detour };
    shmdt(V);
    msgget(KEY, V) -> Msg { Ipc Detour };
    msgsnd(MSG, V, V, V) { Ipc Detour };
    msgrcv(MSG, V, V, V, V) { Ipc Detour };
    msgctl(MSG, V, IPCBUF) { Ipc Detour };
    fcntl(FD, V, V) { Pids Pass };
    flock(FD, V);
    fsync(FD);
    fdatasync(FD);
    truncate(V, V);
    ftruncate(FD, V);
    getdents(FD, V, V);
    getcwd(V, V);
    chdir(V);
    fchdir(FD);
    rename(V, V);
    mkdir(V, V);
    rmdir(V);
    creat(V, V) -> Fd;
    link(V, V);
    unlink(V);
    symlink(V, V);
    readlink(V, V, V);
    chmod(V, V);
    fchmod(FD, V);
    chown(V, V, V);
    fchown(FD, V, V);
    lchown(V, V, V);
    umask(V);
    gettimeofday(V, V);
    getrlimit(V, V);
    getrusage(V, V);
    sysinfo(V);
    times(V);
    ptrace(V, TID, V, V) { Pids Detour };
    getuid();
    syslog(V, V, V);
    getgid();
    setuid(V);
    setgid(V);
    geteuid();
    getegid();
    setpgid(PID, PGID) { Pids Detour };
    getppid() -> Pid { Pids Answer };
    getpgrp() -> Pgid { Pids Answer };
    setsid() -> Sid { Pids Detour };
    setreuid(V, V);
    setregid(V, V);
    getgroups(V, V);
    setgroups(V, V);
    setresuid(V, V, V);
    getresuid(V, V, V);
    setresgid(V, V, V);
    getresgid(V, V, V);
    getpgid(PID) -> Pgid { Pids Answer };
    setfsuid(V);
    setfsgid(V);
    getsid(PID) -> Sid { Pids Answer };
    capget(PIDBUF_IN, V) { Pids Pass };
    capset(PIDBUF_IN, V) { Pids Pass };
    rt_sigpending(V, V);
    rt_sigtimedwait(V, PIDBUF_OUT, V, V) { Pids Pass };
    rt_sigqueueinfo(PID, V, PIDBUF_IN) { Pids Detour };
    rt_sigsuspend(V, V);
    sigaltstack(V, V);
    utime(V, V);
    mknod(V, V, V);
    uselib(V);
    personality(V);
    ustat(V, V);
    statfs(V, V);
    fstatfs(FD, V);
    sysfs(V, V, V);
    getpriority(V, WHO) { Pids Detour };
    setpriority(V, WHO, V) { Pids Detour };
    sched_setparam(TID, V) { Pids Detour };
    sched_getparam(TID, V) { Pids Detour };
    sched_setscheduler(TID, V, V) { Pids Detour };
    sched_getscheduler(TID) { Pids Detour };
    sched_get_priority_max(V);
    sched_get_priority_min(V);
    sched_rr_get_interval(TID, V) { Pids Detour };
    mlock(V, V);
    munlock(V, V);
    mlockall(V);
    munlockall();
    vhangup();
    modify_ldt(V, V, V);
    pivot_root(V, V);
    _sysctl(V);
    prctl(V, V, V, V, V) { Pids Pass };
    arch_prctl(V, V);
    adjtimex(V);
    setrlimit(V, V);
    chroot(V);
    sync();
    acct(V);
    settimeofday(V, V);
    mount(V, V, V, V, V);
    umount2(V, V);
    swapon(V, V);
    swapoff(V);
    reboot(V, V, V, V);
    sethostname(HOSTBUF_IN, V) { Hosts Answer };
    setdomainname(HOSTBUF_IN, V) { Hosts Answer };
    iopl(V);
    ioperm(V, V, V);
    create_module(V, V);
    init_module(V, V, V);
    delete_module(V, V);
    get_kernel_syms(V);
    query_module(V, V, V, V, V);
    quotactl(V, V, V, V);
    nfsservctl(V, V, V);
    getpmsg();
    putpmsg();
    afs_syscall();
    tuxcall();
    security();
    gettid() -> Tid { Pids Answer };
    readahead(FD, V, V);
    setxattr(V, V, V, V, V);
    lsetxattr(V, V, V, V, V);
    fsetxattr(FD, V, V, V, V);
    getxattr(V, V, V, V);
    lgetxattr(V, V, V, V);
    fgetxattr(FD, V, V, V);
    listxattr(V, V, V);
    llistxattr(V, V, V);
    flistxattr(FD, V, V);
    removexattr(V, V);
    lremovexattr(V, V);
    fremovexattr(FD, V);
    tkill(TID, V) { Pids Detour };
    time(V);
    futex(V, V, V, V, V, V);
    sched_setaffinity(TID, V, V) { Pids Detour };
    sched_getaffinity(TID, V, V) { Pids Detour };
    set_thread_area(V);
    io_setup(V, V);
    io_destroy(V);
    io_getevents(V, V, V, V, V);
    io_submit(V, V, V);
    io_cancel(V, V, V);
    get_thread_area(V);
    lookup_dcookie(V, V, V);
    epoll_create(V) -> Fd;
    epoll_ctl_old(V, V, V, V);
    epoll_wait_old(V, V, V, V);
    remap_file_pages(V, V, V, V, V);
    getdents64(FD, V, V);
    set_tid_address(V) -> Tid { Pids Detour };
    restart_syscall();
    semtimedop(SEM, V, V, V) { Ipc Detour };
    fadvise64(FD, V, V, V);
    timer_create(V, PIDBUF_IN, V) { Pids Pass };
    timer_settime(V, V, V, V);
    timer_gettime(V, V);
    timer_getoverrun(V);
    timer_delete(V);
    clock_settime(V, V);
    clock_gettime(V, V);
    clock_getres(V, V);
    clock_nanosleep(V, V, V, V);
    exit_group(V);
    epoll_wait(FD, V, V, V);
    epoll_ctl(FD, V, FD, V);
    tgkill(PID, TID, V) { Pids Detour };
    utimes(V, V);
    vserver();
    mbind(V, V, V, V, V, V);
    set_mempolicy(V, V, V);
    get_mempolicy(V, V, V, V, V);
    mq_open(V, V, V, V) -> Fd;
    mq_unlink(V);
    mq_timedsend(FD, V, V, V, V);
    mq_timedreceive(FD, V, V, V, V);
    mq_notify(FD, V);
    mq_getsetattr(FD, V, V);
    kexec_load(V, V, V, V);
    waitid(V, WHO, PIDBUF_OUT, V, V) { Pids Detour };
    add_key(V, V, V, V, V);
    request_key(V, V, V, V);
    keyctl(V, V, V, V, V);
    ioprio_set(V, WHO, V) { Pids Detour };
    ioprio_get(V, WHO) { Pids Detour };
    inotify_init() -> Fd;
    inotify_add_watch(FD, V, V);
    inotify_rm_watch(FD, V);
    migrate_pages(PID, V, V, V) { Pids Detour };
    openat(FD, V, V, V) -> Fd;
    mkdirat(FD, V, V);
    mknodat(FD, V, V, V);
    fchownat(FD, V, V, V, V);
    futimesat(FD, V, V);
    newfstatat(FD, V, V, V);
    unlinkat(FD, V, V);
    renameat(FD, V, FD, V);
    linkat(FD, V, FD, V, V);
    symlinkat(V, FD, V);
    readlinkat(FD, V, V, V);
    fchmodat(FD, V, V);
    faccessat(FD, V, V);
    pselect6(V, V, V, V, V, V);
    ppoll(V, V, V, V, V);
    unshare(V);
    set_robust_list(V, V);
    get_robust_list(TID, V, V) { Pids Detour };
    splice(FD, V, FD, V, V, V);
    tee(FD, FD, V, V);
    sync_file_range(FD, V, V, V);
    vmsplice(FD, V, V, V);
    move_pages(PID, V, V, V, V, V) { Pids Detour };
    utimensat(FD, V, V, V);
    epoll_pwait(FD, V, V, V, V, V);
    signalfd(FD, V, V) -> Fd;
    timerfd_create(V, V) -> Fd;
    eventfd(V) -> Fd;
    fallocate(FD, V, V, V);
    timerfd_settime(FD, V, V, V);
    timerfd_gettime(FD, V);
    accept4(FD, ADDR_OUT, V, V) -> Fd { Endpoints Detour };
    signalfd4(FD, V, V, V) -> Fd;
    eventfd2(V, V) -> Fd;
    epoll_create1(V) -> Fd;
    dup3(FD, FD, V) -> Fd;
    pipe2(V, V);
    inotify_init1(V) -> Fd;
    preadv(FD, V, V, V, V);
    pwritev(FD, V, V, V, V);
    rt_tgsigqueueinfo(PID, TID, V, PIDBUF_IN) { Pids Detour };
    perf_event_open(V, WHO, V, FD, V) -> Fd { Pids Detour };
    recvmmsg(FD, MSGHDR_OUT, V, V, V) { Endpoints Pass };
    fanotify_init(V, V) -> Fd;
    fanotify_mark(FD, V, V, FD, V);
    prlimit64(PID, V, V, V) { Pids Detour };
    name_to_handle_at(FD, V, V, V, V);
    open_by_handle_at(FD, V, V) -> Fd;
    clock_adjtime(V, V);
    syncfs(FD);
    sendmmsg(FD, MSGHDR_IN, V, V) { Endpoints Pass };
    setns(FD, V);
    getcpu(V, V, V);
    process_vm_readv(PID, V, V, V, V, V) { Pids Detour };
    process_vm_writev(PID, V, V, V, V, V) { Pids Detour };
    kcmp(PID, PID, V, V, V) { Pids Detour };
    finit_module(FD, V, V);
    sched_setattr(TID, V, V) { Pids Detour };
    sched_getattr(TID, V, V, V) { Pids Detour };
    renameat2(FD, V, FD, V, V);
    seccomp(V, V, V);
    getrandom(V, V, V);
    memfd_create(V, V) -> Fd;
    kexec_file_load(FD, FD, V, V, V);
    bpf(V, V, V);
    execveat(FD, V, V, V, V);
    userfaultfd(V) -> Fd;
    membarrier(V, V, V);
    mlock2(V, V, V);
    copy_file_range(FD, V, FD, V, V, V);
    preadv2(FD, V, V, V, V, V);
    pwritev2(FD, V, V, V, V, V);
    pkey_mprotect(V, V, V, V);
    pkey_alloc(V, V);
    pkey_free(V);
    statx(FD, V, V, V, V);
    io_pgetevents(V, V, V, V, V, V);
    rseq(V, V, V, V);
    uretprobe();
    uprobe();
    pidfd_send_signal(FD, V, PIDBUF_IN, V);
    io_uring_setup(V, V) -> Fd { Always Refuse };
    io_uring_enter(FD, V, V, V, V, V);
    io_uring_register(FD, V, V, V);
    open_tree(FD, V, V) -> Fd;
    move_mount(FD, V, FD, V, V);
    fsopen(V, V) -> Fd;
    fsconfig(FD, V, V, V, V);
    fsmount(FD, V, V) -> Fd;
    fspick(FD, V, V) -> Fd;
    pidfd_open(PID, V) -> Fd { Pids Detour };
    clone3(PIDBUF_IN, V) -> Tid { Pids Detour };
    close_range(FD, FD, V);
    openat2(FD, V, V, V) -> Fd;
    pidfd_getfd(FD, V, V) -> Fd;
    faccessat2(FD, V, V, V);
    process_madvise(FD, V, V, V, V);
    epoll_pwait2(FD, V, V, V, V, V);
    mount_setattr(FD, V, V, V, V);
    quotactl_fd(FD, V, V, V);
    landlock_create_ruleset(V, V, V) -> Fd;
    landlock_add_rule(FD, V, V, V);
    landlock_restrict_self(FD, V);
    memfd_secret(V) -> Fd;
    process_mrelease(FD, V);
    futex_waitv(V, V, V, V, V);
    set_mempolicy_home_node(V, V, V, V);
    cachestat(FD, V, V, V);
    fchmodat2(FD, V, V, V);
    map_shadow_stack(V, V, V);
    futex_wake(V, V, V, V);
    futex_wait(V, V, V, V, V, V);
    futex_requeue(V, V, V, V);
    statmount(V, V, V, V);
    listmount(V, V, V, V);
    lsm_get_self_attr(V, V, V, V);
    lsm_set_self_attr(V, V, V, V);
    lsm_list_modules(V, V, V);
    mseal(V, V, V);
    setxattrat(FD, V, V, V, V, V);
    getxattrat(FD, V, V, V, V, V);
    listxattrat(FD, V, V, V, V);
    removexattrat(FD, V, V, V);
    open_tree_attr(FD, V, V, V, V) -> Fd;
    file_getattr(FD, V, V, V, V);
    file_setattr(FD, V, V, V, V);
}
