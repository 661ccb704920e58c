//! From a row of the table to the handler of its call.

use super::{
    call::{Call, Fail, Fault, Served},
    endpoints,
};
use crate::{
    names::Tables,
    table::{Row, Sysno},
};

/// Serves one call.
pub(crate) fn serve(row: &Row, call: &Call<'_>, tables: &mut Tables) -> Served {
    match row.nr {
        Sysno::bind => endpoints::bind(call, tables),
        Sysno::listen => endpoints::listen(call, tables),
        Sysno::connect => endpoints::connect(call, tables),
        Sysno::accept | Sysno::accept4 => endpoints::accept(call, tables),
        Sysno::getsockname => endpoints::getsockname(call, tables),
        Sysno::getpeername => endpoints::getpeername(call, tables),
        _ => Err(Fail::Fault(Fault::Unhandled(call.n.nr))),
    }
}
