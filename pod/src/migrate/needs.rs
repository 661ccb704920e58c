//! What a pod needs of a host, and what a host lacks: asked before anything is touched.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::Path;

use anyhow::{Context, Result};

use super::message::{Lack, Needs};

/// Processor features by which programs and libraries choose their code, as /proc/cpuinfo names them.
const ISA: [&str; 16] = [
    "sse",
    "ssse3",
    "avx",
    "bmi",
    "fma",
    "f16c",
    "aes",
    "vaes",
    "sha_ni",
    "pclmulqdq",
    "vpclmulqdq",
    "popcnt",
    "movbe",
    "adx",
    "gfni",
    "amx",
];
/// Features that are no code but are part of a task's state.
const STATE: [&str; 7] = ["abm", "erms", "fsrm", "xsavec", "xsaves", "pku", "rdrand"];

/// A kernel feature and how its absence is found.
pub(crate) struct Feature {
    /// Its name.
    pub(crate) name: &'static str,
    /// Whether this host has it.
    present: fn() -> bool,
}

/// Kernel features that pods may need.
pub(crate) const FEATURES: [Feature; 6] = [
    Feature {
        name: "pid namespaces",
        present: || namespace("pid"),
    },
    Feature {
        name: "ipc namespaces",
        present: || namespace("ipc"),
    },
    Feature {
        name: "time namespaces",
        present: || namespace("time"),
    },
    Feature {
        name: "overlay file systems",
        present: || listed("/proc/filesystems", "overlay"),
    },
    Feature {
        name: "seccomp user notification",
        present: || listed("/proc/sys/kernel/seccomp/actions_avail", "user_notif"),
    },
    Feature {
        name: "pidfd_getfd",
        present: pidfd_getfd,
    },
];

fn namespace(kind: &str) -> bool {
    Path::new("/proc/self/ns").join(kind).exists()
}

fn listed(file: &str, word: &str) -> bool {
    fs::read_to_string(file)
        .is_ok_and(|text| text.split_ascii_whitespace().any(|have| have == word))
}

/// pidfd_getfd(2) of a descriptor that cannot be: EBADF where the call exists, ENOSYS where not.
fn pidfd_getfd() -> bool {
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, -1, 0, 0) };
    result >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// This processor's features that a pod may have seen.
pub(crate) fn cpu() -> Vec<String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpu_in(&text)
}

fn cpu_in(text: &str) -> Vec<String> {
    let flags = text
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    let seen = |flag: &&str| STATE.contains(flag) || ISA.iter().any(|isa| flag.starts_with(isa));
    let flags = flags.map(|(_, flags)| {
        flags
            .split_ascii_whitespace()
            .filter(seen)
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
    });
    flags.into_iter().flatten().collect()
}

fn lack(what: impl Into<String>, hint: impl Into<String>) -> Lack {
    Lack {
        what: what.into(),
        hint: hint.into(),
    }
}

/// What is missing here, apart from the name: `root` is where the pod's directory would be.
///
/// # Errors
/// When this host cannot be looked at.
pub(crate) fn lacks(needs: &Needs, root: &Path) -> Result<Vec<Lack>> {
    let mut lacks = Vec::new();
    if needs.arch != std::env::consts::ARCH {
        let ours = std::env::consts::ARCH;
        lacks.push(lack(
            format!("its processor is {ours}, the pod's {}", needs.arch),
            "choose a host of the same architecture",
        ));
    }
    lacks.extend(lacking_cpu(needs));
    lacks.extend(lacking_features(needs));
    lacks.extend(lacking_space(needs, root)?);
    lacks.extend(needs.ports.iter().filter_map(|port| taken(*port)));
    for volume in needs.volumes.iter().filter(|volume| !volume.exists()) {
        lacks.push(lack(
            format!("{} does not exist there", volume.display()),
            "make it, or mount what the pod's volume reaches",
        ));
    }
    Ok(lacks)
}

fn lacking_cpu(needs: &Needs) -> Option<Lack> {
    let ours = cpu();
    let missing: Vec<_> = needs
        .cpu
        .iter()
        .filter(|flag| !ours.contains(flag))
        .map(String::as_str)
        .collect();
    let hint = "choose a host whose processor has them, or start pods with GLIBC_TUNABLES=glibc.cpu.hwcaps=…";
    (!missing.is_empty()).then(|| lack(format!("its processor lacks {}", missing.join(", ")), hint))
}

fn lacking_features(needs: &Needs) -> impl Iterator<Item = Lack> {
    needs.kernel.iter().filter_map(|name| {
        let known = FEATURES.iter().find(|feature| feature.name == name);
        (!known.is_some_and(|feature| (feature.present)())).then(|| {
            lack(
                format!("its kernel lacks {name}"),
                "choose a host with a newer kernel",
            )
        })
    })
}

fn lacking_space(needs: &Needs, root: &Path) -> Result<Vec<Lack>> {
    let space =
        nix::sys::statvfs::statvfs(root).with_context(|| format!("statvfs {}", root.display()))?;
    let free = space.blocks_available() * space.fragment_size();
    let mut lacks = Vec::new();
    if free < needs.disk {
        let what = format!(
            "{} has {} MiB free, the pod needs up to {}",
            root.display(),
            free >> 20,
            needs.disk >> 20
        );
        lacks.push(lack(what, "make room, or choose another --root there"));
    }
    let available = available_memory().unwrap_or(u64::MAX);
    if available < needs.memory {
        let what = format!(
            "it has {} MiB of memory left, the pod uses {}",
            available >> 20,
            needs.memory >> 20
        );
        lacks.push(lack(what, "choose a host with more memory"));
    }
    Ok(lacks)
}

/// `MemAvailable` of proc_meminfo(5), in bytes.
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

fn taken(port: u16) -> Option<Lack> {
    let busy = |bound: std::io::Result<TcpListener>| {
        bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    };
    let taken = busy(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        || busy(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)));
    taken.then(|| {
        lack(
            format!("port {port} is taken there"),
            "free the port, or run the pod without -p",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitting() -> Needs {
        Needs {
            arch: std::env::consts::ARCH.into(),
            cpu: cpu(),
            ..Needs::default()
        }
    }

    fn found(needs: &Needs) -> Vec<String> {
        lacks(needs, Path::new("/"))
            .unwrap()
            .into_iter()
            .map(|lack| lack.what)
            .collect()
    }

    #[test]
    fn this_host_fits_itself() {
        let kernel = FEATURES
            .iter()
            .filter(|f| (f.present)())
            .map(|f| f.name.to_owned())
            .collect();
        assert_eq!(
            found(&Needs {
                kernel,
                ..fitting()
            }),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_lack_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let needs = Needs {
            arch: "m68k".into(),
            cpu: vec!["avx1024".into()],
            kernel: vec!["teleportation".into()],
            disk: u64::MAX,
            memory: u64::MAX - 1,
            ports: vec![port],
            volumes: vec!["/no/such/directory".into()],
            ..Needs::default()
        };
        let found = found(&needs).join("\n");
        for word in [
            "m68k",
            "avx1024",
            "teleportation",
            "MiB free",
            "memory",
            &format!("port {port}"),
            "/no/such",
        ] {
            assert!(found.contains(word), "{word} is not in\n{found}");
        }
    }

    #[test]
    fn only_what_programs_see_of_a_processor_counts() {
        let text = "processor: 0\nflags\t\t: fpu vme avx avx2 sse4_2 pku md_clear\nbugs: x\n";
        assert_eq!(cpu_in(text), ["avx", "avx2", "pku", "sse4_2"]);
    }
}
