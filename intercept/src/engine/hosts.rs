//! uname, sethostname and setdomainname under intercepted host names.

use super::call::{Call, Fail, Outcome, Served};
use crate::{
    listener::Reply,
    names::Tables,
    table::{Row, Sysno},
};

/// Length of each field of `struct utsname`, its NUL included (`linux/utsname.h`).
const FIELD: usize = 65;
/// `CAP_SYS_ADMIN` of `linux/capability.h`.
const SYS_ADMIN: u32 = 21;

const DONE: Served = Ok(Outcome::Reply(Reply::Value(0)));

fn field(bytes: &mut [u8], index: usize, name: &[u8]) {
    let place = &mut bytes[index * FIELD..][..FIELD];
    let len = name.len().min(FIELD - 1);
    place.fill(0);
    place[..len].copy_from_slice(&name[..len]);
}

fn uname(call: &Call<'_>, tables: &Tables) -> Served {
    let mut host = std::mem::MaybeUninit::<libc::utsname>::zeroed();
    // SAFETY: `host` is a live utsname; the call fails for a bad pointer only.
    unsafe { libc::uname(host.as_mut_ptr()) };
    let mut bytes = [0u8; 6 * FIELD];
    // SAFETY: utsname is six arrays of 65 chars without padding, zeroed before.
    unsafe { std::ptr::copy_nonoverlapping(host.as_ptr().cast(), bytes.as_mut_ptr(), bytes.len()) };
    field(&mut bytes, 1, &tables.hosts.node);
    field(&mut bytes, 5, &tables.hosts.domain);
    call.write(call.n.args[0], &bytes)?;
    DONE
}

/// The checks of `sethostname` in `kernel/sys.c`, in their order.
fn given(call: &Call<'_>) -> Served<Vec<u8>> {
    if !call.capable(SYS_ADMIN)? {
        return Err(Fail::Errno(libc::EPERM));
    }
    let len = usize::try_from(call.int(1)).map_err(|_| Fail::Errno(libc::EINVAL))?;
    if len > FIELD - 1 {
        return Err(Fail::Errno(libc::EINVAL));
    }
    let mut name = vec![0u8; len];
    call.read(call.n.args[0], &mut name)?;
    Ok(name)
}

/// Serves one of them.
pub(crate) fn answer(row: &Row, call: &Call<'_>, tables: &mut Tables) -> Served {
    match row.nr {
        Sysno::sethostname => tables.hosts.node = given(call)?,
        Sysno::setdomainname => tables.hosts.domain = given(call)?,
        _ => return uname(call, tables),
    }
    DONE
}
