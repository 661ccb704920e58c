//! From a row of the table to the handler of its call.

use super::{
    call::{Call, Fail, Fault, Served},
    endpoints, hosts, ipc, pids,
};
use crate::{
    names::Tables,
    table::{Class, Row, Sysno, Verb},
};

/// Serves one call.
pub(crate) fn serve(row: &'static Row, call: &Call<'_>, tables: &mut Tables) -> Served {
    match row.nr {
        Sysno::bind => endpoints::bind(call, tables),
        Sysno::listen => endpoints::listen(call, tables),
        Sysno::connect => endpoints::connect(call, tables),
        Sysno::accept | Sysno::accept4 => endpoints::accept(call, tables),
        Sysno::getsockname => endpoints::getsockname(call, tables),
        Sysno::getpeername => endpoints::getpeername(call, tables),
        Sysno::fork | Sysno::vfork | Sysno::clone | Sysno::clone3 => pids::fork(row, call, tables),
        _ => by_class(row, call, tables),
    }
}

/// The calls that differ in nothing but their rows.
fn by_class(row: &'static Row, call: &Call<'_>, tables: &mut Tables) -> Served {
    match (row.class, row.verb) {
        (Class::Pids, Verb::Answer) => pids::answer(row, call, tables),
        (Class::Pids, Verb::Detour) => pids::detour(row, call, tables),
        (Class::Ipc, Verb::Detour) => ipc::detour(row, call, tables),
        (Class::Hosts, Verb::Answer) => hosts::answer(row, call, tables),
        _ => Err(Fail::Fault(Fault::Unhandled(call.n.nr))),
    }
}
