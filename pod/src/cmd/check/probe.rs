//! Probes: each does the thing itself, in a child where it would change us, and leaves nothing behind.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use intercept::sys::{self, Kcmp, PagemapScan, page_is};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// What a probe brought: what the kernel said where a feature is missing.
pub(super) type Outcome = Result<(), Errno>;

fn call(result: libc::c_long) -> Outcome {
    Errno::result(result).map(drop)
}

fn of(result: io::Result<impl Sized>) -> Outcome {
    let errno = |e: io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    result.map(drop).map_err(errno)
}

/// Does something in a child of ours, which ends right after.
fn in_child(probe: impl FnOnce() -> Outcome) -> Outcome {
    // SAFETY: the command line has one thread, so the child may do what we may.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = probe().map_or_else(|errno| errno as i32, |()| 0);
            // SAFETY: ends the child without running what the parent registered.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, code) => Err(Errno::from_raw(code)),
            _ => Err(Errno::EIO),
        },
    }
}

/// Makes a namespace; without privilege inside a user namespace, as a pod would.
pub(super) fn namespace(flag: i32) -> Outcome {
    in_child(|| own(flag))
}

fn own(flag: i32) -> Outcome {
    let user = if nix::unistd::geteuid().is_root() {
        0
    } else {
        libc::CLONE_NEWUSER
    };
    unshare(CloneFlags::from_bits_retain(flag | user))
}

pub(super) fn overlay() -> Outcome {
    in_child(|| {
        own(libc::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("tmpfs"), "/tmp", Some("tmpfs"), MsFlags::empty(), none)?;
        for name in ["lower", "upper", "work"] {
            of(fs::create_dir(Path::new("/tmp").join(name)))?;
        }
        let options = "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work";
        let options = if nix::unistd::geteuid().is_root() {
            options.to_owned()
        } else {
            format!("{options},userxattr")
        };
        mount(
            Some("overlay"),
            "/tmp/lower",
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
    })
}

pub(super) fn ptrace() -> Outcome {
    // SAFETY: the command line has one thread; the child only waits to be killed.
    let child = match unsafe { fork() }? {
        ForkResult::Child => loop {
            nix::unistd::pause();
        },
        ForkResult::Parent { child } => child,
    };
    let seized = nix::sys::ptrace::seize(child, nix::sys::ptrace::Options::empty());
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL)?;
    waitpid(child, None)?;
    seized
}

pub(super) fn pidfd_getfd() -> Outcome {
    let file = File::open("/dev/null").map_err(|_| Errno::ENOENT)?;
    let pidfd = sys::pidfd_open(std::process::id() as i32);
    of(pidfd.and_then(|pidfd| sys::pidfd_getfd(pidfd.as_fd(), file.as_raw_fd())))
}

pub(super) fn kcmp() -> Outcome {
    let own = std::process::id() as i32;
    of(sys::kcmp(own, own, Kcmp::Vm, 0, 0))
}

/// `SECCOMP_GET_ACTION_AVAIL` of seccomp(2).
fn action(action: u32) -> Outcome {
    // SAFETY: the call reads the action, which lives.
    call(unsafe { libc::syscall(libc::SYS_seccomp, 2, 0, &raw const action) })
}

pub(super) fn seccomp() -> Outcome {
    action(libc::SECCOMP_RET_ERRNO)
}

pub(super) fn user_notification() -> Outcome {
    action(libc::SECCOMP_RET_USER_NOTIF)
}

/// Asks for a pid that is taken: who may choose hears EEXIST, who may not EPERM.
pub(super) fn wanted_pid() -> Outcome {
    in_child(|| {
        if !nix::unistd::geteuid().is_root() {
            unshare(CloneFlags::CLONE_NEWUSER)?;
        }
        let wanted = [std::process::id() as i32];
        // struct clone_args of clone3(2): flags, pidfd, child_tid, parent_tid, exit_signal, stack,
        // stack_size, tls, set_tid, set_tid_size, cgroup.
        let args = [
            0_u64,
            0,
            0,
            0,
            libc::SIGCHLD as u64,
            0,
            0,
            0,
            wanted.as_ptr() as u64,
            1,
            0,
        ];
        // SAFETY: the arguments live; as our own pid is wanted, no child can come of it.
        match call(unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) }) {
            Err(Errno::EEXIST) => Ok(()),
            other => other,
        }
    })
}

pub(super) fn pagemap_scan() -> Outcome {
    let pagemap = File::open("/proc/self/pagemap").map_err(|_| Errno::ENOENT)?;
    let mut scan = PagemapScan {
        start: 0x1000,
        end: 0x2000,
        category_anyof_mask: page_is::PRESENT,
        ..PagemapScan::default()
    };
    of(sys::pagemap_scan(
        pagemap.as_fd(),
        &mut scan,
        &mut [sys::PageRegion::default()],
    ))
}

/// Opens one of our own mapped files by its addresses.
pub(super) fn map_files() -> Outcome {
    let entry = fs::read_dir("/proc/self/map_files")
        .ok()
        .and_then(|mut all| all.next()?.ok());
    of(File::open(entry.ok_or(Errno::ENOENT)?.path()))
}

/// Asks for the size of `struct prctl_mm_map` (prctl(2), PR_SET_MM_MAP_SIZE).
pub(super) fn set_mm_map() -> Outcome {
    let mut size = 0_u32;
    // SAFETY: the kernel writes the size into a place that lives.
    call(unsafe { libc::prctl(libc::PR_SET_MM, 15, &raw mut size, 0, 0) }.into())
}

/// `PR_TIMER_CREATE_RESTORE_IDS` with `PR_TIMER_CREATE_RESTORE_IDS_GET` (linux/prctl.h).
pub(super) fn timer_ids() -> Outcome {
    // SAFETY: no memory is passed.
    call(unsafe { libc::prctl(77, 2, 0, 0, 0) }.into())
}

/// Asks a userfaultfd for UFFD_FEATURE_WP_ASYNC (linux/userfaultfd.h).
pub(super) fn write_protect() -> Outcome {
    const UFFD_USER_MODE_ONLY: i32 = 1;
    const UFFDIO_API: u64 = 0xc018_aa3f;
    const WP_ASYNC: u64 = 1 << 15;
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, UFFD_USER_MODE_ONLY | libc::O_CLOEXEC) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made it for us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // struct uffdio_api: api, features, ioctls.
    let mut api = [0xaa_u64, WP_ASYNC, 0];
    // SAFETY: the structure lives and has the size that the request says.
    call(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) }.into())
}

/// In a network namespace of its own where the host's may not be touched, as a pod would.
pub(super) fn tcp_repair() -> Outcome {
    in_child(|| {
        if !nix::unistd::geteuid().is_root() {
            own(libc::CLONE_NEWNET)?;
        }
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        of(sys::setsockopt(
            socket.as_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            &1_i32,
        ))
    })
}

/// Looks for a cgroup2 hierarchy that we may write.
pub(super) fn cgroup() -> Outcome {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|_| Errno::ENOENT)?;
    let mut roots = mounts
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .filter_map(|line| line.split(' ').nth(4));
    let writable = |root: &str| nix::unistd::access(root, nix::unistd::AccessFlags::W_OK).is_ok();
    roots.any(writable).then_some(()).ok_or(Errno::ENOENT)
}
