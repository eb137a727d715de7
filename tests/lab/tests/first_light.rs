//! What every change must keep, all in one lab: the package's life on a host, which begins without kvip and leaves all nodes
//! serving; then nodes that die; then what may happen without a lost request. Tests run in the order of their names.

#[path = "first_light/deb.rs"]
mod deb;
#[path = "first_light/failover.rs"]
mod failover;
#[path = "first_light/serving.rs"]
mod serving;
