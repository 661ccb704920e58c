//! System V calls under intercepted ipc names: real keys and ids in, virtual ones out.
//!
//! All of them are detours: they attach memory to the caller, block it, or ask about its
//! rights. What translates is read off the call's row. The commands that count through
//! the kernel's whole table (`SHM_STAT` and its like, for ipcs) find nothing there.

use libc::c_int;

use super::call::{Call, Fail, Outcome, Served};
use crate::{
    detour::{Course, Detour},
    listener::Reply,
    names::{Tables, ipc::Space},
    table::{Kind, Row, Sysno},
    tracee::Stopped,
};

/// `SHM_STAT`, `SHM_STAT_ANY`, `SEM_STAT`, `SEM_STAT_ANY`, `MSG_STAT`, `MSG_STAT_ANY` of `linux/*.h`.
fn counts(row: &Row, command: c_int) -> bool {
    match row.nr {
        Sysno::shmctl => matches!(command, 13 | 15),
        Sysno::semctl => matches!(command, 18 | 20),
        Sysno::msgctl => matches!(command, 11 | 13),
        _ => false,
    }
}

/// `GETPID` of `linux/sem.h`: the result is a pid.
const GETPID: c_int = 11;

/// The space whose names a call carries.
fn space<'t>(kind: Kind, row: &Row, tables: &'t mut Tables) -> Option<&'t mut Space> {
    let ipc = &mut tables.ipc;
    match (kind, row.nr) {
        (Kind::Shm, _) | (Kind::Key, Sysno::shmget) => Some(&mut ipc.shm),
        (Kind::Sem, _) | (Kind::Key, Sysno::semget) => Some(&mut ipc.sem),
        (Kind::Msg, _) | (Kind::Key, Sysno::msgget) => Some(&mut ipc.msg),
        _ => None,
    }
}

/// The command of a …ctl call, without the flag of old ABIs (`IPC_64`).
fn command(row: &Row, call: &Call<'_>) -> Option<c_int> {
    match row.nr {
        Sysno::shmctl | Sysno::msgctl => Some(call.int(1) & !0x100),
        Sysno::semctl => Some(call.int(2) & !0x100),
        _ => None,
    }
}

/// What has to be done with a result.
#[derive(Clone, Copy)]
struct After {
    row: &'static Row,
    command: Option<c_int>,
    virt: i32,
    buffer: u64,
}

/// Serves one call.
pub(crate) fn detour(row: &'static Row, call: &Call<'_>, tables: &mut Tables) -> Served {
    let command = command(row, call);
    if command.is_some_and(|command| counts(row, command)) {
        return Err(Fail::Errno(libc::EINVAL));
    }
    let (kind, virt) = (row.args[0].kind, call.int(0));
    let mut args = call.n.args;
    if let Some(space) = space(kind, row, tables) {
        // No object ever has a negative id: the kernel says EINVAL in its own order of checks.
        let real = match kind {
            Kind::Key => space.real_key(virt),
            _ => space.real(virt).unwrap_or(-1),
        };
        args[0] = i64::from(real) as u64;
    }
    let after = After {
        row,
        command,
        virt,
        buffer: if row.nr == Sysno::semctl {
            args[3]
        } else {
            args[2]
        },
    };
    let course = match row.nr {
        Sysno::semop | Sysno::semtimedop | Sysno::msgsnd | Sysno::msgrcv => Course::Blocks,
        _ => Course::Short,
    };
    Ok(Outcome::Detour(Box::new(Detour {
        nr: call.n.nr,
        args,
        data: None,
        course,
        back: Box::new(move |task, result, tables| back(after, task, result, tables)),
        untraceable: Reply::Errno(libc::EPERM),
    })))
}

fn back(after: After, task: &Stopped, result: i64, tables: &mut Tables) -> i64 {
    let row = after.row;
    match after.command {
        Some(libc::IPC_RMID) => {
            if let Some(space) = space(row.args[0].kind, row, tables) {
                space.forget(after.virt);
            }
        }
        Some(libc::IPC_STAT) => {
            told(after, task, tables);
        }
        Some(GETPID) if row.nr == Sysno::semctl => {
            return i64::from(tables.pid_told(result as i32));
        }
        _ => {}
    }
    match space(row.ret, row, tables) {
        Some(space) => i64::from(space.virt_or_new(result as i32)),
        None => result,
    }
}

/// Translates what a status structure tells: its key, and the pids of who made and used it.
fn told(after: After, task: &Stopped, tables: &mut Tables) -> Option<()> {
    // Offsets in shmid64_ds and msqid64_ds of asm-generic; the key is first in ipc64_perm.
    let pids: &[u64] = match after.row.nr {
        Sysno::shmctl => &[80, 84],
        Sysno::msgctl => &[96, 100],
        _ => &[],
    };
    let word = |at: u64| {
        let mut bytes = [0u8; 4];
        task.read(after.buffer + at, &mut bytes).ok()?;
        Some(i32::from_ne_bytes(bytes))
    };
    for at in pids {
        let virt = tables.pid_told(word(*at)?);
        task.write(after.buffer + at, &virt.to_ne_bytes()).ok()?;
    }
    let key = space(after.row.args[0].kind, after.row, tables)?.virt_key(word(0)?)?;
    task.write(after.buffer, &key.to_ne_bytes()).ok()
}
