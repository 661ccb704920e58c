//! Socket addresses as programs pass them: bytes that may hold more than we translate.
//!
//! A sockaddr carries a scope id, flow information and padding beside address and port.
//! Only address and port are ever replaced, in the bytes the program gave, so that the
//! rest reaches the kernel (or the program) as it was. A v4-mapped IPv6 address is the
//! same endpoint as its IPv4 form and is compared as such.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Size of `struct sockaddr_storage`, the most a program may pass.
pub const MAX: usize = 128;

/// The bytes of a socket address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    bytes: [u8; MAX],
    len: usize,
}

impl Address {
    /// Wraps what a program or the kernel passed; longer input is cut off.
    #[must_use]
    pub fn new(data: &[u8]) -> Self {
        let len = data.len().min(MAX);
        let mut bytes = [0; MAX];
        bytes[..len].copy_from_slice(&data[..len]);
        Self { bytes, len }
    }

    /// The address in the form of `struct sockaddr_in` or `sockaddr_in6`.
    #[must_use]
    pub fn of(addr: SocketAddr) -> Self {
        let (family, len) = match addr {
            SocketAddr::V4(_) => (libc::AF_INET, 16),
            SocketAddr::V6(_) => (libc::AF_INET6, 28),
        };
        let mut new = Self::new(&[0; MAX][..len]);
        new.bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        new.set(addr);
        new
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The port field, whatever the family.
    #[must_use]
    pub fn port(&self) -> u16 {
        u16::from_be_bytes([self.bytes[2], self.bytes[3]])
    }

    fn family(&self) -> i32 {
        i32::from(u16::from_ne_bytes([self.bytes[0], self.bytes[1]]))
    }

    fn is_v4(&self) -> bool {
        self.family() == libc::AF_INET && self.len >= 16
    }

    fn is_v6(&self) -> bool {
        self.family() == libc::AF_INET6 && self.len >= 24
    }

    /// Address and port, v4-mapped addresses in their IPv4 form; `None` for anything but IPv4 and IPv6.
    #[must_use]
    pub fn get(&self) -> Option<SocketAddr> {
        let b = &self.bytes;
        let ip = if self.is_v4() {
            IpAddr::V4(Ipv4Addr::new(b[4], b[5], b[6], b[7]))
        } else if self.is_v6() {
            let octets: [u8; 16] = b[8..24].try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        } else {
            return None;
        };
        Some(SocketAddr::new(ip, self.port()))
    }

    /// Replaces address and port; the family and everything else stay.
    ///
    /// An IPv4 address becomes v4-mapped in an IPv6 sockaddr; a wildcard becomes the family's own.
    pub fn set(&mut self, addr: SocketAddr) {
        self.bytes[2..4].copy_from_slice(&addr.port().to_be_bytes());
        let (v4, v6) = (self.is_v4(), self.is_v6());
        match addr.ip() {
            ip if ip.is_unspecified() && v6 => self.bytes[8..24].fill(0),
            ip if ip.is_unspecified() && v4 => self.bytes[4..8].fill(0),
            IpAddr::V4(ip) if v4 => self.bytes[4..8].copy_from_slice(&ip.octets()),
            IpAddr::V4(ip) if v6 => {
                self.bytes[8..24].copy_from_slice(&ip.to_ipv6_mapped().octets());
            }
            IpAddr::V6(ip) if v6 => self.bytes[8..24].copy_from_slice(&ip.octets()),
            // An IPv6 address has no form in an IPv4 sockaddr; callers keep families apart.
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_got_and_the_rest_stays() {
        for text in ["1.2.3.4:80", "[2001:db8::1]:443", "0.0.0.0:1", "[::]:2"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(Address::of(addr).get(), Some(addr));
        }
        let mut scoped = Address::of("[fe80::1]:80".parse().unwrap());
        scoped.bytes[24] = 7;
        scoped.set("[fe80::2]:81".parse().unwrap());
        assert_eq!(scoped.bytes()[24], 7);
        assert_eq!(scoped.get(), Some("[fe80::2]:81".parse().unwrap()));
    }

    #[test]
    fn mapped_addresses_are_one_endpoint() {
        let mut mapped = Address::of("[::ffff:127.0.0.1]:80".parse().unwrap());
        assert_eq!(mapped.get(), Some("127.0.0.1:80".parse().unwrap()));
        mapped.set("127.0.0.1:81".parse().unwrap());
        assert_eq!(mapped.bytes().len(), 28);
        assert_eq!(mapped.get(), Some("127.0.0.1:81".parse().unwrap()));
    }

    #[test]
    fn short_and_foreign_addresses_are_no_endpoint() {
        assert_eq!(Address::new(&[]).get(), None);
        assert_eq!(Address::new(&[2, 0, 0, 80, 1, 2, 3]).get(), None);
        assert_eq!(Address::new(&[1, 0, b'/', b'x', 0, 0, 0, 0]).get(), None);
        assert_eq!(Address::new(&[0xff; 300]).bytes().len(), MAX);
    }
}
