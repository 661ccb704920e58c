//! Who a process is: user and group ids, groups, capabilities, and what it may never gain.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    remote::{Batch, CallId, Results},
};

/// Credentials of a process, as its pod's user namespace sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creds {
    /// Real, effective, saved and file system user id.
    pub uid: [u32; 4],
    /// The same for the group.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding and ambient capabilities.
    pub caps: [u64; 5],
    /// `no_new_privs`.
    pub no_new_privs: bool,
    /// `PR_GET_SECUREBITS`.
    pub secure_bits: u64,
    /// `PR_GET_DUMPABLE`.
    pub dumpable: u64,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub umask: u32,
}

/// Calls that ask what /proc does not tell.
pub struct Asked {
    secure_bits: CallId,
    dumpable: CallId,
}

/// Asks for securebits and dumpable.
pub fn ask(batch: &mut Batch) -> Asked {
    let mut get = |what: i32| batch.call("prctl", libc::SYS_prctl, &[what as u64, 0, 0, 0, 0]);
    Asked {
        secure_bits: get(libc::PR_GET_SECUREBITS),
        dumpable: get(libc::PR_GET_DUMPABLE),
    }
}

/// The credentials of process `pid`.
///
/// # Errors
/// [`Error::Proc`] when /proc/PID/status does not read as expected.
pub fn read(pid: i32, asked: &Asked, results: &Results) -> Result<Creds> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).ok_or_else(|| Error::Proc {
            path: (&path).into(),
            why: format!("no {name}"),
        })
    };
    let ids = |name: &str| -> Result<Vec<u32>> {
        Ok(field(name)?
            .split_whitespace()
            .filter_map(|w| w.parse().ok())
            .collect())
    };
    let four = |name: &str| -> Result<[u32; 4]> {
        let why = |_| Error::Proc {
            path: (&path).into(),
            why: format!("{name} has not four values"),
        };
        ids(name)?.try_into().map_err(why)
    };
    let hex = |name: &str| field(name).map(|v| u64::from_str_radix(v, 16).unwrap_or(0));
    Ok(Creds {
        uid: four("Uid")?,
        gid: four("Gid")?,
        groups: ids("Groups")?,
        caps: [
            hex("CapInh")?,
            hex("CapPrm")?,
            hex("CapEff")?,
            hex("CapBnd")?,
            hex("CapAmb")?,
        ],
        no_new_privs: field("NoNewPrivs")? == "1",
        secure_bits: results.value(asked.secure_bits) as u64,
        dumpable: results.value(asked.dumpable) as u64,
        umask: u32::from_str_radix(field("Umask")?, 8).unwrap_or(0o022),
    })
}

/// Calls that make a puppet this user. They come last: each takes away what earlier calls need.
///
/// Threads have credentials of their own, so this runs in every thread.
pub fn rebuild(creds: &Creds, has: &Creds, batch: &mut Batch) {
    let prctl = |batch: &mut Batch, name, args: &[u64]| batch.call(name, libc::SYS_prctl, args);
    drop_bounding(has.caps[3] & !creds.caps[3], batch);
    let bytes: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
    let groups = batch.bytes(&bytes);
    batch.call(
        "setgroups",
        libc::SYS_setgroups,
        &[creds.groups.len() as u64, groups],
    );
    prctl(
        batch,
        "prctl PR_SET_KEEPCAPS",
        &[libc::PR_SET_KEEPCAPS as u64, 1, 0, 0, 0],
    );
    let [r, e, s, f] = creds.gid.map(u64::from);
    batch.call("setresgid", libc::SYS_setresgid, &[r, e, s]);
    batch.call("setfsgid", libc::SYS_setfsgid, &[f]);
    let [r, e, s, f] = creds.uid.map(u64::from);
    batch.call("setresuid", libc::SYS_setresuid, &[r, e, s]);
    batch.call("setfsuid", libc::SYS_setfsuid, &[f]);
    if creds.secure_bits != has.secure_bits {
        // Needs CAP_SETPCAP, which the permitted set still holds and the effective set may have lost.
        set_caps([has.caps[0], has.caps[1], has.caps[1]], batch);
        prctl(
            batch,
            "prctl PR_SET_SECUREBITS",
            &[libc::PR_SET_SECUREBITS as u64, creds.secure_bits, 0, 0, 0],
        );
    }
    set_caps([creds.caps[0], creds.caps[1], creds.caps[2]], batch);
    for cap in bits(creds.caps[4]) {
        let args = [
            libc::PR_CAP_AMBIENT as u64,
            libc::PR_CAP_AMBIENT_RAISE as u64,
            cap,
            0,
            0,
        ];
        prctl(batch, "prctl PR_CAP_AMBIENT_RAISE", &args);
    }
    if creds.no_new_privs && !has.no_new_privs {
        prctl(
            batch,
            "prctl PR_SET_NO_NEW_PRIVS",
            &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0],
        );
    }
    // Changed ids have made the process undumpable; 2 (suidsafe) cannot be set and means as much as 0.
    let dumpable = u64::from(creds.dumpable == 1);
    prctl(
        batch,
        "prctl PR_SET_DUMPABLE",
        &[libc::PR_SET_DUMPABLE as u64, dumpable, 0, 0, 0],
    );
    batch.call("umask", libc::SYS_umask, &[creds.umask.into()]);
}

fn bits(set: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| set >> bit & 1 == 1)
}

fn drop_bounding(lost: u64, batch: &mut Batch) {
    for cap in bits(lost) {
        let args = [libc::PR_CAPBSET_DROP as u64, cap, 0, 0, 0];
        batch.call("prctl PR_CAPBSET_DROP", libc::SYS_prctl, &args);
    }
}

/// `capset` of inheritable, permitted, effective (capset(2), version 3: two words each).
fn set_caps([inheritable, permitted, effective]: [u64; 3], batch: &mut Batch) {
    const VERSION_3: u64 = 0x2008_0522;
    let header = batch.words(&[VERSION_3]);
    let half = |shift: u32| [effective, permitted, inheritable].map(|s| (s >> shift) as u32);
    let words: Vec<u8> = [half(0), half(32)]
        .concat()
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect();
    let data = batch.bytes(&words);
    batch.call("capset", libc::SYS_capset, &[header, data]);
}
