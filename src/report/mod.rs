//! What kvip tells the host and the cluster: the journal's lines, systemd's notifications, and what it writes to objects.

pub mod beats;
pub mod journal;
pub mod objects;
pub mod status;
pub mod systemd;
pub mod words;
