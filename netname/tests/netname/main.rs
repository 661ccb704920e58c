//! The crate from the outside: our server and BIND's, our client and BIND's.

#[cfg(test)]
mod common;
#[cfg(test)]
mod directory;
