//! netname
