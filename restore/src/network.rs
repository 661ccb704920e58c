//! What a capture and a rebuild must know of the pod's network, from the caller.
//!
//! Records hold virtual endpoints. A pod that owns its address has nothing to translate.
//! Where the host's address is shared, the pod's endpoint table says which real endpoint
//! stands for a virtual one; a rebuild binds where it is free and notes what it bound, so
//! that the table of the pod that wakes can be told.
//!
//! ```text
//! capture:  socket ─▶ real ─▶ table ─▶ virtual ─▶ record
//! rebuild:  record ─▶ virtual ─▶ bind where free ─▶ real ─▶ Made ─▶ the new pod's table
//! ```

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use intercept::{
    names::{Endpoints, endpoints::bind_where_free},
    socket,
};
use nix::sys::socket::SockaddrStorage;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    resource::socket::{local_address, remote_address},
};

/// Whose addresses the pod's sockets have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NetMode {
    /// The pod's own (`--net own`, `--net private`): they move with it, and so do its connections.
    #[default]
    Owned,
    /// The host's (`--net shared`): a connection to the outside cannot move.
    Shared,
}

/// What to do with a connection that cannot move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum LostConnections {
    /// The capture is refused, naming them.
    #[default]
    Refuse,
    /// They come back as connections that were reset: what was received can still be read, then `ECONNRESET`.
    Reset,
}

/// The network side of a capture or a rebuild. By default addresses are the pod's own and nothing is lost silently.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Network {
    /// Whose addresses they are.
    pub mode: NetMode,
    /// What to do with connections that cannot move.
    pub lost: LostConnections,
    /// The pod's table of endpoints; only looked at where addresses are shared.
    pub endpoints: Endpoints,
    #[serde(skip)]
    made: Vec<Made>,
}

/// A binding that a rebuild made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Made {
    /// A socket was bound.
    Bound {
        /// Its name in the pod.
        virt: SocketAddr,
        /// Its name here.
        real: SocketAddr,
        /// Its `SO_COOKIE`.
        cookie: u64,
        /// Whether it listens.
        listening: bool,
    },
    /// A connection was rebuilt: own end, far end.
    Connected {
        /// Its ends as the pod sees them.
        virt: (SocketAddr, SocketAddr),
        /// Its ends here.
        real: (SocketAddr, SocketAddr),
    },
}

impl Made {
    /// Tells the table of the pod that wakes.
    pub fn tell(&self, table: &mut Endpoints) {
        match *self {
            Self::Bound {
                virt,
                real,
                cookie,
                listening,
            } => {
                table.adopt_as(virt, real, cookie, listening);
            }
            Self::Connected { virt, real } => table.adopt_connection(virt, real),
        }
    }
}

impl Network {
    /// A network with a pod's table of endpoints.
    #[must_use]
    pub fn new(mode: NetMode, lost: LostConnections, endpoints: Endpoints) -> Self {
        let made = Vec::new();
        Self {
            mode,
            lost,
            endpoints,
            made,
        }
    }

    /// The virtual name of a socket.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the socket does not tell its real one.
    pub fn local(&self, fd: BorrowedFd<'_>) -> Result<SocketAddr> {
        let real = local_address(fd)?;
        if self.mode == NetMode::Owned {
            return Ok(real);
        }
        let cookie = socket::cookie(fd)
            .map_err(|e| Error::kernel("getsockopt SO_COOKIE", real.to_string(), e))?;
        Ok(self
            .endpoints
            .virtual_local(cookie, real, remote_address(fd).ok()))
    }

    /// The virtual name of a socket's far end `remote`.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the socket does not tell its own real name.
    pub fn remote(&self, fd: BorrowedFd<'_>, remote: SocketAddr) -> Result<SocketAddr> {
        match self.mode {
            NetMode::Owned => Ok(remote),
            NetMode::Shared => Ok(self.endpoints.virtual_remote(local_address(fd)?, remote)),
        }
    }

    /// Where a virtual endpoint is reached here.
    #[must_use]
    pub fn real_of(&self, virt: SocketAddr) -> SocketAddr {
        match self.mode {
            NetMode::Owned => virt,
            NetMode::Shared => self.endpoints.real_of(virt).unwrap_or(virt),
        }
    }

    /// Binds an internet socket to what stands for `virt` here.
    ///
    /// # Errors
    /// [`Error::Unfit`] where it is taken or not of this host, and nothing else may stand for it.
    pub fn bind(&mut self, fd: BorrowedFd<'_>, virt: SocketAddr) -> Result<()> {
        let translated =
            self.mode == NetMode::Shared && socket::is_inet_stream(fd).unwrap_or_default();
        let bound = match translated {
            true => self.bind_listener(fd, virt),
            false => bind_exactly(fd, virt),
        };
        bound.map_err(|e| unfit(virt, e))?;
        if translated {
            self.note(fd, virt, local_address(fd)?, false)?;
        }
        Ok(())
    }

    fn bind_listener(&self, fd: BorrowedFd<'_>, virt: SocketAddr) -> io::Result<()> {
        match self.endpoints.published(virt.port()) {
            Some(port) => bind_exactly(fd, SocketAddr::new(virt.ip(), port)),
            None => bind_where_free(fd, virt).map(drop),
        }
    }

    /// [`Network::bind`] of one end of a connection, whose names are noted when it is connected.
    ///
    /// Under a shared address the kernel chooses its port: the very same connection may live on this
    /// host already, and a port that was asked for could never be changed again (`SOCK_BINDPORT_LOCK`).
    ///
    /// # Errors
    /// As [`Network::bind`].
    pub fn bind_end(&self, fd: BorrowedFd<'_>, virt: SocketAddr) -> Result<()> {
        let bound = match self.mode {
            NetMode::Owned => bind_exactly(fd, virt),
            NetMode::Shared => bind_where_free(fd, SocketAddr::new(virt.ip(), 0)).map(drop),
        };
        bound.map_err(|e| unfit(virt, e))
    }

    /// Notes that a socket that was bound to what stands for `virt` listens.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the socket does not tell its name.
    pub fn listens(&mut self, fd: BorrowedFd<'_>, virt: SocketAddr) -> Result<()> {
        match self.mode {
            NetMode::Owned => Ok(()),
            NetMode::Shared => self.note(fd, virt, local_address(fd)?, true),
        }
    }

    /// Notes a connection that was rebuilt.
    pub fn connected(&mut self, virt: (SocketAddr, SocketAddr), real: (SocketAddr, SocketAddr)) {
        if self.mode == NetMode::Shared {
            self.add(Made::Connected { virt, real });
        }
    }

    fn note(
        &mut self,
        fd: BorrowedFd<'_>,
        virt: SocketAddr,
        real: SocketAddr,
        listening: bool,
    ) -> Result<()> {
        let cookie = socket::cookie(fd)
            .map_err(|e| Error::kernel("getsockopt SO_COOKIE", virt.to_string(), e))?;
        self.add(Made::Bound {
            virt,
            real,
            cookie,
            listening,
        });
        Ok(())
    }

    fn add(&mut self, made: Made) {
        made.tell(&mut self.endpoints);
        self.made.push(made);
    }

    /// All that was bound so far, for the table of the pod that wakes.
    #[must_use]
    pub fn made(&self) -> &[Made] {
        &self.made
    }
}

fn bind_exactly(fd: BorrowedFd<'_>, to: SocketAddr) -> io::Result<()> {
    Ok(nix::sys::socket::bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(to),
    )?)
}

fn unfit(virt: SocketAddr, e: io::Error) -> Error {
    let why = match e.kind() {
        io::ErrorKind::AddrInUse => "its port is taken on this host",
        io::ErrorKind::AddrNotAvailable => "its address is none of this host's",
        _ => return Error::kernel("bind", format!("a socket at {virt}"), e),
    };
    Error::Unfit {
        object: format!("a socket at {virt}"),
        why: why.into(),
    }
}
