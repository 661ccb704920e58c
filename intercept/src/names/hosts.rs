//! The pod's own names: host name and NIS domain name (`uname(2)`).

use serde::{Deserialize, Serialize};

/// Host and domain name as the pod sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosts {
    /// `nodename` of `struct utsname`; bytes, because the kernel takes any.
    pub node: Vec<u8>,
    /// `domainname` of `struct utsname`.
    pub domain: Vec<u8>,
}
