//! Local APICs.
