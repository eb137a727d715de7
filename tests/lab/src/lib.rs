//! The lab: three virtual machines, a client that is no node, and a real control plane, all
//! inside namespaces that one supervisor process owns.
//!
//! Tests and the demo use [`lab::Lab`] and [`probe::Probe`]. In reading order:
//!
//! ```text
//! outside the namespaces                      inside them
//! lab        what tests call                  serve    process 1, raises everything
//! kvip       the package on the nodes
//! kube_proxy the real one on the nodes
//! alone      the API server without machines
//! probe      a client's view, measured        network  bridge, taps, clients
//! trace      the packets at nodes' cards
//! namespace  start, find, enter, end          vm       one QEMU a node
//! image      disk image and snapshot          prober   the asking itself
//! kubeconfig, pki   who may do what            control  etcd, API server, controllers, kubelets
//!                                             api      short questions to the API server
//!                                             kubelet  what makes Pods of namespaces in a node
//!                                             peer     asks and holds connections, and answers in pods
//! demo       the story of `make demo`
//! stage      how it is printed
//! stall      whether a machine stood still meanwhile
//!            layout, command, progress, machine, qmp, ssh: used by both
//! ```

pub mod alone;
pub mod api;
pub mod asking;
pub mod batch;
pub mod command;
pub mod control;
pub mod demo;
pub mod image;
pub mod kube_proxy;
pub mod kubeconfig;
pub mod kubelet;
pub mod kvip;
pub mod lab;
pub mod layout;
pub mod machine;
pub mod namespace;
pub mod network;
pub mod peer;
pub mod pki;
pub mod probe;
pub mod prober;
pub mod progress;
pub mod qmp;
pub mod scenario;
pub mod serve;
pub mod ssh;
pub mod stage;
pub mod stall;
pub mod trace;
pub mod vm;
