//! The lab: three virtual machines, a client that is no node, and a place for a real control plane, all
//! inside namespaces that one supervisor process owns.

pub mod layout;
