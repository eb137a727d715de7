//! What kvip tells the host about itself: the journal's lines and systemd's notifications.

pub mod beats;
pub mod journal;
pub mod status;
pub mod systemd;
pub mod words;
