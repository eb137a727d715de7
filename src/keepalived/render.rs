//! The text of keepalived's configuration, as keepalived.conf(5) of 2.2.7 defines it.
//!
//! Owns the marker line and the form of the file; never reads or writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use super::{Config, Instance, Paths, Unicast, anchor};
use crate::model::{Family, Vrid};

/// The first line of every file that kvip wrote; a file without it is somebody else's.
pub const MARKER: &str = "# written by kvip: changes are lost; see kvip(8)";

/// What keepalived adds to this node's priority once kvip has been gone for `gone_after`: it turns a fresh holder
/// into a stale one, and a fresh backup too (see [`super::weight`]).
pub const GONE_WEIGHT: i16 = -128;

/// The tuning that the lab measured: gratuitous ARPs early, again a second later and each minute, never in bursts that
/// would delay an advert; no scripts; no priority of keepalived's own choice for its processes.
const GLOBALS: &str = "    vrrp_version 3
    vrrp_garp_master_delay 1
    vrrp_garp_master_repeat 2
    vrrp_garp_lower_prio_delay 1
    vrrp_garp_lower_prio_repeat 1
    vrrp_garp_master_refresh 60
    vrrp_garp_master_refresh_repeat 1
    vrrp_garp_interval 0.001
    vrrp_gna_interval 0.001
    vrrp_min_garp true
    enable_script_security
    max_auto_priority -1
";

/// The same for each instance of kvip's in a file beside somebody else's. What else is said once for all instances of a
/// keepalived is theirs to say: version 3 would take the authentication of theirs away.
const TUNING: &str = "    version 3
    garp_master_delay 1
    garp_master_repeat 2
    garp_lower_prio_delay 1
    garp_lower_prio_repeat 1
    garp_master_refresh 60
    garp_master_refresh_repeat 1
";

/// What the installed keepalived was built with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Build {
    /// D-Bus support; without it `enable_dbus` is an unknown keyword.
    pub dbus: bool,
}

/// The whole `keepalived.conf` for `config`. The same configuration gives the same text.
pub fn render(config: &Config, paths: &Paths, build: Build) -> String {
    let dbus = if build.dbus { "    enable_dbus\n" } else { "" };
    let globals = format!("global_defs {{\n    router_id {}\n{GLOBALS}{dbus}}}\n", config.router_id);
    format!("{MARKER}\n{globals}{}", instances(config, paths, ""))
}

/// The file for `config` that somebody else's `keepalived.conf` includes. It changes nothing for their instances.
pub fn render_fragment(config: &Config, paths: &Paths) -> String {
    format!("{MARKER}\n{}", instances(config, paths, TUNING))
}

/// The instances, each with `tuning` of its own, after what they track.
fn instances(config: &Config, paths: &Paths, tuning: &str) -> String {
    let mut text = String::new();
    for (name, gone_after) in config.instances.iter().map(|i| watch(config, i)).collect::<BTreeMap<_, _>>() {
        text.push_str(&track_process(&name, gone_after, paths));
    }
    for vrid in config.instances.iter().map(|i| i.vrid).collect::<BTreeSet<_>>() {
        text.push_str(&track_file(vrid, paths));
    }
    for instance in &config.instances {
        text.push_str(&vrrp_instance(instance, &watch(config, instance).0, tuning));
    }
    text
}

/// The instance's name in the file and in keepalived's log: `kvip_51_4`.
pub fn instance_name(vrid: Vrid, family: Family) -> String {
    format!("kvip_{vrid}_{}", family.number())
}

/// The `vrrp_track_process` of an instance: its name, and how long kvip may be gone. Groups that wait as long as most
/// share one.
fn watch(config: &Config, instance: &Instance) -> (String, Duration) {
    let name = if instance.gone_after == config.gone_after {
        "kvip".into()
    } else {
        format!("kvip_{}", instance.vrid)
    };
    (name, instance.gone_after)
}

/// A process with parameters is matched on its full command line; `partial` lets more parameters follow `run`.
fn track_process(name: &str, gone_after: Duration, paths: &Paths) -> String {
    format!(
        "vrrp_track_process {name} {{
    process \"{}\" run
    param_match partial
    weight {GONE_WEIGHT}
    terminate_delay {}
    full_command
}}
",
        paths.program.display(),
        seconds(gone_after)
    )
}

fn track_file(vrid: Vrid, paths: &Paths) -> String {
    format!("track_file kvip_{vrid} {{\n    file \"{}\"\n    weight 1\n}}\n", paths.weight(vrid).display())
}

fn vrrp_instance(instance: &Instance, process: &str, tuning: &str) -> String {
    let vrid = instance.vrid;
    let mut text = format!(
        "vrrp_instance {} {{
    state BACKUP
    interface {}
    virtual_router_id {vrid}
    priority {}
    advert_int {}
",
        instance_name(vrid, instance.family),
        instance.interface,
        instance.priority,
        seconds(instance.advert)
    );
    text.push_str(tuning);
    if let Some(unicast) = &instance.unicast {
        text.push_str(&unicast_lines(unicast));
    }
    block(&mut text, "track_file", [format!("kvip_{vrid}")]);
    block(&mut text, "track_process", [process.to_owned()]);
    block(&mut text, "virtual_ipaddress", [anchor_line(instance)]);
    if !instance.vips.is_empty() {
        let lines = instance.vips.iter().map(|vip| vip_line(*vip, &instance.interface));
        block(&mut text, "virtual_ipaddress_excluded", lines);
    }
    text.push_str("}\n");
    text
}

fn unicast_lines(unicast: &Unicast) -> String {
    let mut text = format!("    check_unicast_src\n    unicast_src_ip {}\n", unicast.source);
    block(&mut text, "unicast_peer", unicast.peers.iter().map(IpAddr::to_string));
    text
}

/// keepalived refuses a scope on an IPv6 address: the kernel derives it.
fn anchor_line(instance: &Instance) -> String {
    let (address, link) = (anchor(instance.vrid, instance.family), &instance.interface);
    match instance.family {
        Family::V4 => format!("{address}/32 dev {link} scope link noprefixroute"),
        Family::V6 => format!("{address}/128 dev {link} noprefixroute"),
    }
}

/// `noprefixroute` marks the address as keepalived's; a preferred lifetime of 0 keeps it from being a source address.
fn vip_line(vip: IpAddr, link: &str) -> String {
    match vip {
        IpAddr::V4(_) => format!("{vip}/32 dev {link} noprefixroute"),
        IpAddr::V6(_) => format!("{vip}/128 dev {link} noprefixroute preferred_lft 0"),
    }
}

fn block(text: &mut String, keyword: &str, lines: impl IntoIterator<Item = String>) {
    let _ = writeln!(text, "    {keyword} {{");
    for line in lines {
        let _ = writeln!(text, "        {line}");
    }
    text.push_str("    }\n");
}

/// Seconds with as many decimals as it takes, down to the centisecond that VRRPv3 counts in (RFC 9568, section 5.2.7).
fn seconds(duration: Duration) -> String {
    let centiseconds = duration.as_millis() / 10;
    let (whole, rest) = (centiseconds / 100, centiseconds % 100);
    match rest {
        0 => whole.to_string(),
        _ => format!("{whole}.{rest:02}").trim_end_matches('0').to_owned(),
    }
}
