//! The crate from the outside: our server and BIND's, our client and BIND's.

#[cfg(test)]
mod bind;
#[cfg(test)]
mod common;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod directory;
#[cfg(test)]
mod forwarding;
#[cfg(test)]
mod lost_replies;
#[cfg(test)]
mod secondary;
